"""Declare the epochs of the counters: an epoch starts when counters were lost, and rebuilds them."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.alerts import AlertNotes
from extproc.ports.counters import Counters
from extproc.ports.generation import Generations
from extproc.ports.journal import Journal
from extproc.ports.presence import Presence


class Epoch(Struct, frozen=True):
    """Identify one epoch of a partition's counters. Until it is `ready`, the lost counts are being rebuilt."""

    partition: int
    id: str
    ready: bool

    def counts(self, tenant: TenantId) -> bool:
        """Tell whether a tenant's counters are in this epoch's partition."""
        return partition_of(tenant) == self.partition


class Used(Struct, frozen=True):
    """Hold the used amount of a bucket according to the ledger. `until` is the end of its window, seconds since
    the epoch.
    """

    tenant: TenantId
    key: str
    until: int
    amount: int


class Epochs(Protocol):
    """Start and rebuild the epochs of the counters.

    Every call raises `StoreError` and may be repeated. A call that takes an epoch raises `UnreadyError` if it is
    not (or no longer) the partition's current epoch.

    An epoch starts, empty and not ready, whenever the counters may have lost anything: keys are gone, or a server
    was restarted or replaced by another.
    """

    async def epochs(self) -> list[Epoch]:
        """Return the current epoch of each reachable partition, in order. Start an epoch if needed.

        Raise `StoreError` if no partition is reachable. Does not wait longer for a partition than the other calls
        do.
        """

    async def restore(self, epoch: Epoch, reservations: Sequence[Reservation]) -> None:
        """Hold open reservations, whatever the limits are. A reservation that the epoch knows, open or ended,
        stays as it is.
        """

    async def register(self, epoch: Epoch, replica: str) -> None:
        """Register the replica: it has restored all its reservations, and may now count in this epoch."""

    async def registered(self, epoch: Epoch) -> set[str]:
        """Return the replicas that registered."""

    async def left_open(self, epoch: Epoch) -> list[Reservation]:
        """Return reservations that were open when the previous epoch ended, if still known.

        Leaves out the hits of routes. Such hits are not in the ledger, so nobody knows which of them were charged.
        """

    async def still_open(self, epoch: Epoch) -> list[Reservation]:
        """Return the reservations that are open in the epoch."""

    async def forget(self, epoch: Epoch, ended: Sequence[tuple[Reservation, Outcome]]) -> None:
        """Give back the holds of reservations that ended earlier. Charge nothing; remember their outcomes."""

    async def install(self, epoch: Epoch, used: Sequence[Used]) -> None:
        """Set the used amounts of buckets, before the epoch is ready. A second call sets the same amounts."""

    async def counted(self, epochs: Sequence[Epoch]) -> list[Used]:
        """Return what is used of all buckets of epochs that are ready. Reads all keys of a server, in steps.

        What is charged meanwhile may or may not be included. Raise `UnreadyError` if one of the epochs is not
        ready, or no longer current.
        """

    async def counted_before(self, epochs: Sequence[Epoch]) -> list[Used]:
        """Return what was used when the epochs before these ended, as far as it is still known."""

    async def complete(self, epoch: Epoch) -> None:
        """Make the epoch ready: everything is rebuilt. The remains of earlier epochs are deleted some time
        later.
        """


class CounterStore(Counters, Journal, Epochs, Presence, Generations, AlertNotes, Protocol):
    """Combine counters, journal, epochs, presence and the ledger's generation in one store."""
