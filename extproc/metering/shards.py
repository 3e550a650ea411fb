"""Find the shard that counts a tenant, and run all shards side by side: none waits for another."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.request.identity import TenantId
from extproc.metering.shard import Shard
from extproc.ports.counters import Closing
from extproc.ports.epochs import Epoch


class Shards:
    """Hold the shards of this replica."""

    def __init__(self, by_partition: Mapping[int, Shard]) -> None:
        """Take the shard of each partition. Where all partitions fail together, it is the same one."""
        self._by_partition = by_partition
        self._all = tuple(dict.fromkeys(by_partition.values()))

    def of(self, tenant: TenantId) -> Shard:
        """Return the shard that counts a tenant."""
        return self._by_partition[partition_of(tenant)]

    def partitions_of(self, reservations: Iterable[Reservation]) -> set[int]:
        """Return the partitions that count some reservations."""
        return {partition_of(reservation.identity.tenant) for reservation in reservations}

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._all)

    def by_epoch(self, epochs: Sequence[Epoch]) -> dict[Shard, list[Epoch]]:
        """Group epochs by the shard that they are of."""
        found: dict[Shard, list[Epoch]] = {}
        for epoch in epochs:
            found.setdefault(self._by_partition[epoch.partition], []).append(epoch)
        return found

    def of_epoch(self, epoch: Epoch) -> Shard:
        """Return the shard that an epoch is of."""
        return self._by_partition[epoch.partition]

    def save_again(self) -> None:
        """Have all leases saved again: the records may have lost them."""
        for shard in self:
            shard.leases.save_again()

    async def run(self) -> None:
        """Run all shards until cancelled."""
        async with asyncio.TaskGroup() as group:
            for shard in self:
                group.create_task(shard.run())

    async def end_for_others(self, closings: Iterable[Closing]) -> None:
        """End reservations that other processes left. When it returns, their entries wait in the journal.

        Each shard by itself: one that is away delays no other. Raise `StoreError`, after all shards were tried.
        """
        by_shard: dict[Shard, list[Closing]] = {}
        for closing in closings:
            by_shard.setdefault(self.of(closing.reservation.identity.tenant), []).append(closing)
        ended = (shard.settler.close_now(own) for shard, own in by_shard.items())
        for error in await asyncio.gather(*ended, return_exceptions=True):
            if error is not None:
                raise error

    def unrecorded(self) -> set[ReservationId]:
        """Return the reservations that ended here, and whose entry is not known to be in the ledger."""
        return set().union(*(shard.unrecorded() for shard in self))

    def held(self) -> set[ReservationId]:
        """Return the reservations that are open here, or that ended and are not known to be in the ledger."""
        return self.unrecorded().union(reservation.id for shard in self for reservation in shard.leases)

    @property
    def returned_at(self) -> float:
        """Return when this replica was last seen again after others took it for gone (loop time); else -inf."""
        return max(shard.takeover.returned_at for shard in self)

    @property
    def asked(self) -> int:
        """Return how many reservations were drafted so far."""
        return sum(shard.admission.asked for shard in self)

    def undecided_since(self) -> datetime | None:
        """Return the earliest instant of admission among the reservations that may still become leases."""
        return min((at for shard in self if (at := shard.admission.undecided_since()) is not None), default=None)

    def journalled_since(self) -> datetime | None:
        """Return the earliest admission among the reservations that are in the journal and not to be saved now."""
        return min(
            (at for shard in self if (at := shard.ledger_writer.journalled_since()) is not None), default=None
        )

    def unsaved(self, admitted_before: datetime) -> dict[Shard, list[Reservation]]:
        """Return the recorded reservations that this replica answers for, and that the records do not have."""
        found = {shard: shard.unsaved(admitted_before) for shard in self}
        return {shard: unsaved for shard, unsaved in found.items() if unsaved}
