"""A Redis server as its adapter sees it: real scripts in Lua, over connections that break as a seed has it."""

import re
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from types import SimpleNamespace
from unittest import mock
from urllib.parse import unquote

from redis.utils import get_lib_version

from extproc.stores.redis import RedisCounters, RedisOptions, counters, epochs, journal, server
from extproc.stores.redis.keys import aside_key, epoch_key, ledger_key
from extproc.stores.redis.reservations import forgotten_at
from tests.small_redis.server import Process, Session
from tests.small_redis.values import Data, Hash, Stream

from .oracle import BrokenError
from .servers import FEW, Machine, few_partitions
from .sockets import Named, Sockets

_BUCKET = re.compile(rb"tw:\{(\d+)\}:([0-9a-f]{16}):b:([^:]*):(.*)", re.DOTALL)
_EPOCHS = re.compile(rb"tw:\{\d+\}:[0-9a-f]{16}:")
_read = cache(server._lua)
_version = get_lib_version()
# What stands in a script in place of what: deliberate breaks.
REPLACED = {}


def _script(name):
    text = _read(name)
    for old, new in REPLACED.get(name, ()):
        if old not in text:
            raise LookupError(f"{name}.lua has no {old!r}")
        text = text.replace(old, new)
    return text


@contextmanager
def _patched():
    """Patch what is random in the adapter, and what it reads from disk each time."""
    numbers = count(1)
    ids = SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")
    with ExitStack() as stack:
        stack.enter_context(few_partitions(counters, epochs, journal))
        stack.enter_context(mock.patch.object(epochs, "secrets", ids))
        stack.enter_context(mock.patch.object(server, "_lua", _script))
        stack.enter_context(mock.patch("redis.utils.get_lib_version", return_value=_version))
        yield


class RedisMachine(Machine):
    """A process with its keys. Only its scripts are atomic; a call of a port may be many commands."""

    replay = " --redis"

    def __init__(self, world):
        super().__init__(world)
        self._run_ids = count(1)
        self._process = None
        self._data = Data(self.now)
        self._begin("nothing")
        self._sockets = Sockets(world.redis, lambda: Session(self._process))
        world.loop.network = self._connect

    @staticmethod
    def patched():
        return _patched()

    def client(self, caller):
        return Named(RedisCounters(RedisOptions("redis://redis:6379/0")))

    async def bury(self, client):
        await client.aclose()

    async def _connect(self, protocol, process):
        return await self._sockets.connect(protocol, process.name if process is not None else "nobody")

    # ------------------------------------------------ losses

    def _lose(self):
        self._data.clear()

    def _copy(self):
        return self._data.copy()

    def _take(self, state):
        self._data = state.copy()

    def _begin(self, how):
        self._process = Process(self._data, f"{next(self._run_ids):040x}")
        if self.world.trace is not None:
            run_id = self._process.run_id
            self._process.names = {server.script_text(each, run_id).encode(): each for each in server._SCRIPTS}

    # ------------------------------------------------ what is there in the end

    def check(self):
        """Look whether what belongs to an epoch is forgotten some time."""
        for key in self._data.names():
            if _EPOCHS.match(key) and self._data.until(key) is None:
                raise BrokenError(f"{key.decode()} is never forgotten")

    def waiting(self):
        return sum(len(self._data.get(ledger_key(p).encode(), Stream)) for p in range(FEW))

    def aside(self):
        return sum(len(self._data.get(aside_key(p).encode(), Stream)) for p in range(FEW))

    def unready(self):
        for partition in range(FEW):
            epoch = self._epoch(partition)
            if epoch.get(b"run") != self._process.run_id.encode():
                return "nobody has seen that the counters are gone"
            if epoch[b"state"] != b"ready":
                return f"partition {partition} is not ready"
        return None

    def held(self):
        return self._sums(b"held")

    def used(self):
        return self._sums(b"used")

    def lasting(self):
        end_ms = 1000 * forgotten_at(int(self.now()))
        return {name for name, key in self._buckets() if (self._data.until(key) or 0) > end_ms}

    def _epoch(self, partition):
        return self._data.get(epoch_key(partition).encode(), Hash)

    def _sums(self, field):
        sums = Counter()
        for name, key in self._buckets():
            sums[name] += int(self._data.get(key, Hash).get(field, 0))
        return sums

    def _buckets(self):
        """The buckets of the current epochs, each by tenant and name, with its key."""
        current = {p: self._epoch(p).get(b"id") for p in range(FEW)}
        for key in self._data.names():
            if (found := _BUCKET.fullmatch(key)) and current.get(int(found[1])) == found[2]:
                yield (unquote(found[3].decode()), found[4].decode()), key
