"""Keep the ledger in memory: the reference for the tests of the other stores. Lost when the process ends."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime

from msgspec import structs

from extproc.core.quota.ledger import Entry
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.base import StoreError
from extproc.ports.epochs import Used
from extproc.ports.generation import Generation
from extproc.ports.ledger import DailyUsage, UsageFilter


class MemoryLedger:
    """Keep the ledger, its daily sums and the records for a rebuild in dicts. Implements `ports.Records` too."""

    def __init__(self) -> None:
        self._entries: dict[ReservationId, Entry] = {}
        self._saved: dict[ReservationId, Reservation] = {}
        self._beats: dict[str, int] = {}
        self._saved_until: dict[str, datetime] = {}
        self._corrections: dict[tuple[TenantId, str], Used] = {}
        self._generation = Generation(0, 0)

    async def append(self, entries: Sequence[Entry], still: Callable[[], bool] | None = None) -> None:
        if entries and still is not None and not still():
            raise StoreError("the write came too late: it is repeated", transient=True)
        for entry in entries:
            self._entries.setdefault(entry.id, entry)

    def all_entries(self) -> Collection[Entry]:
        """Return the whole ledger."""
        return self._entries.values()

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        days: dict[tuple[str, str, str, str], DailyUsage] = {}
        for entry in self._entries.values():
            who = entry.identity
            key = (who.tenant, who.service_account, who.client_ip, entry.date)
            day = days.get(key) or DailyUsage(*key, usage=0)
            days[key] = _added(day, entry)
        rows = sorted(filter(wanted.fits, days.values()), key=lambda day: day.usage, reverse=True)
        rows.sort(key=lambda day: day.date, reverse=True)
        return rows[:at_most]

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        rows = filter(wanted.fits, self._entries.values())
        return sorted(rows, key=lambda e: e.ended_at, reverse=True)[:at_most]

    async def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        rows = filter(wanted.fits, self._entries.values())
        for entry in sorted(rows, key=lambda e: (e.admitted_at, e.id)):
            yield entry

    async def gone_before(self, now: datetime) -> datetime | None:
        """Return None: all entries stay until the process ends."""
        del now
        return None

    async def outcomes(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Outcome]:
        return {known: self._entries[known].outcome for known in ids if known in self._entries}

    async def used(self, now: datetime) -> list[Used]:
        sums = dict(self._corrections)
        for entry in self._entries.values():
            for charge in entry.charges:
                bucket = (entry.identity.tenant, charge.key)
                known = sums.get(bucket, Used(*bucket, charge.until, 0))
                until = max(known.until, charge.until)
                sums[bucket] = structs.replace(known, until=until, amount=known.amount + charge.amount)
        return [each for each in sums.values() if each.until > now.timestamp()]

    async def used_of(self, buckets: Sequence[tuple[TenantId, str]], now: datetime) -> list[int] | None:
        sums = {(each.tenant, each.key): each.amount for each in await self.used(now)}
        return [sums.get(bucket, 0) for bucket in buckets]

    async def corrections(self, now: datetime) -> list[Used]:
        return [each for each in self._corrections.values() if each.until > now.timestamp()]

    async def correct(self, corrections: Sequence[Used]) -> None:
        for each in corrections:
            known = self._corrections.get((each.tenant, each.key))
            if known is None or known.amount < each.amount:
                self._corrections[each.tenant, each.key] = each

    async def advance(self, noted: int) -> Generation | None:
        if self._generation.number < noted:
            return None
        self._generation = Generation(max(self._generation.number, noted + 1), self._generation.corrected)
        return self._generation

    async def corrected(self, noted: int) -> None:
        self._generation = Generation(max(self._generation.number, noted + 1), noted + 1)

    async def save(self, reservations: Sequence[Reservation]) -> None:
        for each in reservations:
            known = self._saved.get(each.id)
            if known is None or known.deadline <= each.deadline:  # else a later state came first
                self._saved[each.id] = each

    async def drop(self, ids: Sequence[ReservationId]) -> None:
        for gone in ids:
            self._saved.pop(gone, None)

    async def saved(self) -> list[Reservation]:
        return list(self._saved.values())

    async def which_saved(self, ids: Sequence[ReservationId]) -> set[ReservationId]:
        return self._saved.keys() & set(ids)

    async def note_saved_until(self, replica: str, until: datetime) -> None:
        self._saved_until[replica] = until.replace(microsecond=until.microsecond // 1000 * 1000)

    async def abort_writes_of(self, replica: str) -> None:
        """Do nothing: each write is one step."""

    async def saved_until(self) -> dict[str, datetime]:
        return dict(self._saved_until)

    async def heartbeat(self, replica: str) -> dict[str, int]:
        self._beats[replica] = self._beats.get(replica, 0) + 1
        return dict(self._beats)

    async def deregister(self, replica: str) -> None:
        self._beats.pop(replica, None)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""


def _added(day: DailyUsage, entry: Entry) -> DailyUsage:
    denied = entry.outcome is Outcome.DENIED
    return replace(
        day,
        usage=day.usage + entry.charge,
        input=day.input + entry.usage.input,
        output=day.output + entry.usage.output,
        cached=day.cached + entry.usage.cached,
        requests=day.requests + (not denied),
        denied=day.denied + entry.count * denied,
        estimated=day.estimated + (entry.outcome is Outcome.ESTIMATED),
        price=day.price + entry.price,
    )
