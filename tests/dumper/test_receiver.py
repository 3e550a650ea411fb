"""The HTTP side alone, with clients that no HTTP library is."""

import asyncio
from datetime import UTC, datetime

from extproc.dumper.holding import Holding
from extproc.dumper.metrics import DumperMetrics
from extproc.dumper.receiver import Receiver

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/",
    "query_string": b"",
    "headers": [(b"content-length", b"1000")],
}


async def test_a_client_that_falls_silent_gives_its_room_back():
    """A machine that lost its power never says that it left."""
    holding = Holding(100_000)
    receiver = Receiver(
        holding,
        DumperMetrics(holding),
        4096,
        keep_bodies=True,
        now=lambda: datetime.now(UTC),
        ready=lambda: True,
        body_s=0.05,
    )
    begun, statuses = asyncio.Event(), []

    async def receive():
        begun.set()
        return await asyncio.get_running_loop().create_future()

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async with asyncio.timeout(30):
        answering = asyncio.create_task(receiver.app()(dict(SCOPE), receive, send))
        await begun.wait()
        assert holding.used_bytes > 1000
        await answering
    assert statuses == [408]
    assert holding.used_bytes == 0
