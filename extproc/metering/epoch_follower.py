"""Follow the epochs of the counters: register in each new one, and have it rebuilt.

An epoch of a partition begins when its counters may have lost anything, with nothing in them. Each replica
restores there what it answers for; then it registers, and its calls count in the new epoch (shard.py). Then the
epoch is rebuilt (rebuild.py), and the fence in front of the ledger opens.
"""

import asyncio
import logging
from collections.abc import Sequence

from extproc.core.quota import partitions
from extproc.metering.hold_saver import HoldSaver
from extproc.metering.membership import Membership
from extproc.metering.rebuild import Rebuild
from extproc.metering.shard import Shard
from extproc.metering.shards import Shards
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.epochs import CounterStore, Epoch
from extproc.timing.events import happens_within
from extproc.timing.in_parallel import in_parallel
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 0.25


class EpochFollower:
    """Keep this replica registered in the current epoch of every partition."""

    def __init__(
        self,
        counters: CounterStore,
        shards: Shards,
        saver: HoldSaver,
        rebuild: Rebuild,
        *,
        membership: Membership,
        metrics: Metrics,
        wanted: asyncio.Event,
        check_s: float,
    ) -> None:
        """Look at the epochs every `check_s` seconds, and whenever `wanted` is set."""
        self._counters = counters
        self._shards = shards
        self._saver = saver
        self._rebuild = rebuild
        self._membership = membership
        self._metrics = metrics
        self._wanted = wanted
        self._check_s = check_s
        self._failing = False

    async def start(self) -> bool:
        """Register this replica as alive, then `check`."""
        await self._saver.save()  # says that this replica saves, before others see that it is there
        await self._membership.heartbeat()
        return await self.check()

    async def run(self) -> None:
        """Follow until cancelled."""
        heartbeat_s = self._membership.options.heartbeat_s
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            for step, every_s in ((self._membership.heartbeat, heartbeat_s), (self._saver.save, _SAVE_EVERY_S)):
                group.create_task(periodically(step, every_s, expected=StoreError, on_failure=_postponed))

    async def check(self) -> bool:
        """Look at the epochs once; register and rebuild where needed. Return whether all reachable ones are ready.

        Raise `StoreError`, after all partitions that could be reached were served.
        """
        looked_at = _now()  # a process that is stopped from here on counts as one that has not looked
        epochs = await self._counters.epochs()
        faults: dict[int, StoreError] = {}
        by_shard = self._shards.by_epoch(epochs)
        young = self._rebuild.note_unready([epoch for epoch in epochs if not epoch.ready])
        for shard, own in by_shard.items():
            shard.write_fence.rebuilding(going_on=any(epoch in young for epoch in own))
        await in_parallel(self._take_part(shard, own, faults) for shard, own in by_shard.items())
        for shard, own in by_shard.items():
            if faults.keys().isdisjoint(epoch.partition for epoch in own):
                shard.looked(looked_at, own)
        reached = [epoch for epoch in epochs if epoch.partition not in faults]
        unready = [epoch for epoch in reached if not epoch.ready]
        self._metrics.unready(partitions.PARTITIONS - len(reached) + len(unready))
        if unready and await self._rebuild.rebuild(unready, faults):
            self._wanted.set()  # look again at once
        for fault in faults.values():
            raise fault
        return not unready

    async def _take_part(self, shard: Shard, epochs: Sequence[Epoch], faults: dict[int, StoreError]) -> None:
        """Register in the new ones of a shard's epochs; put a failure into `faults`."""
        try:
            await shard.register(epochs, self._membership.replica)
        except StoreError as error:
            faults.update((epoch.partition, error) for epoch in epochs)

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
