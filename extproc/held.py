"""The reservations that this process holds: kept alive as long as their streams, and grown with them.

A reservation that nobody renews expires and is charged as held. So whoever holds one renews it, well before its
deadline: only what a process left behind expires.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from extproc.core.quota import Reservation, ReservationId
from extproc.estimator import Lesson
from extproc.outbox import Outbox, OutboxOptions
from extproc.ports import Clock, Counters

_log = logging.getLogger(__name__)
# A deadline is moved when so much of the time to live has passed: twice more may be missed.
_RENEW_AFTER = 1 / 3


@dataclass(frozen=True, slots=True)
class Open:
    """A reservation as it is held now, and what is to be known when it ends."""

    reservation: Reservation
    lesson: Lesson | None = None
    shadow: tuple[str, ...] = ()


class Held:
    """Open reservations by id. Growing and renewing go through a queue: no stream waits for them."""

    def __init__(
        self, counters: Counters, clock: Clock, ttl_s: float, on_lost: Callable[[str, int], None]
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._open: dict[ReservationId, Open] = {}
        self._renewals: Outbox[Reservation] = Outbox(OutboxOptions("renewals"), counters.renew, on_lost)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Renewals that are not carried out yet."""
        return len(self._renewals)

    def add(self, opened: Open) -> None:
        self._open[opened.reservation.id] = opened

    def grow(self, reservation: Reservation) -> None:
        """Holds what the reservation says now."""
        opened = self._open.get(reservation.id)
        if opened is not None:
            self._renew(replace(opened, reservation=replace(reservation, deadline=self._deadline())))

    def end(self, reservation: Reservation) -> Open:
        """Forgets it, and tells of it as it is given: where a stream broke off, it may have grown a last time."""
        opened = self._open.pop(reservation.id, None)
        return replace(opened, reservation=reservation) if opened is not None else Open(reservation)

    async def run(self) -> None:
        """Renews until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewals.run())
            group.create_task(self._watch())

    def renew_due(self) -> int:
        """Moves the deadlines that come near; says how many."""
        soon = self._deadline() - self._ttl_s * _RENEW_AFTER
        due = [opened for opened in self._open.values() if opened.reservation.deadline < soon]
        for opened in due:
            self._renew(replace(opened, reservation=replace(opened.reservation, deadline=self._deadline())))
        return len(due)

    def _renew(self, opened: Open) -> None:
        self._open[opened.reservation.id] = opened
        self._renewals.put(opened.reservation)

    def _deadline(self) -> float:
        return self._clock.now().timestamp() + self._ttl_s

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s * _RENEW_AFTER / 2)
            renewed = self.renew_due()
            if renewed:
                _log.debug("renewed", extra={"reservations": renewed})
