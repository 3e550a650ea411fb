"""Save holds in the records, in case this process and the counters are both lost.

The records also say up to when everything is saved. A reservation that is older, open and not saved was never
known as admitted by its process: nobody was served, and nobody is charged for it (takeover.py, rebuild.py).
"""

from datetime import datetime, timedelta

from extproc.metering.shards import Shards
from extproc.ports.base import Clock
from extproc.ports.records import Records


class HoldSaver:
    """Save the reservations that this process answers for, once they are some time old."""

    def __init__(self, replica: str, shards: Shards, records: Records, clock: Clock, save_after_s: float) -> None:
        """Save reservations in the records once they are `save_after_s` seconds old."""
        self._replica = replica
        self._shards = shards
        self._records = records
        self._clock = clock
        self._save_after_s = save_after_s
        self._asked = -1
        self._asked_by: datetime | None = None  # all of them were drafted by then; None: that is recorded

    async def save(self) -> None:
        """Save the state of all that is old enough and not saved yet, and record that. Raise `StoreError`."""
        now = self._clock.now()
        before = now - timedelta(seconds=self._save_after_s)
        unsaved, asked = self._shards.unsaved(before), self._shards.asked
        until = min(before, self._shards.undecided_since() or before, self._shards.journalled_since() or before)
        if unsaved:
            await self._records.save([each for own in unsaved.values() for each in own])
            recorded = [each for shard, own in unsaved.items() for each in shard.saved(own)]
            if recorded:
                await self._records.drop(recorded)
        if asked != self._asked:
            self._asked, self._asked_by = asked, now
        if self._asked_by is not None:
            await self._records.note_saved_until(self._replica, until)
            if until > self._asked_by:  # an idle replica has nothing more to say
                self._asked_by = None
