"""Admit requests without the counters, while they are away, for tenants with `on_store_failure: allow`.

A replica counts only what it admitted itself, and admits at most a share of each limit in each window. So with n
replicas `used <= limit + n x share x limit`, however long or often the counters are away; a replica that restarts
counts as another one. Where a strict limit binds, nothing is admitted locally. Each admitted request is written to
disk before it goes on, so it is charged even if this process is killed.
"""

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from extproc.core.quota.limits import Bucket, Mode
from extproc.core.quota.reservation import Admitted, Count, Reservation, ReservationId, decide
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing
from extproc.ports.spool import Spool

_NOTHING: Final = Count(0, 0)
# Beyond this number nothing more is admitted: invented names must not fill the memory.
_BUCKETS_AT_MOST: Final = 100_000
# A pass over all buckets takes some milliseconds.
_FORGET_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Held:
    keys: tuple[tuple[str, str], ...]
    holds: tuple[int, ...]


class LocalAdmission:
    """Count what this replica admitted locally, by bucket, until the bucket's window is over."""

    def __init__(self, share: float, spool: Spool) -> None:
        self._share = share
        self._spool = spool
        self._counts: dict[tuple[str, str], Count] = {}
        self._ends: dict[tuple[str, str], int] = {}
        self._held: dict[ReservationId, _Held] = {}
        self._forget_at = float("-inf")

    async def admit(self, reservation: Reservation) -> Admitted | None:
        """Hold a reservation locally. Return None if it does not fit, or the spool could not write it."""
        if any(bucket.limit.mode is Mode.STRICT and not bucket.limit.shadow for bucket in reservation.buckets):
            return None
        local = replace(reservation, local=True)
        keys = tuple((reservation.identity.tenant, bucket.key) for bucket in reservation.buckets)
        self._forget(reservation.admitted_at.timestamp())
        if len(self._counts) + len(keys) > _BUCKETS_AT_MOST:
            return None
        scaled = replace(local, buckets=tuple(map(self._scaled, local.buckets)))
        decision = decide(scaled, [self._counts.get(key, _NOTHING) for key in keys])
        if not isinstance(decision, Admitted):
            return None
        holds = tuple(
            state.count.held - self._counts.get(key, _NOTHING).held
            for key, state in zip(keys, decision.states, strict=True)
        )
        for key, state in zip(keys, decision.states, strict=True):
            self._counts[key] = state.count
            self._ends[key] = state.bucket.interval.end
        self._held[local.id] = _Held(keys, holds)
        if local.endpoint is not Endpoint.ROUTE and not await self._written(local):
            return None
        return replace(decision, reservation=local)

    def ended(self, closing: Closing) -> None:
        """Count what a local reservation held as used. Other reservations change nothing."""
        held = self._held.pop(closing.reservation.id, None)
        if held is None:
            return
        for key, hold, charge in zip(held.keys, held.holds, closing.charges, strict=True):
            count = self._counts.get(key)
            if count is not None:
                self._counts[key] = Count(count.used + charge, count.held - hold)

    async def _written(self, local: Reservation) -> bool:
        try:
            await self._spool.opened(local)
        except BaseException as error:
            self.ended(Closing(local, Outcome.RELEASED, (0,) * len(local.buckets)))
            self._spool.done([local.id])
            if isinstance(error, StoreError):
                return False
            raise
        return True

    def _scaled(self, bucket: Bucket) -> Bucket:
        limit = bucket.limit
        return replace(bucket, limit=replace(limit, amount=int(limit.amount * self._share)))

    def _forget(self, now: float) -> None:
        if len(self._counts) < _BUCKETS_AT_MOST // 2 or now < self._forget_at:
            return
        self._forget_at = now + _FORGET_EVERY_S
        for key in [key for key, end in self._ends.items() if end < now]:
            del self._counts[key], self._ends[key]
