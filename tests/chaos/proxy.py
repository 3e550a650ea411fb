"""A TCP proxy between the replicas and a store, which does what networks do at their worst.

It runs in the test's own loop. It knows no protocol; what is to be lost on its way is recognised by its bytes.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass, field

from extproc.local.ports import HOST

_CHUNK = 1 << 16
# Reservation ids, as they stand in requests to either store: what tells a first sight from a repetition.
_ID = re.compile(rb"[0-9a-f]{32}")


@dataclass
class Loss:
    """Loses the first answer to each request that `marker` is found in, after the store has carried it out."""

    marker: re.Pattern[bytes]
    seen: set[bytes] = field(default_factory=set)
    lost: int = 0

    def takes(self, request):
        """Whether the answer to a request is to be lost for this piece of it: it has ids that no lost one had."""
        fresh = set(_ID.findall(request)) - self.seen
        self.seen |= fresh
        return bool(fresh)


@dataclass
class Faults:
    """What happens on the wire now; may be changed at any moment."""

    delay_s: float = 0.0
    """Each piece of an answer comes so much later."""
    silent: bool = False
    """Connections are taken, and nothing passes in either direction until this ends."""
    refuse: bool = False
    """Connections are closed as they come, open ones at their next piece."""
    cut: float = 0.0
    """The part of answers that are cut short, after some random bytes, and their connection reset."""
    loss: Loss | None = None


@dataclass
class _Asked:
    """The request on a connection, of which some pieces may still come."""

    marked: bool = False
    losing: bool = False


class _CutError(Exception):
    """This connection ends here."""


class Proxy:
    """Listens on `port` and passes on to `target`, another port on this host."""

    def __init__(self, target, rng):
        self.target = target
        self.faults = Faults()
        self.port = 0
        self.resets = 0
        self._rng = rng
        self._tasks = set()
        self._moving = asyncio.Event()
        self._moving.set()

    async def start(self):
        self._server = await asyncio.start_server(self._connection, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def heal(self):
        self.faults = Faults()
        self._moving.set()

    @contextlib.contextmanager
    def suffering(self, **faults):
        """These faults, until the way out."""
        self.faults = Faults(**faults)
        if self.faults.silent:
            self._moving.clear()
        try:
            yield self.faults
        finally:
            self.heal()

    async def _connection(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._moving.wait()
            if self.faults.refuse:
                return
            there_reader, there_writer = await asyncio.open_connection(HOST, self.target)
            writers.append(there_writer)
            asked = _Asked()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, there_writer, asked))
                both.create_task(self._answers(there_reader, writer, asked))
        except* (OSError, _CutError):
            pass
        finally:
            for each in writers:
                each.transport.abort()
            self._tasks.discard(task)

    async def _requests(self, reader, writer, asked):
        while data := await reader.read(_CHUNK):
            await self._may_pass()
            loss = self.faults.loss
            if loss is not None:
                asked.marked = asked.marked or loss.marker.search(data) is not None
                asked.losing |= asked.marked and loss.takes(data)
            writer.write(data)
            await writer.drain()
        raise _CutError

    async def _answers(self, reader, writer, asked):
        while data := await reader.read(_CHUNK):
            if asked.losing and self.faults.loss is not None:
                self.faults.loss.lost += 1
                raise _CutError
            asked.marked = False
            if self.faults.delay_s:
                await asyncio.sleep(self.faults.delay_s)
            await self._may_pass()
            cut = self._rng.random() < self.faults.cut
            writer.write(data[: self._rng.randrange(len(data))] if cut else data)
            await writer.drain()
            if cut:
                self.resets += 1
                raise _CutError
        raise _CutError

    async def _may_pass(self):
        await self._moving.wait()
        if self.faults.refuse:
            raise _CutError
