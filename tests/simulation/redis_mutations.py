"""Deliberate breaks of the Redis adapter and of its scripts, each of which the simulation has to find."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

from extproc.stores.redis import server
from extproc.stores.redis.epochs import RedisEpochs
from extproc.stores.redis.journal import RedisJournal

from . import nemesis, redis_machine
from .network import Weather
from .pairs import killed, mongo_away, pairs_of, redis_flushed, restarts_stale, restarts_whole

# script -> what stands in it, and what stands there instead.
SCRIPTS = {
    "a script takes any epoch": ("epoch", "if epoch[1] ~= id or epoch[2] ~= RUN then", "if false then"),
    "a script does not look for the process": ("epoch", " or epoch[2] ~= RUN", ""),
    "counters are not rebuilt before they count": ("epoch", "if ready and epoch[3] ~= 'ready' then", "if false then"),
    "an epoch goes on in another process": ("begin", "if epoch[1] and epoch[2] == RUN then", "if epoch[1] then"),
    "begin forgets the epoch before": ("begin", "'previous', previous)", "'previous', '')"),
    "reserve ignores what is held": ("reserve", "tonumber(count[1] or 0), tonumber(count[2] or 0)", "tonumber(count[1] or 0), 0"),
    "reserve ignores what is used": ("reserve", "tonumber(count[1] or 0), tonumber(count[2] or 0)", "0, tonumber(count[2] or 0)"),
    "reserve holds again when it is repeated": ("reserve", "if known[1] then\n  reply[2]", "if false then\n  reply[2]"),
    "reserve opens again what has ended": ("reserve", "then return {-1} end", "then known = {} end"),
    "reserve leaves its hold out of the list": ("reserve", "call('ZADD', KEYS[3], wants[3], ARGV[3] or string.sub(KEYS[2], start + #epoch + 3))", ""),
    "close charges again": ("close", "if known[1] and known[1] ~= 'open' then", "if known[1] and known[1] ~= 'open' and known[1] ~= outcome then"),
    "close gives nothing back": ("close", "held = held - math.min(held, mine)", ""),
    "close puts nothing into the journal": ("close", "if says[4] == 1 then", "if says[4] == 1 then elseif false then"),
    "close does not remember the end": ("close", "call('HSET', unpack(ended))", ""),
    "close leaves a local one uncharged": ("close", "if known[1] or is_local then", "if known[1] then"),
    "renew does not hold more": ("renew", "if more > 0 and", "if false and"),
    "install sets nothing": ("install", "redis.call('HSET', KEYS[i], 'used', ARGV[i * 2 - 2])", ""),
    "a bucket is never forgotten": ("reserve", "if new[i] then call('EXPIREAT', KEYS[i + 4], wants[3 + i * 5]) end", ""),
    "written removes nothing": ("written", "then redis.call('XDEL'", "and false then redis.call('XDEL'"),
}  # fmt: skip


async def _first_page(self, partition, epoch):
    async def call_all(calls):
        replies = await self.call_all(calls)
        if calls and calls[0].args[:1] == ("ZSCAN",):
            return [(b"0", replies[0][1])]
        return replies

    return await _open_in(SimpleNamespace(call_all=call_all), partition, epoch)


async def _nothing_journalled(self, partition):
    return []


_open_in = RedisEpochs._open_in

ADAPTER = {
    "a walk over what is open ends after a page": (RedisEpochs, "_open_in", _first_page),
    "the journal is not read": (RedisJournal, "journalled", _nothing_journalled),
    "all processes have one id": (server, "_run_id", lambda info: "0"),
    "a reserve is sent again": (server, "_SENT_ONCE", ""),
}

NAMES = (*SCRIPTS, *ADAPTER)
# Some seeds that find each of them: tried first. When calls come in another order, other seeds do.
FOUND_BY = {
    "a script takes any epoch": (43,),
    "begin forgets the epoch before": (4, 5),
    "the journal is not read": (17, 20),
    "close puts nothing into the journal": (11, 12),
    "a script does not look for the process": (10, 11),
    "a reserve is sent again": (5, 7),
}
# These show in other worlds than the usual ones.
IN = {
    "begin forgets the epoch before": pairs_of(killed, restarts_whole, far_s=0.3),
    "a walk over what is open ends after a page": pairs_of(killed, restarts_whole, far_s=0.3),
    "the journal is not read": pairs_of(killed, restarts_whole, mongo_away, far_s=3.0),
    "close puts nothing into the journal": pairs_of(mongo_away, killed, far_s=1.0),
    "a script does not look for the process": pairs_of(restarts_stale, mongo_away, far_s=1.0),
    "all processes have one id": pairs_of(restarts_stale, mongo_away, far_s=1.0),
    "a reserve is sent again": pairs_of(redis_flushed, restarts_whole, weathers=(Weather(late=200),)),
}


# What is found out by one seed in hundreds: in these worlds it is aimed at the moments that matter.
AIMED = {
    "a script takes any epoch": (("reserve", "close"), (nemesis.stands_still,)),
}


@contextmanager
def mutated(name):
    """The adapter with one of them, for as long as the context lasts."""
    with nemesis.aimed(*AIMED.get(name, ())):
        if name in ADAPTER:
            broken = mock.patch.object(*ADAPTER[name])
        else:
            script, old, new = SCRIPTS[name]
            broken = mock.patch.dict(redis_machine.REPLACED, {script: [(old, new)]})
        with broken:
            yield
