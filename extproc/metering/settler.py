"""Carry the end of each reservation to the counters, and its entry to the ledger writer.

    end -> closing queue -> counters.close (the entry is in the journal from now on) -> ledger writer -> ledger

Nothing here waits on the path of a request. At every moment an entry is in at least one of these places: the
queues of a live process, the journal, the ledger.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from msgspec import Struct

from extproc.core.by_identity import ByIdentity
from extproc.core.quota.ledger import closed_entry
from extproc.core.quota.limits import Bucket, Window
from extproc.core.quota.models import Models
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome, Settlement, charges
from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue, QueueRoom
from extproc.metering.estimator import Estimator, Lesson
from extproc.metering.exclusive_delivery import ExclusiveDelivery
from extproc.metering.leases import Lease
from extproc.metering.ledger_writer import LedgerWriter, Record
from extproc.metering.local_admission import LocalAdmission
from extproc.observe.metrics import Metrics
from extproc.ports.alerts import Alert, AlertSink
from extproc.ports.base import Clock
from extproc.ports.counters import Closed, Closing, Counters
from extproc.ports.spool import Spool

_log = logging.getLogger(__name__)

CLOSINGS: Final = DeliveryOptions("closings")
# Per shard. In a long outage, releases of what may not be held must not take the room of real ends.
_UNDONE_AT_MOST: Final = 10_000
# Per shard. Ends that are not recorded leave the rest of the room to those that are.
_UNRECORDED_AT_MOST: Final = 50_000


@dataclass(frozen=True, slots=True)
class SettlerOptions:
    """Say which buckets alert: at which percentages of their limit, and for which windows."""

    thresholds: tuple[int, ...] = ()
    alert_windows: frozenset[Window] = frozenset(Window)


class End(Struct, frozen=True):
    """Carry the end of a reservation. Without a settlement nothing is learned or counted: a replayed end, say.

    `undone`: nobody knows whether the counters held it, and nobody was served.
    """

    closing: Closing
    settlement: Settlement | None = None
    lesson: Lesson | None = None
    undone: bool = False


class Settler:
    """End the reservations of one shard, each exactly once on the counters."""

    def __init__(
        self,
        counters: Counters,
        spool: Spool,
        writer: LedgerWriter,
        local: LocalAdmission,
        *,
        clock: Clock,
        models: Models,
        estimator: Estimator,
        alerts: AlertSink,
        metrics: Metrics,
        room: QueueRoom,
        options: SettlerOptions,
    ) -> None:
        self._counters = counters
        self._spool = spool
        self._writer = writer
        self._local = local
        self._clock = clock
        self._models = models
        self._estimator = estimator
        self._alerts = alerts
        self._metrics = metrics
        self._options = options
        self._watched = ByIdentity(self._which_are_watched)
        self.deliveries = ExclusiveDelivery()
        self._ends: DeliveryQueue[End] = DeliveryQueue(CLOSINGS, self._carry_out, metrics.lost, room=room)

    # ------------------------------------------------ what comes in

    def end(self, lease: Lease, settlement: Settlement, *, recorded: bool) -> None:
        """End a reservation. Return at once; a second end of the same changes nothing on the counters."""
        closing = self.closing_of(lease.reservation, settlement, lease.shadow if recorded else None)
        self._local.ended(closing)
        if lease.reservation.local and recorded:
            self._spool.ended(closing)
        if not recorded and len(self._ends) >= _UNRECORDED_AT_MOST:
            self._metrics.lost(CLOSINGS.name, 1)
            return
        self._ends.put(End(closing, settlement, lease.lesson))

    def undo(self, reservation: Reservation) -> None:
        """Release a reservation that may or may not have been held. It costs nothing, and is not recorded.

        While many of these wait already, this one is left out: if it was held after all, it expires.
        """
        if len(self._ends) < _UNDONE_AT_MOST:
            nothing = (0,) * len(reservation.buckets)
            self._ends.put(End(Closing(reservation, Outcome.RELEASED, nothing), undone=True))

    def closing_of(
        self, reservation: Reservation, settlement: Settlement, shadow: tuple[str, ...] | None
    ) -> Closing:
        """Return the end as the counters see it. With `shadow` None it is not recorded."""
        entry, charged = None, charges(reservation, settlement)
        if shadow is not None:
            price = self._models.profile(reservation.model).prices.of(settlement.usage)
            entry = closed_entry(
                reservation, settlement, self._clock.now(), charged=charged, shadow=shadow, price=price
            )
        watched = self._watched.of(reservation.buckets)
        return Closing(reservation, settlement.outcome, charged, watched, entry)

    async def close_now(self, closings: Sequence[Closing]) -> None:
        """End reservations that another process left. When it returns, their entries wait in the journal.

        Raise `StoreError`.
        """
        self._writer.perhaps_saved(closing.reservation.id for closing in closings)  # the other one may have
        await self._close([End(closing) for closing in closings])

    # ------------------------------------------------ what its shard has to know

    def unended(self) -> list[Reservation]:
        """Return reservations that were admitted, ended here, and are not known to have ended on the counters."""
        return [end.closing.reservation for end in self._ends if not end.undone]

    def unsaved(self, admitted_before: datetime) -> list[Reservation]:
        """Return those of them that are recorded, were admitted before an instant, and are not in the records."""
        return [
            end.closing.reservation
            for end in self._ends
            if end.closing.entry is not None
            and not self._writer.is_saved(end.closing.reservation.id)
            and end.closing.reservation.admitted_at < admitted_before
        ]

    def ids(self) -> set[ReservationId]:
        """Return the reservations whose end waits here."""
        return {end.closing.reservation.id for end in self._ends}

    def waiting(self) -> Iterator[Closing]:
        """Iterate over the ends that are not known to be on the counters."""
        return (end.closing for end in self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def again(self, closing: Closing) -> None:
        """Queue an end once more that counters had before they were lost.

        Metrics and estimates had it already: only the counters have to be told again.
        """
        self._ends.put(End(closing), beyond=True)

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the counters may be back."""
        self._ends.retry()

    # ------------------------------------------------ life

    async def run(self) -> None:
        """Deliver until cancelled."""
        await self._ends.run()

    async def drained(self) -> None:
        """Return when all ends are on the counters."""
        await self._ends.drained()

    # ------------------------------------------------ deliveries

    async def _carry_out(self, ends: Sequence[End]) -> None:
        await self._close(ends)
        # Recorded ends stay in the spool until they are in the ledger.
        self._writer.forget_spooled(end.closing for end in ends if end.closing.entry is None)

    async def _close(self, ends: Sequence[End]) -> None:
        async def close() -> list[Closed]:
            return await self._counters.close([end.closing for end in ends], self._options.thresholds)

        closed = await self.deliveries.deliver(close)
        for end, outcome in zip(ends, closed, strict=True):  # before anybody else has a turn
            self._closed(end, outcome)

    def _closed(self, end: End, closed: Closed) -> None:
        closing = end.closing
        for crossed in closed.crossed:
            tenant, now = closing.reservation.identity.tenant, self._clock.now()
            self._alerts.put(Alert(tenant, crossed.bucket, crossed.used, crossed.threshold, now))
        if closing.entry is None or closed.outcome is not closing.outcome:
            self._writer.ended_elsewhere(closing)
            return
        if end.settlement is not None:
            self._count(closing.reservation, end.settlement, end.lesson, closing.entry.price)
        self._writer.put(Record(closing.entry, closed.receipt, closing))

    def _count(self, reservation: Reservation, settlement: Settlement, lesson: Lesson | None, price: int) -> None:
        if settlement.outcome is not Outcome.EXPIRED:
            self._estimator.learn(lesson, settlement, bounded=reservation.output_bound is not None)
        self._metrics.closed(settlement)
        self._metrics.used(reservation.identity.tenant, reservation.model, settlement.usage, price)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("closed", extra=_fields(reservation, settlement))

    def _which_are_watched(self, buckets: tuple[Bucket, ...]) -> tuple[bool, ...]:
        windows = self._options.alert_windows
        return tuple(bucket.limit.window in windows and not bucket.limit.shadow for bucket in buckets)


def _fields(reservation: Reservation, settlement: Settlement) -> dict[str, object]:
    return {
        "request_id": reservation.request_id,
        "reservation": reservation.id,
        "outcome": settlement.outcome,
        "reason": settlement.reason,
        "charge": settlement.charge,
    }
