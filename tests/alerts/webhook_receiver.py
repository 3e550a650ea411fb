"""A receiver of webhooks on a real socket that does as it is told, a clock that stands still, and alerts."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from extproc.core.quota.limits import Bucket, Interval, Limit, Scope, Window
from extproc.ports.alerts import Alert

NOW = datetime(2026, 3, 4, 11, 30, 15, tzinfo=UTC)
SECRET = b"a secret of the receiver's own"
HANG, CLOSE, GARBAGE, ECHO = "hang", "close", "garbage", "echo"
TRICKLE = "trickle"  # a byte of the answer at a time, each in time
FLOOD = "flood"  # an answer without an end


def alert(number=1, threshold=80):
    limit = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000)
    bucket = Bucket(limit, (f"account-{number}",), Interval(1772578800, 1772665200))
    return Alert("zone-prod", bucket, used=threshold * 10, threshold=threshold, at=NOW)


class StoppedClock:
    def __init__(self, at=NOW):
        self.at = at

    def now(self):
        return self.at


@dataclass
class Counted:
    """The metrics."""

    alerts: list = field(default_factory=list)
    posts: list = field(default_factory=list)
    lost_items: int = 0
    queued: object = None

    def alerted(self, threshold, scope):
        self.alerts.append((threshold, scope))

    def posted(self, outcome):
        self.posts.append(outcome)

    def lost(self, queue, items):
        assert queue == "webhook"
        self.lost_items += items

    def watch_queue(self, queue, size):
        assert queue == "webhook"
        self.queued = size


@dataclass
class Request:
    line: str
    headers: dict
    body: bytes


class Receiver:
    """Answers with `script`'s next entry (a status, (status, headers), or one of the words above), then 200."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.connections = 0
        self.open_connections = 0
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hooks/path-that-is-a-password?key=also-secret"

    @asynccontextmanager
    async def listening(self, tls=None):
        writers = set()

        async def serve(reader, writer):
            self.connections += 1
            self.open_connections += 1
            writers.add(writer)
            try:
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    await self._answer(reader, writer)
            finally:
                self.open_connections -= 1
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            await server.wait_closed()
            await asyncio.sleep(0.001)  # what hung sees that its connection is gone

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append(Request(line, headers, body))
        step = self.script.pop(0) if self.script else 200
        if step == HANG:
            await reader.read()
        elif step == GARBAGE:
            writer.write(b"no HTTP at all\r\n\r\n")
        elif step == ECHO:
            writer.write(head.encode() + body)
        elif step == TRICKLE:
            while not reader.at_eof():
                writer.write(b"HTTP/1.1 200 OK\r\nx: " if not writer.transport.get_write_buffer_size() else b"y")
                await asyncio.sleep(0.002)
        elif step == FLOOD:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
        elif step != CLOSE:
            status, more = step if isinstance(step, tuple) else (step, {})
            lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
            writer.write(f"HTTP/1.1 {status} As told\r\ncontent-length: 2\r\n{lines}\r\nok".encode())
        await writer.drain()


class FakeTime:
    """Time that passes only where somebody waits, and then at once."""

    def __init__(self):
        self.now = 1000.0
        self.waited = []

    def monotonic(self):
        return self.now

    async def pause(self, changed, seconds):
        if seconds is None:
            await changed.wait()
            return
        self.waited.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def until(condition):
    """Lets others run until it is so; pytest's own timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.001)


@asynccontextmanager
async def running(something):
    task = asyncio.create_task(something.run())
    try:
        yield
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
