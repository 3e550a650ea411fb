"""In memory: the reference that the other stores are held to. One process, gone with it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from extproc.core.identity import TenantId
from extproc.core.ledger import Entry
from extproc.core.limits import Bucket
from extproc.core.quota import Admitted, Count, Denied, Reservation, ReservationId, admitted, decide
from extproc.core.settlement import Outcome
from extproc.ports import Closed, Closing, ConflictError, Crossed, DailyUsage, Document, StoreError, UsageFilter

_Key = tuple[str, str]
_NOTHING = Count(0, 0)


@dataclass(slots=True)
class _Open:
    reservation: Reservation
    holds: list[int]
    closed: Closed | None = None


class MemoryCounters:
    """Counters in a dict. Atomic because nothing in a call waits."""

    def __init__(self) -> None:
        self._counts: dict[_Key, Count] = {}
        self._alerted: dict[_Key, int] = {}
        self._reservations: dict[ReservationId, _Open] = {}

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        known = self._reservations.get(reservation.id)
        counts = await self.read(reservation.identity.tenant, reservation.buckets)
        if known is not None and known.closed is not None:
            raise StoreError("the reservation was ended before it was made", transient=False)
        if known is not None:
            before = [Count(c.used, c.held - hold) for c, hold in zip(counts, known.holds, strict=True)]
            bound = known.reservation.bound
            return admitted(reservation, before, bound.output if bound is not None else 0)
        decision = decide(reservation, counts)
        if isinstance(decision, Admitted):
            granted = decision.reservation
            self._reservations[reservation.id] = _Open(granted, [granted.hold(b.limit) for b in granted.buckets])
            for key, state in zip(_keys(reservation), decision.states, strict=True):
                self._counts[key] = state.count
        return decision

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        for reservation in reservations:
            known = self._reservations.get(reservation.id)
            if known is None or known.closed is not None or known.reservation.deadline > reservation.deadline:
                continue
            known.reservation = reservation
            for i, (key, bucket) in enumerate(zip(_keys(reservation), reservation.buckets, strict=True)):
                more = max(0, reservation.hold(bucket.limit) - known.holds[i])
                known.holds[i] += more
                count = self._counts.get(key, _NOTHING)
                self._counts[key] = Count(count.used, count.held + more)

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        return [self._close(closing, thresholds) for closing in closings]

    async def overdue(self, now: datetime, at_most: int) -> list[Reservation]:
        due = (
            known.reservation
            for known in self._reservations.values()
            if known.closed is None and known.reservation.deadline < now.timestamp()
        )
        return sorted(due, key=lambda r: r.deadline)[:at_most]

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        return [self._counts.get((tenant, bucket.key), _NOTHING) for bucket in buckets]

    async def ping(self) -> None:
        """Always there."""

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _close(self, closing: Closing, thresholds: Sequence[int]) -> Closed:
        reservation = closing.reservation
        known = self._reservations.get(reservation.id)
        if known is None:
            closed = Closed(closing.outcome)
            self._reservations[reservation.id] = _Open(reservation, [], closed)
            return closed
        if known.closed is not None:
            return known.closed if known.closed.outcome is closing.outcome else Closed(known.closed.outcome)
        crossed: list[Crossed] = []
        watched = closing.watched or (True,) * len(reservation.buckets)
        for i, (key, bucket) in enumerate(zip(_keys(reservation), reservation.buckets, strict=True)):
            count = self._counts.get(key, _NOTHING)
            used = count.used + closing.charges[i]
            self._counts[key] = Count(used, count.held - known.holds[i])
            if self._counts[key] == _NOTHING:
                del self._counts[key]
            if watched[i] and bucket.limit.amount:
                crossed += self._cross(key, bucket, used, thresholds)
        known.closed = Closed(closing.outcome, tuple(crossed))
        return known.closed

    def _cross(self, key: _Key, bucket: Bucket, used: int, thresholds: Sequence[int]) -> list[Crossed]:
        before = self._alerted.get(key, 0)
        reached = [t for t in thresholds if t > before and used * 100 >= bucket.limit.amount * t]
        if reached:
            self._alerted[key] = reached[-1]
        return [Crossed(bucket, used, threshold) for threshold in reached]


def _keys(reservation: Reservation) -> list[_Key]:
    return [(reservation.identity.tenant, bucket.key) for bucket in reservation.buckets]


class MemoryLedger:
    """The ledger and its daily sums in dicts."""

    def __init__(self) -> None:
        self._entries: dict[ReservationId, Entry] = {}

    async def append(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._entries.setdefault(entry.id, entry)

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        days: dict[tuple[str, str, str], DailyUsage] = {}
        for entry in self._entries.values():
            who = entry.identity
            key = (who.service_account, who.client_ip, entry.date)
            day = days.get(key) or DailyUsage(who.tenant, *key, usage=0)
            days[key] = _added(day, entry)
        rows = [day for day in days.values() if _wanted(wanted, day)]
        rows.sort(key=lambda day: day.usage, reverse=True)
        rows.sort(key=lambda day: day.date, reverse=True)
        return rows[:at_most]

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        rows = [e for e in self._entries.values() if _wanted(wanted, _added(_day_of(e), e))]
        return sorted(rows, key=lambda e: e.ended_at, reverse=True)[:at_most]

    async def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        rows = [e for e in self._entries.values() if _wanted(wanted, _added(_day_of(e), e))]
        for entry in sorted(rows, key=lambda e: (e.admitted_at, e.id)):
            yield entry

    async def aclose(self) -> None:
        """Nothing to give back."""


class MemoryTenants:
    """Tenants' limits in a dict."""

    def __init__(self) -> None:
        self._documents: dict[TenantId, dict[str, object]] = {}
        self._changed = asyncio.Event()

    async def documents(self) -> list[Document]:
        return [dict(document) for _, document in sorted(self._documents.items())]

    async def document(self, tenant: TenantId) -> Document | None:
        found = self._documents.get(tenant)
        return dict(found) if found is not None else None

    async def update(self, tenant: TenantId, fields: Document, version: int | None = None) -> bool:
        new = tenant not in self._documents
        document = self._documents.get(tenant, {"tenant_id": tenant})
        before = document.get("version", 0)
        if version is not None and before != version:
            raise ConflictError(f"tenant '{tenant}' was changed meanwhile")
        self._documents[tenant] = document
        for name, value in fields.items():
            document.pop(name, None)
            if value is not None:
                document[name] = value
        document["version"] = before + 1  # type: ignore[operator]
        self._changed.set()
        return new

    async def delete(self, tenant: TenantId) -> bool:
        self._changed.set()
        return self._documents.pop(tenant, None) is not None

    async def changes(self) -> AsyncIterator[None]:
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield

    async def aclose(self) -> None:
        """Nothing to give back."""


def _day_of(entry: Entry) -> DailyUsage:
    who = entry.identity
    return DailyUsage(who.tenant, who.service_account, who.client_ip, entry.date, usage=0)


def _added(day: DailyUsage, entry: Entry) -> DailyUsage:
    denied = entry.outcome is Outcome.DENIED
    return replace(
        day,
        usage=day.usage + entry.charge,
        input=day.input + entry.usage.input,
        output=day.output + entry.usage.output,
        cached=day.cached + entry.usage.cached,
        requests=day.requests + (not denied),
        denied=day.denied + denied,
        estimated=day.estimated + (entry.outcome is Outcome.ESTIMATED),
        price=day.price + entry.price,
    )


def _wanted(wanted: UsageFilter, day: DailyUsage) -> bool:
    return (
        wanted.tenant in (None, day.tenant)
        and wanted.service_account in (None, day.service_account)
        and wanted.client_ip in (None, day.client_ip)
        and (wanted.since or "") <= day.date <= (wanted.until or "9999")
    )
