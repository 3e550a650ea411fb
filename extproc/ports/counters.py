"""Declare the counters: buckets and reservations."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Bucket
from extproc.core.quota.reservation import Admitted, Count, Denied, Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.base import ShardId


class Closing(Struct, frozen=True):
    """Describe the end of a reservation for the counters: its hold goes back, and `charges` (one per bucket) are
    used.

    `watched` selects the buckets whose thresholds are checked. `entry` is for the ledger: it is put into the
    journal in the same atomic step. None: nothing is recorded.
    """

    reservation: Reservation
    outcome: Outcome
    charges: tuple[int, ...]
    watched: tuple[bool, ...] = ()
    entry: Entry | None = None


class Crossed(Struct, frozen=True):
    """Report a bucket whose usage reached a threshold (percent of its amount) for the first time."""

    bucket: Bucket
    used: int
    threshold: int


class Receipt(Struct, frozen=True):
    """Name the place of an entry in the journal."""

    partition: int
    id: str


class Closed(Struct, frozen=True):
    """Hold the outcome that counts, the thresholds that this end crossed, and the place of the entry in the
    journal.

    Without a receipt there is no entry, or it is not known to be in the journal (any more).
    """

    outcome: Outcome
    crossed: tuple[Crossed, ...] = ()
    receipt: Receipt | None = None


class Counters(Protocol):
    """Count buckets and reservations. Each call is atomic per reservation and safe to repeat. All raise
    `StoreError`.

    `reserve` and `close` raise `UnreadyError` if the epoch of the tenant's partition is not ready, or if this
    replica did not register in it (see `Epochs`). `renew` raises it only if the replica is not registered.

    A shard is named by its `ShardId`; the default is the one shard of counters whose partitions fail together.
    """

    @property
    def independent(self) -> bool:
        """Return whether the partitions fail independently."""

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        """Check every bucket, then hold in all or in none.

        The caller bounds the time that it takes. A second call with the same reservation id holds nothing more. A
        reservation that is already closed (its release arrived first) is not opened again.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Extend open reservations to their new deadline and raise their holds to the new values, never lower.

        A reservation that is not open is left alone, with one exception: a `local` one that is unknown is held as
        it is, whatever the limits are. A renewal that arrives after a later one (with a later deadline) changes
        nothing.
        """

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        """End reservations. A second end of the same reservation changes nothing.

        Return the outcome of each reservation; if another end came first, it is the outcome of that one. An
        unknown reservation changes no bucket and puts no entry into the journal, unless it is `local`: then it is
        charged although it was never held. `thresholds` are percentages in ascending order.
        """

    async def overdue(self, now: datetime, at_most: int, shard_id: ShardId = None) -> list[Reservation]:
        """Return reservations, as granted, whose deadline is before `now` and that no replica has ended."""

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        """Return the current counts; (0, 0) for a bucket in which nothing was counted yet."""

    async def time(self) -> float:
        """Return the time of the store's clock in seconds since the epoch, so that all replicas use the same
        clock.
        """

    async def warnings(self) -> list[str]:
        """Return readable warnings about settings of the store that endanger the counters."""

    async def ping(self, shard_id: ShardId = None) -> None:
        """Return when the store answers: the one of the given partition, or any."""

    async def aclose(self) -> None:
        """Close the connections."""
