"""Redis: counters shared by all replicas. Every mutation is one Lua script, idempotent by reservation id.

Keys, all parts percent-escaped, one hash tag per tenant so that a Cluster keeps a tenant on one node:

    tw:{<tenant>}:b:<bucket>   hash    used, held, alerted
    tw:{<tenant>}:r:<id>       hash    outcome, output, body, and what each bucket holds: 1, 2, ...
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
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from extproc.core.identity import TenantId
from extproc.core.limits import Bucket, Mode
from extproc.core.quota import Admitted, Count, Denied, Reservation, admitted, denied
from extproc.core.settlement import Outcome
from extproc.ports import Closed, Closing, Crossed, StoreError

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
_Argument = str | int | float | bytes
_Call = tuple[Reservation, Sequence[_Argument]]  # and what a script has to know beside the keys
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
        self._renew = self._redis.register_script(_lua("renew"))
        self._close = self._redis.register_script(_lua("close"))
        self._seen: dict[str, float] = {}  # tenants that reserved here, and when they last did
        self._announced_at = 0.0

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        tenant = quote(reservation.identity.tenant, safe="")
        admitted_at = reservation.admitted_at.timestamp()
        bound = reservation.bound
        args: list[_Argument] = [
            reservation.id,
            *((bound.output, bound.least) if bound is not None else (0, 0)),
            reservation.deadline,
            msgspec.json.encode(reservation),
            _kept_s(reservation, admitted_at),
        ]
        for bucket in reservation.buckets:
            limit = bucket.limit
            demand = reservation.demand(limit)
            rule = (limit.mode is Mode.SOFT) + 2 * limit.shadow
            args += (limit.amount, _forgotten_at(bucket), rule, demand.fixed, demand.slope)
        async with _translated(self._timeout_s):
            await self._announce(tenant, admitted_at)
            reply = await self._reserve(keys=_keys(tenant, reservation), args=args)
        return _decision(reservation, reply)

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        async with _translated(self._batch_timeout_s):
            await self._scripted(self._renew, [(r, _renewal(r)) for r in reservations])

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        percent = ",".join(map(str, thresholds))
        calls = [(closing.reservation, _ending(closing, percent)) for closing in closings]
        async with _translated(self._batch_timeout_s):
            replies = await self._scripted(self._close, calls)
        return [_closed(closing, reply) for closing, reply in zip(closings, replies, strict=True)]

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

    async def time(self) -> float:
        async with _translated(self._timeout_s):
            seconds, microseconds = await self._redis.time()
        return float(seconds) + microseconds / 1e6

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

    async def _scripted(self, script: AsyncScript, calls: Sequence[_Call]) -> list[Any]:
        """One call of the script for each reservation, in one round trip."""
        try:
            return await self._call_all(script, calls)
        except NoScriptError:  # the server was restarted or flushed
            await self._redis.script_load(script.script)
            return await self._call_all(script, calls)

    async def _call_all(self, script: AsyncScript, calls: Sequence[_Call]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for reservation, args in calls:
            keys = _keys(quote(reservation.identity.tenant, safe=""), reservation)
            pipe.evalsha(script.sha, len(keys), *keys, *args)
        return await _replies(pipe)

    async def _open_reservations(self, ids: Sequence[tuple[str, str]]) -> list[Reservation]:
        pipe = self._redis.pipeline(transaction=False)
        for tenant, reservation_id in ids:
            pipe.hmget(_reservation_key(tenant, reservation_id), "body", "output")
        found: list[Reservation] = []
        gone = self._redis.pipeline(transaction=False)
        for (tenant, reservation_id), (body, output) in zip(ids, await _replies(pipe), strict=True):
            reservation = _read(body, int(output or 0)) if body is not None else None
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
    if reply[0] == _ENDED:
        raise StoreError("the reservation was ended before it was made", transient=False)
    verdict, output, *numbers = reply
    counts = [Count(used, held) for used, held in zip(numbers[::2], numbers[1::2], strict=True)]
    return admitted(reservation, counts, output) if verdict else denied(reservation, counts)


def _renewal(reservation: Reservation) -> list[_Argument]:
    kept_s = _kept_s(reservation, reservation.admitted_at.timestamp())
    args: list[_Argument] = [reservation.id, reservation.deadline, msgspec.json.encode(reservation), kept_s]
    for bucket in reservation.buckets:
        args += (reservation.hold(bucket.limit), _forgotten_at(bucket))
    return args


def _ending(closing: Closing, thresholds: str) -> list[_Argument]:
    buckets = closing.reservation.buckets
    args: list[_Argument] = [closing.reservation.id, closing.outcome, _END_MEMORY_S, thresholds]
    watched = closing.watched or (True,) * len(buckets)
    for bucket, charge, looked_at in zip(buckets, closing.charges, watched, strict=True):
        args += (charge, bucket.limit.amount if looked_at else 0, _forgotten_at(bucket))
    return args


def _closed(closing: Closing, reply: Sequence[Any]) -> Closed:
    outcome, *numbers = reply
    buckets = closing.reservation.buckets
    found = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    crossed = tuple(Crossed(buckets[i - 1], used, threshold) for i, used, threshold in found)
    return Closed(Outcome(str(outcome, "ascii")), crossed)


def _forgotten_at(bucket: Bucket) -> int:
    return bucket.interval.end + _BUCKET_GRACE_S


def _kept_s(reservation: Reservation, since: float) -> int:
    return max(1, int(reservation.deadline - since)) + _OPEN_GRACE_S


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


def _read(body: bytes, output: int) -> Reservation | None:
    try:
        return _reservation.decode(body).granted(output)
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
