"""The reservations that this process holds: kept alive as long as their streams, and grown with them.

A reservation that nobody renews expires and is charged as held. So whoever holds one renews it, well before its
deadline: only what a process left behind expires.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.metering.delivery_queue import DeliveryOptions
from extproc.metering.estimator import Lesson
from extproc.metering.shards import ShardQueues
from extproc.ports.base import Clock, StoreError
from extproc.ports.counters import Counters

_log = logging.getLogger(__name__)
# A deadline is moved when so much of the time to live has passed: twice more may be missed.
_RENEW_AFTER = 1 / 3


@dataclass(frozen=True, slots=True)
class Lease:
    """A reservation as it is held now, and what is to be known when it ends."""

    reservation: Reservation
    lesson: Lesson | None = None
    shadow: tuple[str, ...] = ()
    kept: Reservation | None = None  # as the records have it


class Leases:
    """Lease reservations by id. Growing and renewing go through a queue: no stream waits for them."""

    def __init__(
        self, counters: Counters, clock: Clock, ttl_s: float, on_lost: Callable[[str, int], None]
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._open: dict[ReservationId, Lease] = {}
        self._counters = counters
        self._queued: set[ReservationId] = set()
        self._renewals: ShardQueues[Reservation] = ShardQueues(
            DeliveryOptions("renewals"),
            counters,
            lambda reservation: reservation.identity.tenant,
            self._carry_out,
            on_lost=on_lost,
        )

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Renewals that are not carried out yet."""
        return len(self._renewals)

    def __iter__(self) -> Iterator[Reservation]:
        return iter([opened.reservation for opened in self._open.values()])

    def add(self, opened: Lease) -> None:
        """Holds it from now on. One that the counters don't know yet is told to them."""
        self._open[opened.reservation.id] = opened
        if opened.reservation.local:
            self._put(opened.reservation)

    def unkept(self, admitted_before: datetime) -> list[Reservation]:
        """Reservations that have been open for a while and that the records don't have as they are now."""
        return [
            opened.reservation
            for opened in self._open.values()
            if opened.kept is None or opened.kept.extra_output < opened.reservation.extra_output
            if opened.reservation.admitted_at < admitted_before
        ]

    def kept(self, reservations: Sequence[Reservation]) -> None:
        """The records have them like this."""
        for reservation in reservations:
            opened = self._open.get(reservation.id)
            if opened is not None:
                self._open[reservation.id] = replace(opened, kept=reservation)

    def retry(self) -> None:
        """The counters may be back."""
        self._renewals.retry()

    def tell_again(self, partition: int) -> None:
        """The counters may have these from somebody who knows less of them."""
        for reservation in self:
            if partition_of(reservation.identity.tenant) == partition:
                self._put(reservation)

    def grow(self, reservation: Reservation) -> None:
        """Holds what the reservation says now."""
        opened = self._open.get(reservation.id)
        if opened is not None:
            self._renew(replace(opened, reservation=replace(reservation, deadline=self._deadline(opened))))

    def end(self, reservation: Reservation) -> Lease:
        """Forgets it, and tells of it as it is given: where a stream broke off, it may have grown a last time."""
        opened = self._open.pop(reservation.id, None)
        return replace(opened, reservation=reservation) if opened is not None else Lease(reservation)

    async def run(self) -> None:
        """Renews until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewals.run())
            group.create_task(self._watch())

    def renew_due(self) -> int:
        """Moves the deadlines that come near; says how many."""
        soon = self._clock.now().timestamp() + self._ttl_s * (1 - _RENEW_AFTER)
        due = [opened for opened in self._open.values() if opened.reservation.deadline < soon]
        for opened in due:
            longer = replace(opened.reservation, deadline=self._deadline(opened))
            self._renew(replace(opened, reservation=longer))
        return len(due)

    async def _carry_out(self, reservations: Sequence[Reservation]) -> None:
        # What has ended is not renewed: should the counters have lost its end again, they would take it for open.
        wanted = [self._open[r.id].reservation for r in reservations if r.id in self._open]
        try:
            if wanted:
                await self._counters.renew(wanted)
        except StoreError as error:
            if not error.transient:  # none of them waits any more, as far as is known here
                self._queued.difference_update(r.id for r in reservations)
            raise
        self._queued.difference_update(r.id for r in reservations)
        for told in wanted:
            opened = self._open.get(told.id)
            if opened is not None and opened.reservation is not told:
                self._put(opened.reservation)

    def _renew(self, opened: Lease) -> None:
        self._open[opened.reservation.id] = opened
        self._put(opened.reservation)

    def _put(self, reservation: Reservation) -> None:
        """As it is when its turn comes: one that grows often in an outage waits once."""
        if reservation.id not in self._queued and self._renewals.put(reservation):
            self._queued.add(reservation.id)

    def _deadline(self, opened: Lease) -> float:
        # Never an earlier one, should the clock be put back: such a renewal would count as overtaken.
        return max(opened.reservation.deadline, self._clock.now().timestamp() + self._ttl_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s * _RENEW_AFTER / 2)
            renewed = self.renew_due()
            if renewed:
                _log.debug("renewed", extra={"reservations": renewed})
