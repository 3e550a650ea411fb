"""Follow the epochs of the counters: register in each new one, and have it rebuilt.

An epoch of a partition begins when its counters may have lost anything, with nothing in them. Each replica
restores there what it holds, and what it has ended but not seen in the ledger; then it registers, and its calls
count in the new epoch. Then the epoch is rebuilt (rebuild.py), and the fence in front of the ledger opens.
"""

import asyncio
import logging
from collections.abc import Sequence

from extproc.core.quota import partitions
from extproc.metering.holdings import Holdings
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.membership import Membership
from extproc.metering.rebuild import Rebuild, in_parallel, of_partition
from extproc.metering.settler import Settler
from extproc.metering.shards import Part
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.epochs import CounterStore, Epoch
from extproc.timing.events import happens_within
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 1.0


class EpochFollower:
    """Keep this replica registered in the current epoch of every partition."""

    def __init__(
        self,
        counters: CounterStore,
        holdings: Holdings,
        settler: Settler,
        writer: LedgerWriter,
        rebuild: Rebuild,
        *,
        membership: Membership,
        fence: WriteFence,
        metrics: Metrics,
        wanted: asyncio.Event,
        check_s: float,
    ) -> None:
        """Look at the epochs every `check_s` seconds, and whenever `wanted` is set."""
        self._counters = counters
        self._holdings = holdings
        self._settler = settler
        self._writer = writer
        self._rebuild = rebuild
        self._membership = membership
        self._fence = fence
        self._metrics = metrics
        self._wanted = wanted
        self._check_s = check_s
        self._registered: dict[int, str] = {}
        self._failing = False

    async def start(self) -> bool:
        """Register this replica as alive, then `check`."""
        await self._membership.heartbeat()
        return await self.check()

    async def run(self) -> None:
        """Follow until cancelled."""
        heartbeat_s = self._membership.options.heartbeat_s
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            for step, every_s in (
                (self._membership.heartbeat, heartbeat_s),
                (self._holdings.save, _SAVE_EVERY_S),
            ):
                group.create_task(periodically(step, every_s, expected=StoreError, on_failure=_postponed))

    async def check(self) -> bool:
        """Look at the epochs once; register and rebuild where needed. Return whether all reachable ones are ready.

        Raise `StoreError`, after all partitions that could be reached were served.
        """
        looked_at = _now()  # a process that is stopped from here on counts as one that has not looked
        epochs = await self._counters.epochs()
        faults: dict[int, StoreError] = {}
        new = [epoch for epoch in epochs if self._registered.get(epoch.partition) != epoch.id]
        if new:
            await in_parallel(self._register(part, own, faults) for part, own in self._by_part(new).items())
        reached = [epoch for epoch in epochs if epoch.partition not in faults]
        self._tell_the_fence(epochs, faults, looked_at)
        unready = [epoch for epoch in reached if not epoch.ready]
        self._metrics.unready(partitions.PARTITIONS - len(reached) + len(unready))
        if unready and await self._rebuild.rebuild(unready, faults):
            self._wanted.set()  # look again at once
        if new:
            self._holdings.retry()
        for fault in faults.values():
            raise fault
        return not unready

    def _tell_the_fence(self, epochs: Sequence[Epoch], faults: dict[int, StoreError], looked_at: float) -> None:
        young = self._rebuild.note_unready([epoch for epoch in epochs if not epoch.ready])
        looked = [
            part
            for part, own in self._by_part(epochs).items()
            if faults.keys().isdisjoint(epoch.partition for epoch in own)
        ]
        self._fence.looked(looked, looked_at, {self._part_of(epoch) for epoch in young})

    async def _register(self, part: Part, epochs: Sequence[Epoch], faults: dict[int, StoreError]) -> None:
        """Register in the epochs of one part of the counters; put a failure into `faults`."""
        try:
            async with self._settler.paused(part):
                await self._settler.take_back({epoch.partition for epoch in epochs})
                await in_parallel(self._register_in(epoch) for epoch in epochs)
        except StoreError as error:
            faults.update((epoch.partition, error) for epoch in epochs)

    async def _register_in(self, epoch: Epoch) -> None:
        await self._counters.restore(epoch, self._holdings.to_restore(epoch.partition))
        # Others may have found these in the journal; if they were the last to look, nobody takes them out later.
        unended = of_partition(epoch, self._settler.unended())
        outcomes = await self._writer.outcomes([r.id for r in unended], [epoch.partition])
        await self._rebuild.take_out(epoch, unended, outcomes)
        await self._counters.register(epoch, self._membership.replica)
        self._registered[epoch.partition] = epoch.id
        self._holdings.renew_all(epoch.partition)

    def _by_part(self, epochs: Sequence[Epoch]) -> dict[Part, list[Epoch]]:
        by_part: dict[Part, list[Epoch]] = {}
        for epoch in epochs:
            by_part.setdefault(self._part_of(epoch), []).append(epoch)
        return by_part

    def _part_of(self, epoch: Epoch) -> Part:
        return epoch.partition if self._counters.apart else None

    async def _follow(self) -> None:
        while True:
            self._wanted.clear()
            try:
                ready = await self.check()
            except StoreError as error:
                self._report(str(error))
                ready = True  # no need to hurry
            else:
                self._report("")
            if await happens_within(self._wanted, self._check_s if ready else self._check_s / 5):
                await asyncio.sleep(self._check_s / 25)  # many refused requests make one look

    def _report(self, error: str) -> None:
        """Log when looking fails, and when it works again: not at every look."""
        if bool(error) is not self._failing:
            if error:
                _log.warning("redis: epochs can't be followed: nothing is rebuilt", extra={"error": error})
            else:
                _log.warning("redis: epochs are followed again")
        self._failing = bool(error)


def _postponed(error: StoreError) -> None:
    _log.debug("failed: it will be repeated", extra={"error": str(error)})


def _now() -> float:
    return asyncio.get_running_loop().time()
