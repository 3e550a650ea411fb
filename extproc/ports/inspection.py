"""Declare what the stores tell about themselves, for an operator who looks for what is wrong."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class CounterServer:
    """Describe one server of the counters. None: it does not tell, or the question does not apply to it.

    Memory is in bytes; a `max_memory` of 0 is no bound. `clock_ahead_s` is how far its clock is ahead of this
    process's. `scripts_fail` says why a script could not run.
    """

    partitions: tuple[int, ...]
    version: str | None = None
    eviction: str | None = None
    max_memory: int | None = None
    used_memory: int | None = None
    append_only: bool | None = None
    replicas: int | None = None
    cluster_state: str | None = None
    slots_assigned: int | None = None
    scripts_fail: str | None = None
    clock_ahead_s: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class CounterFacts:
    """Describe all servers of the counters, and which partitions' epochs are there, not ready, or on no server."""

    servers: tuple[CounterServer, ...]
    no_epoch: tuple[int, ...] = ()
    not_ready: tuple[int, ...] = ()
    nowhere: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """Describe the server of limits and ledger. None: it does not tell.

    `missing_indexes` names each as `collection (field, field)`. `missing_rights` names actions on the database.
    `members` is the number of the replica set's members that hold data; `arbiters` of those that hold none.
    """

    version: str | None
    transactions: bool
    members: int | None = None
    arbiters: int | None = None
    primary: bool | None = None
    missing_indexes: tuple[str, ...] = ()
    authenticated: bool | None = None
    missing_rights: tuple[str, ...] = ()
    clock_ahead_s: float | None = None
    replicas: int | None = None
    last_heartbeat: datetime | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Inspect the stores. Changes nothing in them. Both raise `StoreError`.

    `counters` gives a server that does not answer a `problem`.
    """

    counters: Callable[[], Awaitable[CounterFacts]]
    database: Callable[[], Awaitable[DatabaseFacts]]
