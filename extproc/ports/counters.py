"""Declares the counters: buckets and reservations."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Bucket
from extproc.core.quota.reservation import Admitted, Count, Denied, Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a reservation, as the counters see it: what was held goes back, `charges` (one a bucket) is used.

    `watched` says of which buckets thresholds are looked at. `entry` is what the ledger has to get: it waits in
    the journal from the same moment on. None: nothing is recorded.
    """

    reservation: Reservation
    outcome: Outcome
    charges: tuple[int, ...]
    watched: tuple[bool, ...] = ()
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Crossed:
    """A bucket whose use reached a threshold (percent of its amount), for the first time in its life."""

    bucket: Bucket
    used: int
    threshold: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an entry waits in the journal."""

    partition: int
    id: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The outcome that stands, the thresholds that this end crossed, and where its entry waits.

    Without a receipt there is no entry, or it is not known to wait (any more).
    """

    outcome: Outcome
    crossed: tuple[Crossed, ...] = ()
    receipt: Receipt | None = None


class Counters(Protocol):
    """Buckets and reservations. Each call is atomic per reservation and safe to repeat; all raise `StoreError`.

    `reserve` and `close` raise `UnreadyError` where the partition of a tenant is in an epoch that is not ready, or
    that this replica did not register in (see `Epochs`). `renew` asks only for that.

    A `part` is a partition where the partitions are `apart`: on servers of their own, which fail by themselves.
    None: all of them. Where they are not, they fail together, and there is no other part.
    """

    @property
    def apart(self) -> bool:
        """Whether what happens to one partition need not happen to the others."""

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        """Checks every bucket, then holds in all or in none.

        Repeating it with the same reservation id holds nothing more. A reservation that was closed already (a
        release that overtook it) is not opened again.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Lets open reservations live until their new deadline and hold what they now have to, never less.

        One that is not open is left alone; but one that is `local` and not known is held as it is, whatever the
        limits say. A renewal that was overtaken by a later one (with a later deadline) changes nothing.
        """

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        """Ends reservations; a second end of the same reservation changes nothing.

        Returns for each the outcome that stands, which is another one's where that came first; a repeated end
        returns what the first one did. An unknown reservation changes no bucket and puts no entry into the
        journal, unless it is `local`: then it is charged without having been held. `thresholds` are percentages,
        ascending.
        """

    async def overdue(self, now: datetime, at_most: int, part: int | None = None) -> list[Reservation]:
        """Reservations as they were granted whose deadline is before `now`, and that no replica ended."""

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        """The counts as they stand; (0, 0) for a bucket that nothing was counted in yet."""

    async def time(self) -> float:
        """The store's own clock, in seconds since the epoch: the one that all replicas can agree on."""

    async def warnings(self) -> list[str]:
        """What about the store's configuration endangers the counters, for people to read."""

    async def ping(self, part: int | None = None) -> None:
        """Returns when the store answers: for one partition, or for any."""

    async def aclose(self) -> None:
        """Gives connections back."""
