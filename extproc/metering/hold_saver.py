"""Save holds in the records, in case this process and the counters are both lost.

The records also say up to when everything is saved. A reservation that is older, open and not saved was never
known as admitted by its process: nobody was served, and nobody is charged for it (takeover.py, rebuild.py).
"""

import asyncio
from datetime import datetime, timedelta
from typing import Final

from extproc.metering.shards import Shards
from extproc.ports.base import Clock
from extproc.ports.records import Records

# A takeover that has begun ends within this time: it waits for MongoDB.
_OTHERS_SAVE_WITHIN_S: Final = 10.0


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
        self._tidied_at = float("-inf")

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
        await self._tidy()

    async def _tidy(self) -> None:
        """Drop what others saved of this replica while they took it for gone, and what is over here by now.

        Without it, what was asked for and given back would be charged if counters and this replica were lost. Once
        at once, and once more when whoever was about to save has saved.
        """
        now, returned_at = asyncio.get_running_loop().time(), self._shards.returned_at
        due_at = returned_at if self._tidied_at < returned_at else returned_at + _OTHERS_SAVE_WITHIN_S
        if not self._tidied_at < due_at <= now:
            return
        saved = await self._records.saved()
        held = self._shards.held()
        over = [each.id for each in saved if each.replica == self._replica and each.id not in held]
        if over:
            await self._records.drop(over)
        self._tidied_at = now
