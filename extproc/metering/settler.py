"""What ended: carried to the counters, and from there to the ledger, whatever is away meanwhile.

    end -> closings -> counters.close (the entry waits in the journal from now on) -> entries -> ledger

Nothing in here waits on the path of a request. An entry is in the closings or entries of a live process, in the
journal, or in the ledger, at every moment in at least one of them; and the ledger knows it by its id.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from extproc.core.quota.alerting import Alert
from extproc.core.quota.ledger import Entry, closed_entry
from extproc.core.quota.limits import Bucket, Window
from extproc.core.quota.models import Models
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome, Settlement, charges, expiry
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId
from extproc.metering.delivery_queue import DeliveryOptions
from extproc.metering.estimator import Estimator, Lesson
from extproc.metering.exclusive_delivery import ExclusiveDelivery
from extproc.metering.journal_sweeper import JournalSweeper
from extproc.metering.leases import Lease
from extproc.metering.shards import Part, ShardQueues, part_of, parts_of
from extproc.metering.stored import Stored
from extproc.metering.write_fence import OpenGate, WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Closed, Closing, Receipt

_log = logging.getLogger(__name__)

_REPLAYED_AT_ONCE = 500
_UNDONE_AT_MOST = 10_000
# Of a part of the counters: what is recorded needs the rest of the room.
_UNRECORDED_AT_MOST = 50_000
# Beyond so many, entries are only in the journal. They are some kilobytes each.
_ENTRIES_AT_MOST = 20_000
# Denials are recorded as long as there is room for what was charged.
_DENIED_AT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class SettlerOptions:
    """Durations in seconds. What has waited in the journal for `orphaned_s` is written by whoever finds it."""

    ledger_linger_s: float = 0.1
    orphaned_s: float = 5.0
    collect_interval_s: float = 2.0
    thresholds: tuple[int, ...] = ()
    alert_windows: frozenset[Window] = frozenset(Window)


class AlertSink(Protocol):
    """Takes alerts. Returns at once and raises nothing."""

    def put(self, alert: Alert) -> None: ...


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a reservation. What a replay brings has no settlement: nothing is learned from it, or counted."""

    closing: Closing
    settlement: Settlement | None = None
    lesson: Lesson | None = None


@dataclass(slots=True, eq=False)
class _Record:
    """An entry on its way to the ledger. `end` is None where it was denied: it never counted.

    One that was `recalled` is not written: its end is carried out once more, and makes another.
    """

    entry: Entry
    receipt: Receipt | None = None
    end: _End | None = None
    recalled: bool = False


