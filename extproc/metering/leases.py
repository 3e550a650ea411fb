"""Keep the leases of this process: open reservations, renewed and grown as long as their streams live.

A reservation that nobody renews expires, and is charged as held. So a process renews each of its leases well
before its deadline: only what a dead process held expires.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.metering.delivery_queue import DeliveryOptions, DeliveryQueue, QueueRoom
from extproc.metering.estimator import Lesson
from extproc.metering.shared_clock import SharedClock
from extproc.ports.base import StoreError
from extproc.ports.counters import Counters
from extproc.timing.events import happens_within

_log = logging.getLogger(__name__)
RENEWALS = DeliveryOptions("renewals")
# A lease is renewed when this part of its time to live has passed: two more attempts may fail before it expires.
_RENEW_AFTER = 1 / 3


class Lease(Struct, frozen=True):
    """Hold an open reservation as it is now, and what its end needs: its lesson, and who would have denied it.

    `shadow` names the shadow limits that would have denied it. `saved` is the reservation as the records have it;
    None if they do not have it.
    """

    reservation: Reservation
    lesson: Lesson | None = None
    shadow: tuple[str, ...] = ()
    saved: Reservation | None = None


class Leases:
    """Keep the open reservations of one shard by id. Growing and renewing go through a queue: no stream waits."""

    def __init__(
        self,
        counters: Counters,
        clock: SharedClock,
        ttl_s: float,
        *,
        room: QueueRoom,
        on_lost: Callable[[str, int], None],
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._open: dict[ReservationId, Lease] = {}
        self._counters = counters
        self._queued: set[ReservationId] = set()
        self._renewals: DeliveryQueue[Reservation] = DeliveryQueue(RENEWALS, self._carry_out, on_lost, room=room)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Return how many renewals are not carried out yet."""
        return len(self._renewals)

    def __iter__(self) -> Iterator[Reservation]:
        return iter([opened.reservation for opened in self._open.values()])

    def add(self, opened: Lease) -> None:
        """Add a lease. A reservation that was admitted locally is told to the counters."""
        self._open[opened.reservation.id] = opened
        if opened.reservation.local:
            self._put(opened.reservation)

    def unsaved(self, admitted_before: datetime) -> list[Reservation]:
        """Return reservations admitted before an instant that the records do not have as they are now."""
        return [
            opened.reservation
            for opened in self._open.values()
            if opened.saved is None or opened.saved.extra_output < opened.reservation.extra_output
            if opened.reservation.admitted_at < admitted_before
        ]

    def saved(self, reservation: Reservation) -> bool:
        """Remember that the records have a reservation as given. Return whether it is open here."""
        opened = self._open.get(reservation.id)
        if opened is not None:
            self._open[reservation.id] = replace(opened, saved=reservation)
        return opened is not None

    def save_again(self) -> None:
        """Forget that the records have any of these."""
        self._open = {each: replace(opened, saved=None) for each, opened in self._open.items()}

    def retry(self) -> None:
        """Try at once what waits for its next attempt: the counters may be back."""
        self._renewals.retry()

    def renew(self, reservations: Sequence[Reservation]) -> None:
        """Tell the counters the state of these leases: they may have an older one."""
        for reservation in reservations:
            self._put(reservation)

    def grow(self, reservation: Reservation) -> None:
        """Replace a reservation by a larger one, and have the counters hold the difference."""
        opened = self._open.get(reservation.id)
        if opened is not None:
            self._renew(replace(opened, reservation=replace(reservation, deadline=self._deadline(opened))))

    def end(self, reservation: Reservation) -> Lease:
        """Remove a lease and return it with the reservation as given: it may have grown a last time."""
        opened = self._open.pop(reservation.id, None)
        if opened is None:
            return Lease(reservation)
        return opened if opened.reservation is reservation else replace(opened, reservation=reservation)

    async def run(self) -> None:
        """Renew until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewals.run())
            group.create_task(self._watch())

    def renew_due(self) -> int:
        """Renew the leases whose deadline comes near; return how many."""
        soon = self._clock.now().timestamp() + self._ttl_s * (1 - _RENEW_AFTER)
        due = [opened for opened in self._open.values() if opened.reservation.deadline < soon]
        for opened in due:
            longer = replace(opened.reservation, deadline=self._deadline(opened))
            self._renew(replace(opened, reservation=longer))
        return len(due)

    async def _carry_out(self, reservations: Sequence[Reservation]) -> None:
        # An ended reservation is not renewed: counters that had lost its end would take it for open.
        wanted = [self._open[r.id].reservation for r in reservations if r.id in self._open]
        try:
            if wanted:
                await self._counters.renew(wanted)
        except StoreError as error:
            if not error.transient:  # the queue drops them: they may be queued again
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
        """Queue a renewal. Its state is read when its turn comes, so a lease that grows often waits only once."""
        if reservation.id not in self._queued and self._renewals.put(reservation):
            self._queued.add(reservation.id)

    def _deadline(self, opened: Lease) -> float:
        # Never an earlier deadline, even if the clock is put back: that renewal would count as overtaken.
        return max(opened.reservation.deadline, self._clock.now().timestamp() + self._ttl_s)

    async def _watch(self) -> None:
        while True:
            step = self._clock.next_step()
            if renewed := self.renew_due():
                _log.debug("leases renewed", extra={"reservations": renewed})
            await happens_within(step, self._ttl_s * _RENEW_AFTER / 2)
