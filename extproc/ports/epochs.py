"""Declares the epochs of the counters: what begins when counters were lost, and what rebuilds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import TenantId
from extproc.ports.counters import Counters
from extproc.ports.journal import Journal


@dataclass(frozen=True, slots=True)
class Epoch:
    """A life of one partition's counters. Until it is `ready`, what the life before it lost is being rebuilt."""

    partition: int
    id: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Used:
    """What is used of a bucket, by the ledger. `until` is the end of its window, seconds since the epoch."""

    tenant: TenantId
    key: str
    until: int
    amount: int


class Epochs(Protocol):
    """The lives of the counters.

    Every call raises `StoreError` and may be repeated; those that take an epoch raise `UnreadyError` where it is
    not the partition's current one (any more).

    An epoch begins, not ready, whenever its counters may have lost anything: keys that are gone, a server that was
    restarted or took over from another. It starts with nothing in it.
    """

    async def epochs(self) -> list[Epoch]:
        """The current epoch of every partition that can be reached, in order. Begins one where it has to.

        Raises where none can be. Does not wait for one for longer than its other calls go on without it.
        """

    async def restore(self, epoch: Epoch, reservations: Sequence[Reservation]) -> None:
        """Holds what is open, whatever the limits say. One that the epoch knows, open or ended, stays as it is."""

    async def register(self, epoch: Epoch, replica: str) -> None:
        """The replica has restored all that it holds. From now on it counts in this epoch."""

    async def registered(self, epoch: Epoch) -> set[str]:
        """The replicas that did."""

    async def left_open(self, epoch: Epoch) -> list[Reservation]:
        """Reservations that were open when the epoch before was left, as far as they are still known.

        Without hits (of routes): the ledger has none of them, so nobody knows which were charged.
        """

    async def still_open(self, epoch: Epoch) -> list[Reservation]:
        """The reservations that are open in the epoch."""

    async def forget(self, epoch: Epoch, ended: Sequence[tuple[Reservation, Outcome]]) -> None:
        """These had ended before: gives back what they hold, charges nothing, remembers their outcome."""

    async def install(self, epoch: Epoch, used: Sequence[Used]) -> None:
        """Sets what is used of buckets. Only before the epoch is ready; whoever does it twice sets the same."""

    async def complete(self, epoch: Epoch) -> None:
        """Everything is rebuilt: the epoch is ready. What is left of earlier ones is cleared, some time."""


class CounterStore(Counters, Journal, Epochs, Protocol):
    """Counters and what belongs to them, as one store has it."""