class Settler:
    """Ends reservations and records them."""

    def __init__(
        self,
        stored: Stored,
        *,
        clock: Clock,
        models: Models,
        estimator: Estimator,
        alerts: AlertSink,
        metrics: Metrics,
        options: SettlerOptions,
    ) -> None:
        self._stored = stored
        self._clock = clock
        self._models = models
        self._estimator = estimator
        self._alerts = alerts
        self._metrics = metrics
        self._options = options
        self._orphans = JournalSweeper(stored.journal, self._append, self._written)
        self._gate: WriteFence = OpenGate()
        self._ended: Callable[[Closing], None] = lambda _: None
        self._kept: set[ReservationId] = set()
        self._parts = parts_of(stored.counters)
        self._closing = {part: ExclusiveDelivery() for part in self._parts}
        self._writing = {part: ExclusiveDelivery() for part in self._parts}
        self._ends: ShardQueues[_End] = ShardQueues(
            DeliveryOptions("closings"),
            stored.counters,
            lambda end: end.closing.reservation.identity.tenant,
            self._carry_out,
            on_lost=metrics.lost,
        )
        self._entries: ShardQueues[_Record] = ShardQueues(
            DeliveryOptions("ledger", max_queued=_ENTRIES_AT_MOST, linger_s=options.ledger_linger_s),
            stored.counters,
            lambda record: record.entry.identity.tenant,
            self._write,
            on_lost=metrics.lost,
            refused=self._refused,
        )
        metrics.watch_queue("closings", self._ends.__len__)
        metrics.watch_queue("ledger", self._entries.__len__)

    def guard(self, gate: WriteFence) -> None:
        """Lets nothing into the ledger that the gate does not let pass."""
        self._gate = gate

    def on_end(self, heard: Callable[[Closing], None]) -> None:
        """`heard` is told of every end, when it happens."""
        self._ended = heard

    # ------------------------------------------------ what comes in

    def end(self, opened: Lease, settlement: Settlement, *, recorded: bool) -> None:
        """Ends a reservation. Returns at once; a second end of the same changes nothing on the counters."""
        closing = self._closed(opened.reservation, settlement, opened.shadow if recorded else None)
        self._ended(closing)
        if opened.reservation.local and recorded:
            self._stored.spool.ended(closing)
        if (
            not recorded
            and self._ends.waiting(self._part_of(opened.reservation.identity.tenant)) >= _UNRECORDED_AT_MOST
        ):
            self._metrics.lost("closings", 1)
            return
        self._ends.put(_End(closing, settlement, opened.lesson))

    def undo(self, opened: Lease, settlement: Settlement) -> None:
        """Ends what may or may not have been held.

        In a long outage these must not take the room of what really was: one that is left out, and was made all
        the same, expires.
        """
        if self._ends.beside(opened.reservation.identity.tenant) < _UNDONE_AT_MOST:
            self.end(opened, settlement, recorded=False)

    def deny(self, entry: Entry) -> None:
        """Records a request that was denied. In a long outage of the ledger some are lost, and counted."""
        mine, share = self._entries.beside(entry.identity.tenant), _DENIED_AT_MOST // len(self._parts)
        if len(self._entries) < _DENIED_AT_MOST or mine < share:
            self._entries.put(_Record(entry))
        else:
            self._metrics.lost("denied", 1)

    async def replay(self, ended: Sequence[Closing], unended: Sequence[Reservation]) -> int:
        """Ends what a process left that is gone; what nobody knows the end of is charged as held.

        Returns how many nobody had ended yet. When it returns they are charged and wait in the journal, to be
        written by this process; all others are in the ledger. Raises `StoreError`, and may be repeated then.
        """
        closings = [*ended, *(self._closed(r, expiry(r), ()) for r in unended)]
        replayed = 0
        for start in range(0, len(closings), _REPLAYED_AT_ONCE):
            some = closings[start : start + _REPLAYED_AT_ONCE]
            partitions = {partition_of(closing.reservation.identity.tenant) for closing in some}
            known = await self.over([closing.reservation.id for closing in some], partitions)
            # Without an entry nothing tells for good whether it was charged: only what is still open is then.
            left = [
                closing
                if closing.entry is None
                else replace(closing, reservation=replace(closing.reservation, local=True))
                for closing in some
                if closing.reservation.id not in known
            ]
            await self._replay(left)
            replayed += len(left)
            others = known.keys() - self.ids()
            if others and len(await self._stored.records.outcomes(sorted(others))) < len(others):
                raise StoreError("some of it waits in the journal for others to write it", transient=True)
        return replayed

    async def _replay(self, closings: Sequence[Closing]) -> None:
        """Each part's by itself: what is away holds nothing else up. All were tried when it raises."""
        of_part: dict[Part, list[_End]] = {}
        for closing in closings:
            of_part.setdefault(self._part_of(closing.reservation.identity.tenant), []).append(_End(closing))
        done = await asyncio.gather(*map(self._close, of_part.values()), return_exceptions=True)
        for error in done:
            if error is not None:
                raise error

    async def unrecorded(self, ids: Sequence[ReservationId]) -> bool:
        """Whether any of these is still on its way to the ledger. Raises `StoreError`."""
        all_here = self.ids()
        here = [each for each in dict.fromkeys(ids) if each in all_here]
        return bool(here) and len(await self._stored.records.outcomes(here)) < len(here)

    # ------------------------------------------------ what other lives have to know

    def unended(self) -> list[Reservation]:
        """Reservations that are over here, and not known to be over on the counters."""
        return [end.closing.reservation for end in self._ends]

    def unkept(self, admitted_before: datetime) -> list[Reservation]:
        """Those of them that are to be recorded, have been waiting for a while, and are not in the records."""
        return [
            end.closing.reservation
            for end in self._ends
            if end.closing.entry is not None
            and end.closing.reservation.id not in self._kept
            and end.closing.reservation.admitted_at < admitted_before
        ]

    def ids(self) -> set[ReservationId]:
        """Reservations whose end is not known to be in the ledger."""
        return {end.closing.reservation.id for end in self._ends} | {record.entry.id for record in self._entries}

    def kept(self, ids: Iterable[ReservationId]) -> None:
        """These are in the records, to be dropped when they are in the ledger."""
        self._kept.update(ids)

    @asynccontextmanager
    async def at_rest(self, part: Part) -> AsyncIterator[None]:
        """Nothing of a part is delivered meanwhile. What hangs is left behind, and repeated afterwards."""
        async with self._closing[part].rest(), self._writing[part].rest():
            yield

    async def take_back(self, partitions: set[int]) -> None:
        """The counters of these partitions forget: ends that the ledger does not have are to be carried out again.

        To be called `at_rest`. Raises `StoreError`, having changed nothing.
        """
        concerned = [
            (record, record.end)
            for record in self._entries
            if record.end is not None
            and not record.recalled
            and partition_of(record.entry.identity.tenant) in partitions
        ]
        known = await self.over([record.entry.id for record, _ in concerned], partitions)
        for record, end in concerned:
            if record.entry.id not in known:
                # It was counted when it ended: only the counters have to be told again.
                self._ends.put(replace(end, settlement=None, lesson=None), beyond=True)
                record.recalled = True

    async def over(self, ids: Iterable[ReservationId], partitions: Iterable[int]) -> dict[ReservationId, Outcome]:
        """How those ended that wait in these partitions' journal or are in the ledger. Raises `StoreError`."""
        wanted = dict.fromkeys(ids)
        if not wanted:
            return {}
        # In this order: what leaves the journal is in the ledger.
        waiting = [each for p in partitions for each in await self._stored.journal.journalled(p)]
        found = {each.id: each.outcome for each in waiting if each.id in wanted}
        return found | await self._stored.records.outcomes([each for each in wanted if each not in found])

    def retry(self) -> None:
        """The stores may be back."""
        self._ends.retry()
        self._entries.retry()

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Delivers until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ends.run())
            group.create_task(self._entries.run())
            interval_s, orphaned_s = self._options.collect_interval_s, self._options.orphaned_s
            for part in self._parts:
                group.create_task(self._orphans.follow(part, self._gate, orphaned_s, interval_s))
            group.create_task(self._orphans.watch(self._metrics, interval_s))

    async def drain(self, timeout_s: float) -> bool:
        """Delivers what is queued. What can't be delivered in time goes to the spool; False where it is lost.

        Entries that wait in the journal are safe: other replicas write them.
        """
        self._gate.release()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ends.drained()
                await self._entries.drained()
        except TimeoutError:
            waiting = {"closings": len(self._ends), "ledger": len(self._entries)}
            lost = sum(record.receipt is None for record in self._entries)
            try:
                await self._stored.spool.keep([end.closing for end in self._ends])
            except StoreError as error:
                lost += sum(end.closing.entry is not None for end in self._ends)
                waiting["error"] = str(error)  # type: ignore[assignment]
            if lost:
                _log.error("not everything was recorded in time", extra=waiting)
                return False
            _log.warning("not everything was recorded in time: it is kept for another process", extra=waiting)
        return True

    async def collect(self, older_than_s: float, partition: int | None = None) -> int:
        """Writes entries that wait in the journal to the ledger; returns how many. Raises `StoreError`."""
        return await self._orphans.collect(older_than_s, partition)

    # ------------------------------------------------ deliveries

    async def _carry_out(self, ends: Sequence[_End]) -> None:
        await self._close(ends)
        # The others are to be found in the spool until they are in the ledger.
        self._spooled([end.closing.reservation for end in ends if end.closing.entry is None])

    async def _close(self, ends: Sequence[_End]) -> None:
        """All of one part."""

        async def close() -> list[Closed]:
            return await self._stored.counters.close([end.closing for end in ends], self._options.thresholds)

        stands = await self._closing[self._part_of(ends[0].closing.reservation.identity.tenant)].deliver(close)
        for end, closed in zip(ends, stands, strict=True):  # before anybody else has a turn
            self._stands(end, closed)

    def _stands(self, end: _End, closed: Closed) -> None:
        closing = end.closing
        tenant, now = closing.reservation.identity.tenant, self._clock.now()
        for crossed in closed.crossed:
            self._alerts.put(Alert(tenant, crossed.bucket, crossed.used, crossed.threshold, now))
        if closing.entry is None or closed.outcome is not closing.outcome:
            # It ended before, in another way: journalled and recorded then.
            self._kept.discard(closing.reservation.id)
            self._spooled([closing.reservation])
            return
        if end.settlement is not None:
            self._count(closing.reservation, end.settlement, end.lesson)
        if closed.receipt is None or not self._entries.full(self._part_of(tenant)):  # the journal has it
            self._entries.put(_Record(closing.entry, closed.receipt, end))

    def _count(self, reservation: Reservation, settlement: Settlement, lesson: Lesson | None) -> None:
        if settlement.outcome is not Outcome.EXPIRED:
            self._estimator.learn(lesson, settlement, bounded=reservation.output_bound is not None)
        self._metrics.closed(settlement)
        self._metrics.used(reservation.identity.tenant, reservation.model, settlement.usage)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("closed", extra=_told(reservation, settlement))

    async def _write(self, records: Sequence[_Record]) -> None:
        wanted: list[_Record] = []

        def not_recalled() -> list[Entry]:
            wanted[:] = [record for record in records if not record.recalled]
            return [record.entry for record in wanted]

        await self._at_the_ledger(self._part_of(records[0].entry.identity.tenant), not_recalled)
        await self._forget(wanted)

    async def _append(self, entries: Sequence[Entry]) -> None:
        await self._at_the_ledger(self._part_of(entries[0].identity.tenant), lambda: entries)

    async def _at_the_ledger(self, part: Part, entries: Callable[[], Sequence[Entry]]) -> None:
        """Writes entries of one part, as they are when it is their turn and the gate is open."""

        async def append() -> bool:
            if self._gate.is_open(part):  # it may have closed while others had their turn
                await self._stored.ledger.append(entries())
                return True
            return False

        written = False
        while not written:
            await self._gate.passes(part)
            written = await self._writing[part].deliver(append)

    async def _forget(self, records: Sequence[_Record]) -> None:
        """Tells those who kept them in case. If they don't hear, they are found to be in the ledger, some day."""
        self._spooled([record.end.closing.reservation for record in records if record.end is not None])
        receipts = [record.receipt for record in records if record.receipt is not None]
        await self._written([record.entry.id for record in records], receipts)

    async def _written(self, entries: Sequence[ReservationId], receipts: Sequence[Receipt]) -> None:
        with suppress(StoreError):
            if receipts:
                await self._stored.journal.written(receipts)
        # Some may be kept while others are dropped.
        while ids := [each for each in entries if each in self._kept]:
            self._kept.difference_update(ids)
            with suppress(StoreError):
                await self._stored.records.drop(ids)

    def _spooled(self, reservations: Iterable[Reservation]) -> None:
        """What the spool had of these is not needed any more."""
        local = [reservation.id for reservation in reservations if reservation.local]
        if local:
            self._stored.spool.done(local)

    async def _refused(self, record: _Record, error: StoreError) -> None:
        await self._stored.journal.set_aside(record.entry, record.receipt, str(error))
        if record.end is not None:
            self._spooled([record.end.closing.reservation])

    def _closed(self, reservation: Reservation, settlement: Settlement, shadow: tuple[str, ...] | None) -> Closing:
        """How it ends; without shadows (None) it is not recorded."""
        entry = None
        if shadow is not None:
            price = self._models.profile(reservation.model).prices.of(settlement.usage)
            entry = closed_entry(reservation, settlement, self._clock.now(), shadow=shadow, price=price)
        watched = tuple(self._watched(bucket) for bucket in reservation.buckets)
        return Closing(reservation, settlement.outcome, charges(reservation, settlement), watched, entry)

    def _part_of(self, tenant: TenantId) -> Part:
        return part_of(self._stored.counters, tenant)

    def _watched(self, bucket: Bucket) -> bool:
        return bucket.limit.window in self._options.alert_windows and not bucket.limit.shadow


def is_recorded(reservation: Reservation) -> bool:
    """Whether its end goes to the ledger. What only counts as a request does not."""
    return reservation.endpoint is not Endpoint.ROUTE


def _told(reservation: Reservation, settlement: Settlement) -> dict[str, object]:
    return {
        "request_id": reservation.request_id,
        "reservation": reservation.id,
        "outcome": settlement.outcome,
        "reason": settlement.reason,
        "charge": settlement.charge,
    }
