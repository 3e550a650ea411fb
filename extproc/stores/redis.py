"""Redis: counters shared by all replicas. Every mutation is one Lua script, idempotent by reservation id.

Keys, all parts percent-escaped, one hash tag per tenant so that a Cluster keeps a tenant on one node:

    tw:{<tenant>}:b:<bucket>   hash    used, held
    tw:{<tenant>}:r:<id>       hash    outcome, cost, body
    tw:{<tenant>}:open         zset    open reservations by deadline
    tw:tenants                 zset    tenants that may have open reservations, by when one was last made

Nothing may be evicted (`maxmemory-policy noeviction`): a bucket that is gone counts from zero.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from extproc.core.identity import TenantId
from extproc.core.limits import Bucket
from extproc.core.quota import Admitted, Count, Denied, Reservation, admitted, denied
from extproc.core.settlement import Outcome
from extproc.ports import Closing, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TENANTS: Final = "tw:tenants"
# A bucket outlives its window by so much, that exchanges which were admitted in it can still be settled.
_BUCKET_GRACE_S: Final = 86_400
# An end is remembered for longer than any call is repeated.
_END_MEMORY_S: Final = 600
# An open reservation outlives its deadline by so much, in case nobody is there to expire it in time.
_OPEN_GRACE_S: Final = 86_400
# So long after a Redis came back empty, reservations that were made since may not be found to be overdue.
_ANNOUNCE_EVERY_S: Final = 60.0
# Longer than any reservation lasts.
_FORGET_TENANT_S: Final = 3 * 86_400
_SEEN_MAX: Final = 10_000
_OVERDUE_PER_TENANT: Final = 100
_ENDED: Final = -1  # reserve.lua's verdict on a reservation that is over
# An error code at the start of a message. redis-py takes ERR away, the code of whatever has none of its own.
_CODE = re.compile(r"[A-Z]{3,} ")

_log = logging.getLogger(__name__)
_reservation = msgspec.json.Decoder(Reservation)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """`url` may carry user, password, database and TLS (`rediss://`). Bounds are per process.

    A call on one reservation takes at most `command_timeout_s`, one on many `batch_timeout_s`.
    """

    url: str
    max_connections: int = 64
    connect_timeout_s: float = 1.0
    command_timeout_s: float = 1.0
    batch_timeout_s: float = 5.0


class RedisCounters:
    """Implements `ports.Counters`."""

    def __init__(self, options: RedisOptions) -> None:
        pool = BlockingConnectionPool.from_url(
            options.url,
            max_connections=options.max_connections,
            timeout=options.command_timeout_s,
            socket_connect_timeout=options.connect_timeout_s,
            # Each call is bounded as a whole (`_translated`). redis-py's own timeout makes a task for every
            # command, and before Python 3.12 may swallow a cancellation: a decision would outlast its time.
            socket_timeout=None,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 1),  # one more try on a connection that had died while idle
            retry_on_error=[RedisConnectionError],
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._timeout_s = options.command_timeout_s
        self._batch_timeout_s = options.batch_timeout_s
        self._reserve = self._redis.register_script(_lua("reserve"))
        self._close = self._redis.register_script(_lua("close"))
        self._seen: dict[str, float] = {}  # tenants that reserved here, and when they last did
        self._announced_at = 0.0

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        tenant = quote(reservation.identity.tenant, safe="")
        buckets = reservation.buckets
        admitted_at = reservation.admitted_at.timestamp()
        args: list[str | int | float | bytes] = [
            reservation.id,
            reservation.cost.total,
            reservation.deadline,
            msgspec.json.encode(reservation),
            max(1, int(reservation.deadline - admitted_at)) + _OPEN_GRACE_S,
        ]
        for bucket in buckets:
            args += (bucket.limit.amount, bucket.interval.end + _BUCKET_GRACE_S)
        async with _translated(self._timeout_s):
            await self._announce(tenant, admitted_at)
            reply = await self._reserve(keys=_keys(tenant, reservation), args=args)
        return _decision(reservation, reply)

    async def close(self, closings: Sequence[Closing]) -> list[Outcome]:
        async with _translated(self._batch_timeout_s):
            try:
                replies = await self._close_all(closings)
            except NoScriptError:  # the server was restarted or flushed
                await self._redis.script_load(self._close.script)
                replies = await self._close_all(closings)
        return [Outcome(str(reply, "ascii")) for reply in replies]

    async def overdue(self, now: datetime, at_most: int) -> list[Reservation]:
        async with _translated(self._batch_timeout_s):
            await self._announce_again(now.timestamp())
            await self._redis.zremrangebyscore(TENANTS, "-inf", now.timestamp() - _FORGET_TENANT_S)
            tenants = [str(t, "ascii") for t in cast("list[bytes]", await self._redis.zrange(TENANTS, 0, -1))]
            pipe = self._redis.pipeline(transaction=False)
            for tenant in tenants:
                pipe.zrangebyscore(
                    _open_key(tenant), "-inf", f"({now.timestamp()}", start=0, num=_OVERDUE_PER_TENANT
                )
            due = await _replies(pipe)
            ids = [(t, str(i, "ascii")) for t, found in zip(tenants, due, strict=True) for i in found]
            return await self._open_reservations(ids[:at_most])

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        escaped = quote(tenant, safe="")
        async with _translated(self._timeout_s):
            pipe = self._redis.pipeline(transaction=False)
            for bucket in buckets:
                pipe.hmget(_bucket_key(escaped, bucket), "used", "held")
            rows = await _replies(pipe)
        return [Count(int(used or 0), int(held or 0)) for used, held in rows]

    async def ping(self) -> None:
        async with _translated(self._timeout_s):
            await self._redis.ping()

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _announce(self, tenant: str, now: float) -> None:
        """Tells whoever expires reservations of this tenant; once, so that a request costs one round trip."""
        if tenant not in self._seen:
            await self._redis.zadd(TENANTS, {tenant: now})
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
        self._seen[tenant] = now

    async def _announce_again(self, now: float) -> None:
        """Announces all that reserved here, beside the requests' path: Redis may have come back empty."""
        self._seen = {t: at for t, at in self._seen.items() if at > now - _FORGET_TENANT_S}
        if self._seen and now - self._announced_at >= _ANNOUNCE_EVERY_S:
            await self._redis.zadd(TENANTS, cast("dict[Any, Any]", self._seen), gt=True)
            self._announced_at = now

    async def _close_all(self, closings: Sequence[Closing]) -> list[bytes]:
        pipe = self._redis.pipeline(transaction=False)
        for closing in closings:
            reservation = closing.reservation
            keys = _keys(quote(reservation.identity.tenant, safe=""), reservation)
            pipe.evalsha(
                self._close.sha,
                len(keys),
                *keys,
                reservation.id,
                closing.outcome,
                closing.charge,
                _END_MEMORY_S,
            )
        return await _replies(pipe)

    async def _open_reservations(self, ids: Sequence[tuple[str, str]]) -> list[Reservation]:
        pipe = self._redis.pipeline(transaction=False)
        for tenant, reservation_id in ids:
            pipe.hget(_reservation_key(tenant, reservation_id), "body")
        found: list[Reservation] = []
        gone = self._redis.pipeline(transaction=False)
        for (tenant, reservation_id), body in zip(ids, await _replies(pipe), strict=True):
            reservation = _read(body) if body is not None else None
            if reservation is not None:
                found.append(reservation)
                continue
            # Ended in the meantime, forgotten, or not to be read by anybody: it must not be found for ever.
            gone.zrem(_open_key(tenant), reservation_id)
            if body is not None:
                _log.error("reservation can't be read, its tokens stay held", extra={"id": reservation_id})
        await _replies(gone)
        return found


