"""Save holds in the records, in case this process and the counters are both lost."""

from datetime import timedelta

from extproc.metering.shards import Shards
from extproc.ports.base import Clock
from extproc.ports.records import Records


class HoldSaver:
    """Save the reservations that this process answers for, once they are some time old."""

    def __init__(self, shards: Shards, records: Records, clock: Clock, save_after_s: float) -> None:
        """Save reservations in the records once they are `save_after_s` seconds old."""
        self._shards = shards
        self._records = records
        self._clock = clock
        self._save_after_s = save_after_s

    async def save(self) -> None:
        """Save the state of all that is old enough and not saved yet. Raise `StoreError`."""
        unsaved = self._shards.unsaved(self._clock.now() - timedelta(seconds=self._save_after_s))
        if not unsaved:
            return
        await self._records.keep([each for own in unsaved.values() for each in own])
        recorded = [each for shard, own in unsaved.items() for each in shard.saved(own)]
        if recorded:
            await self._records.drop(recorded)
