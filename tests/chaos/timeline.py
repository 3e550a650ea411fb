"""Note the time of each fault of a run, and the times in which a store gave the test no answer."""

import asyncio
import math
import struct
import time
from collections import defaultdict
from dataclasses import dataclass, field

import bson

from extproc.local.ports import HOST

ASK_EVERY_S = 0.02
ANSWERS_WITHIN_S = 0.1
_REPLY_HEAD = 16


@dataclass
class Window:
    """Bound a time of absence, in seconds of the monotonic clock. `end` is infinite until it is over."""

    begin: float
    end: float = math.inf


@dataclass
class Timeline:
    """Hold the faults of a run as they happened, and the times in which a store did not answer."""

    begun: float = 0.0
    """Marks the first fault."""
    dead: dict[int, list[Window]] = field(default_factory=lambda: defaultdict(list))
    paused: dict[int, list[Window]] = field(default_factory=lambda: defaultdict(list))
    """Hold windows by the number of the replica."""
    lost: list[float] = field(default_factory=list)
    """Holds the moments at which Redis lost its memory."""
    failed_over: list[float] = field(default_factory=list)
    """Holds the moments at which the master died: writes that its replica did not have yet are lost."""
    restarted: list[float] = field(default_factory=list)
    """Holds the moments at which Redis died and kept its memory."""
    faults: dict[str, list[Window]] = field(default_factory=lambda: defaultdict(list))
    """Holds windows by store ("redis", "mongo"): from the fault until the store was started or continued."""
    redis_away: list[Window] = field(default_factory=list)
    mongo_away: list[Window] = field(default_factory=list)

    @property
    def new_epochs(self):
        """Return the moments from which on the counters had to be rebuilt."""
        return sorted([*self.lost, *self.failed_over, *self.restarted])

    def suffers(self, store):
        """Tell whether a store has a fault now, or had one a moment ago."""
        return any(window.end > time.monotonic() - 2 * ANSWERS_WITHIN_S for window in self.faults[store])

    def kills(self, replica):
        """Return the moments at which a replica was killed."""
        return [window.begin for window in self.dead.get(replica, [])]

    def pauses(self, replica):
        """Return the moments from which on a replica stood still."""
        return [window.begin for window in self.paused.get(replica, [])]

    def stands_still(self, replica):
        """Tell whether a replica stands still now."""
        return any(window.end == math.inf for window in self.paused.get(replica, []))

    def not_running(self, replica):
        """Return the times in which a replica was dead, or stood still."""
        return [*self.dead.get(replica, []), *self.paused.get(replica, [])]


class StoreWatch:
    """Ask Redis and MongoDB directly, every 20 ms, and note in a timeline when a fault keeps them from answering.

    On a busy machine an answer may be late without a fault: such a delay excuses no outage.
    """

    def __init__(self, plant, timeline):
        self._plant = plant
        self._timeline = timeline
        self.over = False

    async def run(self):
        """Ask until `over` is set."""
        redis, mongo = self._plant.redis, self._plant.mongo
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow("redis", _RedisLine(redis), self._timeline.redis_away))
            both.create_task(self._follow("mongo", _MongoLine(mongo), self._timeline.mongo_away))

    async def _follow(self, store, line, away):
        answered_at, is_away = time.monotonic(), False
        while not self.over:
            try:
                async with asyncio.timeout(ANSWERS_WITHIN_S):
                    answers = await line.answers()
            except (OSError, EOFError, TimeoutError):
                line.close()
                answers = False
            now = time.monotonic()
            if answers and is_away:
                away[-1].end = now
                is_away = False
            elif not answers and not is_away and self._timeline.suffers(store):
                away.append(Window(answered_at))
                is_away = True
            answered_at = now if answers else answered_at
            await asyncio.sleep(ASK_EVERY_S)
        line.close()


class _Line:
    """Keep one connection; open another one after a failure, or if the server has moved."""

    def __init__(self, server):
        self._server = server
        self._port = 0
        self._reader = self._writer = None

    def close(self):
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _open(self):
        if self._port != self._server.port:
            self.close()
        if self._writer is None:
            self._port = self._server.port
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)


class _RedisLine(_Line):
    """Ask Redis. It answers if it has loaded its data, is a master, and its Sentinel, if it has one, names it."""

    async def answers(self):
        await self._open()
        self._writer.write(b"PING\r\nROLE\r\n")
        if await self._reader.readline() != b"+PONG\r\n":
            self.close()
            return False
        size, (_, role) = await self._reader.readline(), [await self._reader.readline() for _ in range(2)]
        assert size.startswith(b"*"), size
        self.close()  # the rest of the answer is of no use
        return role == b"master\r\n" and await self._server.is_found()


class _MongoLine(_Line):
    """Ask MongoDB. It answers if it has read a document."""

    async def answers(self):
        await self._open()
        question = bson.encode({"find": "tenantLimitation", "limit": 1, "singleBatch": True, "$db": "modelToken"})
        body = struct.pack("<IB", 0, 0) + question
        self._writer.write(struct.pack("<iiii", _REPLY_HEAD + len(body), 1, 0, 2013) + body)
        (length,) = struct.unpack("<i", (head := await self._reader.readexactly(_REPLY_HEAD))[:4])
        reply = await self._reader.readexactly(length - len(head))
        return bson.decode(reply[5:])["ok"] == 1
