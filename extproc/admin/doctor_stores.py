"""Judge what the stores tell about themselves."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from extproc.admin.findings import Finding, error, note, ok, warning
from extproc.ports.inspection import CounterFacts, CounterServer, DatabaseFacts
from extproc.ports.journal import Backlog

_OLDEST_REDIS: Final = (7, 0)
_ALL_SLOTS: Final = 16_384
_NEARLY_FULL: Final = 0.8
# A decision takes milliseconds; windows and leases are told by the stores' clocks to the second.
_SKEW_S: Final = 1.0
_MUCH_SKEW_S: Final = 30.0
_ALIVE_S: Final = 60.0
# Usually an entry waits for less than a second.
_OLD_ENTRY_S: Final = 60.0


def judged_counters(facts: CounterFacts) -> Iterator[Finding]:
    """Judge the servers of the counters, and the epochs."""
    for server in facts.servers:
        yield from _judged_server(server)
    if facts.nowhere:
        yield error(
            "redis",
            f"partitions {_list(facts.nowhere)} are on no server",
            "the tenants of these partitions get 503",
            "bring the Cluster's nodes back, or assign their slots (redis-cli --cluster fix)",
        )
    if facts.not_ready:
        yield warning(
            "epochs",
            f"the counters of partitions {_list(facts.not_ready)} are being rebuilt",
            "their tenants get 503, or are admitted locally, until a replica has rebuilt them from the ledger",
            "wait some seconds; if it stays so, look for 'rebuild' in the replicas' logs: MongoDB has to answer",
        )
    if facts.no_epoch:
        yield note(
            "epochs",
            f"partitions {_list(facts.no_epoch)} have no counters yet",
            "no replica has served from this Redis since it was empty",
            "start a replica; if one runs, it uses another redis.url",
        )
    if not (facts.not_ready or facts.no_epoch or facts.nowhere):
        yield ok("epochs", "the counters of all partitions are ready")


def _judged_server(server: CounterServer) -> Iterator[Finding]:
    part = "redis"
    if server.problem is not None:
        yield error(
            part,
            f"the server of partitions {_list(server.partitions)} does not answer: {server.problem}",
            "nothing is admitted: 503, or a local share with on_store_failure: allow",
            "check redis.url, the network, and the login",
        )
        return
    yield _version(server)
    if server.eviction not in (None, "noeviction"):
        yield error(
            part,
            f"maxmemory-policy is {server.eviction}",
            "Redis may evict counters and entries: limits are exceeded, and usage is lost",
            "CONFIG SET maxmemory-policy noeviction, and set it in the server's configuration",
        )
    elif server.eviction is not None:
        yield ok(part, "maxmemory-policy is noeviction")
    if server.scripts_fail is not None:
        yield error(
            part,
            f"a Lua script can't run: {server.scripts_fail}",
            "every decision is an atomic script: nothing is admitted",
            "allow EVALSHA and SCRIPT LOAD to the user (docs/operators.md lists all commands)",
        )
    if server.append_only is False and not server.replicas:
        yield warning(
            part,
            "there is neither an append-only file nor a replica",
            "if Redis ends, what waits for the ledger is lost (normally less than a second of it)",
            "set appendonly yes, or add a replica",
        )
    yield from _memory(server)
    if server.cluster_state is not None:
        whole = server.cluster_state == "ok" and server.slots_assigned == _ALL_SLOTS
        yield (
            ok(part, "all slots of the Cluster are served")
            if whole
            else error(
                part,
                f"the Cluster's state is {server.cluster_state}, {server.slots_assigned} of {_ALL_SLOTS} slots",
                "tenants whose partition has no slot get 503",
                "redis-cli --cluster check, then --cluster fix",
            )
        )
    yield from _clock(part, server.clock_ahead_s)


def _version(server: CounterServer) -> Finding:
    if server.version is None:
        return note("redis", "the server does not tell its version", "", "Redis 7.0 or later is needed")
    numbers = tuple(int(each) for each in server.version.split(".")[:2] if each.isdecimal())
    if numbers < _OLDEST_REDIS:
        return error(
            "redis",
            f"the version is {server.version}",
            "the scripts need Redis 7.0 or later",
            "update the server to Redis 7.0 or later, or to Valkey",
        )
    return ok("redis", f"answers; version {server.version}")


def _memory(server: CounterServer) -> Iterator[Finding]:
    used, most = server.used_memory, server.max_memory
    if used is None or not most:
        return
    if used > most * _NEARLY_FULL:
        yield warning(
            "redis",
            f"{used * 100 // most} % of maxmemory is used ({used >> 20} of {most >> 20} MiB)",
            "when it is full, nothing is admitted any more",
            "raise maxmemory; docs/scaling.md says what takes how much",
        )


def judged_database(facts: DatabaseFacts, now: datetime) -> Iterator[Finding]:
    """Judge the server of limits and ledger."""
    part = "mongodb"
    yield ok(part, f"answers; version {facts.version or 'not told'}")
    if not facts.transactions:
        yield warning(
            part,
            "it is a standalone server, without transactions",
            "daily usage is summed again after each write, and changed limits are polled; a rebuild takes longer",
            "make it a replica set, of one member at least",
        )
    elif facts.members == 1:
        yield note(
            part,
            "the replica set has one member that holds data",
            "if it is gone, limits are kept in memory, and entries wait in Redis",
            "add members for production",
        )
    if facts.arbiters:
        yield warning(
            part,
            f"the replica set has {facts.arbiters} arbiter(s)",
            "a write is acknowledged by a majority of members that hold data: with one of them away, nothing is "
            "written",
            "replace arbiters by members that hold data",
        )
    if facts.missing_indexes:
        yield error(
            part,
            f"indexes are missing: {'; '.join(facts.missing_indexes)}",
            "reports and look-ups read whole collections; without a unique one, daily usage may count twice",
            "start a replica of this version with the right to create indexes, and look at its log",
        )
    else:
        yield ok(part, "all indexes are there")
    if facts.missing_rights:
        yield error(
            part,
            f"the user lacks the rights {', '.join(facts.missing_rights)}",
            "entries wait in Redis, and are not written",
            "give the user the role readWrite on the database",
        )
    if facts.authenticated is False:
        yield note(
            part, "nobody has to log in", "whoever reaches the port can change limits", "enable authorization"
        )
    alive = facts.last_heartbeat is not None and (now - facts.last_heartbeat).total_seconds() < _ALIVE_S
    if alive:
        yield ok(
            "replicas", f"{facts.replicas} replica(s) of Tokenweir noted in the last day; the last one just now"
        )
    else:
        yield warning(
            "replicas",
            "no replica of Tokenweir runs on these stores",
            "nothing is metered by them: Envoy answers 503",
            "start one (tokenweir serve), or correct its mongo.url and mongo.database",
        )
    yield from _clock(part, facts.clock_ahead_s)


def judged_backlog(backlog: Backlog) -> Iterator[Finding]:
    """Judge the entries that wait for the ledger."""
    if backlog.aside:
        yield error(
            "journal",
            f"{backlog.aside} entries were refused by MongoDB and set aside",
            "they count in limits, but are missing in the ledger and in daily usage",
            "tokenweir ledger aside shows why; after the cause is fixed: tokenweir ledger aside --write",
        )
    if backlog.oldest_s > _OLD_ENTRY_S:
        yield warning(
            "journal",
            f"{backlog.waiting} entries wait for the ledger, the oldest for {backlog.oldest_s:.0f} s",
            "reports lag behind; beyond redis.max_waiting, tenants get 503",
            "see why MongoDB takes no writes: its state, its rights, the replicas' logs",
        )
    elif not backlog.aside:
        yield ok("journal", f"{backlog.waiting} entries wait for the ledger, none for long")


def _clock(part: str, ahead_s: float | None) -> Iterator[Finding]:
    if ahead_s is None:
        return
    off = abs(ahead_s)
    way = "ahead of" if ahead_s > 0 else "behind"
    if off > _SKEW_S:
        make = error if off > _MUCH_SKEW_S else warning
        yield make(
            f"{part} clock",
            f"its clock is {off:.1f} s {way} this machine's",
            "windows begin and end at other instants than users expect; leases and tokens may end too early",
            "synchronize all clocks (NTP, chrony)",
        )
    else:
        yield ok(f"{part} clock", f"within {_SKEW_S:g} s of this machine's clock")


def _list(partitions: tuple[int, ...]) -> str:
    return ", ".join(map(str, partitions))
