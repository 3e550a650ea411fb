"""Redis servers that a test starts, kills and starts again, on their data or without it."""

import asyncio
import os
import shutil
import signal
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from extproc.local import parts
from extproc.local.ports import HOST
from extproc.local.process import Command, start


def program(name):
    """The server's program; MissingPartError where it is not there."""
    if name == "valkey":
        return str(parts.valkey_binary())
    found = shutil.which("redis-server")
    if found is None:
        raise parts.MissingPartError("redis-server is not on the PATH")
    return found


class Restartable:
    """A server on a port and a folder of its own."""

    def __init__(self, name, folder, port, *arguments):
        self.url = f"redis://{HOST}:{port}/0"
        self.port = port
        argv = (program(name), "--bind", HOST, "--port", str(port), "--save", "", *arguments)
        self._command = Command(f"{name}-{port}", argv, folder)
        self._child = None

    async def start(self):
        self._child = await start(self._command, self._answers)

    async def kill(self):
        os.killpg(self._child.pid, signal.SIGKILL)
        await self._child.wait()

    async def restart(self):
        await self.kill()
        await self.start()

    def stop(self):
        """It hangs."""
        os.kill(self._child.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self._child.pid, signal.SIGCONT)

    async def stopped(self):
        if self._child is not None and self._child.returncode is None:
            await self.kill()

    async def _answers(self):
        try:
            async with self.plain() as client:
                return await client.ping()
        except RedisError:
            return False

    @asynccontextmanager
    async def plain(self):
        client = Redis.from_url(self.url, decode_responses=True)
        try:
            yield client
        finally:
            await client.aclose()


@asynccontextmanager
async def running(*servers):
    """All of them, until the end."""
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.stopped()


async def until(condition, deadline_s=60.0):
    """Waits for what an outer process does."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def not_connected(counters):
    """Return whether Redis' client has noticed that its connections are gone."""
    server = counters._topology._server
    return not any(lane.connection for lane in server._lanes)
