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
from extproc.ports import Closing, DailyUsage, Document, StoreError, TenantRecord, UsageFilter

_NOTHING = Count(0, 0)


@dataclass(slots=True)
class _Open:
    reservation: Reservation
    outcome: Outcome | None = None


class MemoryCounters:
    """Counters in a dict. Atomic because nothing in a call waits."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Count] = {}
        self._reservations: dict[ReservationId, _Open] = {}

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        known = self._reservations.get(reservation.id)
        tenant = reservation.identity.tenant
        counts = await self.read(tenant, reservation.buckets)
        if known is not None and known.outcome is not None:
            raise StoreError("the reservation was ended before it was made", transient=False)
        if known is not None:
            return admitted(reservation, [Count(c.used, c.held - reservation.cost.total) for c in counts])
        decision = decide(reservation, counts)
        if isinstance(decision, Admitted):
            self._reservations[reservation.id] = _Open(reservation)
            for state in decision.states:
                self._counts[tenant, state.bucket.key] = state.count
        return decision

    async def close(self, closings: Sequence[Closing]) -> list[Outcome]:
        return [self._close(closing) for closing in closings]

    async def overdue(self, now: datetime, at_most: int) -> list[Reservation]:
        due = (
            known.reservation
            for known in self._reservations.values()
            if known.outcome is None and known.reservation.deadline < now.timestamp()
        )
        return sorted(due, key=lambda r: r.deadline)[:at_most]

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        return [self._counts.get((tenant, bucket.key), _NOTHING) for bucket in buckets]

    async def ping(self) -> None:
        """Always there."""

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _close(self, closing: Closing) -> Outcome:
        reservation = closing.reservation
        known = self._reservations.get(reservation.id)
        if known is None:
            self._reservations[reservation.id] = _Open(reservation, closing.outcome)
            return closing.outcome
        if known.outcome is not None:
            return known.outcome
        known.outcome = closing.outcome
        for bucket in reservation.buckets:
            key = (reservation.identity.tenant, bucket.key)
            count = self._counts[key]
            self._counts[key] = Count(count.used + closing.charge, count.held - reservation.cost.total)
        return closing.outcome


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

    async def put(self, record: TenantRecord) -> bool:
        new = record.tenant not in self._documents
        document = self._documents.setdefault(record.tenant, {"tenant_id": record.tenant})
        for name, amount in (("sa_limit", record.sa_limit), ("ip_limit", record.ip_limit)):
            document.pop(name, None)
            if amount is not None:
                document[name] = amount
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
    )


def _wanted(wanted: UsageFilter, day: DailyUsage) -> bool:
    return (
        wanted.tenant in (None, day.tenant)
        and wanted.service_account in (None, day.service_account)
        and wanted.client_ip in (None, day.client_ip)
        and (wanted.since or "") <= day.date <= (wanted.until or "9999")
    )
