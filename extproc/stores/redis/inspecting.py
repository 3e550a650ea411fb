"""Ask the servers of the counters about themselves. Writes nothing."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from extproc.core.quota.partitions import PARTITIONS
from extproc.ports.base import StoreError
from extproc.ports.inspection import CounterFacts, CounterServer, DatabaseFacts, Inspection
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import epoch_key
from extproc.stores.redis.server import command

# What every script of ours needs of the server: Lua, and its library for MessagePack.
_SCRIPT: Final = "return cmsgpack.unpack(cmsgpack.pack(1))"


def inspection_of(counters: object, database: Callable[[], Awaitable[DatabaseFacts]]) -> Inspection | None:
    """Return what inspects these counters and the database; None for counters in memory."""
    return Inspection(partial(inspected, counters), database) if isinstance(counters, RedisClient) else None


async def inspected(client: RedisClient) -> CounterFacts:
    """Return the facts of all servers. Raise `StoreError` if none is known."""
    by_server = await client.by_server(range(PARTITIONS))
    if not by_server:
        await client.call_all([command(0, "PING")])  # raises what keeps us from it
    found = {partition for partitions in by_server for partition in partitions}
    servers = tuple([await _server(client, partitions) for partitions in by_server])
    asked = sorted(found)
    epochs = await client.try_all([command(p, "HMGET", epoch_key(p), "id", "state") for p in asked])
    states = {p: reply for p, reply in zip(asked, epochs, strict=True) if isinstance(reply, list)}
    return CounterFacts(
        servers,
        no_epoch=tuple(p for p, (epoch, _) in states.items() if epoch is None),
        not_ready=tuple(p for p, (epoch, state) in states.items() if epoch is not None and state != b"ready"),
        nowhere=tuple(p for p in range(PARTITIONS) if p not in found),
    )


async def _server(client: RedisClient, partitions: list[int]) -> CounterServer:
    first = partitions[0]
    sent = time.time()
    told = await client.try_all(
        [
            command(first, "TIME"),
            command(first, "INFO"),
            command(first, "SCRIPT", "LOAD", _SCRIPT),
            command(first, "CLUSTER", "INFO"),
        ]
    )
    clock, info, script, cluster = told
    if not isinstance(script, StoreError):
        (script,) = await client.try_all([command(first, "EVALSHA", script, 0)])
    if isinstance(info, StoreError) and isinstance(clock, StoreError):
        return CounterServer(tuple(partitions), problem=str(info))
    facts = _fields(info)
    clustered = _fields(cluster) if str(facts.get("cluster_enabled", "0")) == "1" else {}
    # Asked first of a batch: it was read between sending and now, and most likely soon after sending.
    ahead = None if isinstance(clock, StoreError) else clock[0] + clock[1] / 1e6 - sent
    return CounterServer(
        partitions=tuple(partitions),
        version=_text(facts.get("redis_version")),
        eviction=_text(facts.get("maxmemory_policy")),
        max_memory=_number(facts.get("maxmemory")),
        used_memory=_number(facts.get("used_memory")),
        append_only=_flag(facts.get("aof_enabled")),
        replicas=_number(facts.get("connected_slaves")),
        cluster_state=_text(clustered.get("cluster_state")),
        slots_assigned=_number(clustered.get("cluster_slots_assigned")),
        scripts_fail=str(script) if isinstance(script, StoreError) else None,
        clock_ahead_s=ahead,
    )


def _fields(reply: Any) -> dict[str, Any]:
    """Return the fields of an INFO, which may come as text."""
    if isinstance(reply, dict):
        return reply
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _text(value: object) -> str | None:
    return str(value) if value is not None else None


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _flag(value: Any) -> bool | None:
    number = _number(value)
    return bool(number) if number is not None else None