def _decision(reservation: Reservation, reply: Sequence[int]) -> Admitted | Denied:
    verdict, *numbers = reply
    if verdict == _ENDED:
        raise StoreError("the reservation was ended before it was made", transient=False)
    counts = [Count(used, held) for used, held in zip(numbers[::2], numbers[1::2], strict=True)]
    return (admitted if verdict else denied)(reservation, counts)


def _keys(tenant: str, reservation: Reservation) -> list[str]:
    keys = [_reservation_key(tenant, reservation.id), _open_key(tenant)]
    keys += [_bucket_key(tenant, bucket) for bucket in reservation.buckets]
    return keys


def _reservation_key(tenant: str, reservation_id: str) -> str:
    return f"tw:{{{tenant}}}:r:{reservation_id}"


def _open_key(tenant: str) -> str:
    return f"tw:{{{tenant}}}:open"


def _bucket_key(tenant: str, bucket: Bucket) -> str:
    return f"tw:{{{tenant}}}:b:{bucket.key}"


def _lua(name: str) -> str:
    return (files("extproc.stores") / "lua" / f"{name}.lua").read_text()


def _read(body: bytes) -> Reservation | None:
    try:
        return _reservation.decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return None


async def _replies(pipe: Pipeline) -> list[Any]:
    """A pipeline's replies. Its first error is raised as Redis sent it: redis-py's own way hides the code."""
    replies: list[Any] = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


@asynccontextmanager
async def _translated(timeout_s: float) -> "AsyncIterator[None]":
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (RedisConnectionError, RedisTimeoutError, OSError, asyncio.IncompleteReadError) as error:
        raise StoreError(f"Redis can't be reached: {_brief(error)}", transient=True) from error
    except ResponseError as error:
        raise StoreError(f"Redis refused: {_brief(error)}", transient=_passes(error)) from error
    except RedisError as error:
        raise StoreError(f"Redis: {_brief(error)}", transient=True) from error


def _passes(error: ResponseError) -> bool:
    """OOM, READONLY, NOPERM and the like pass, or somebody mends them; a call that is wrong stays so."""
    if type(error) is not ResponseError:
        return True
    text = str(error)
    return _CODE.match(text) is not None and not text.startswith(("ERR ", "WRONGTYPE "))


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


__all__ = ["TENANTS", "RedisCounters", "RedisOptions"]
