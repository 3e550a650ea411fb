"""Take over what a dead replica left in one shard: its entries go to the ledger, its open holds into the records.

Each replica notes in the counters' store, four times a second, that it is here. A replica that was not noted for
`gone_s` seconds is dead or stands still. One of the others then saves what it left open, and writes what it left
in the journal: from now on the counters may be lost too. All of it is safe to repeat, and safe if the replica goes
on: an entry has the id of its reservation, and whoever ends a reservation first ends it.

A reservation that is open although its replica was never told so was not served. It is released: the replica had
recorded up to when everything that it answers for is saved (hold_saver.py), and this one is older and is not.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from extproc.core.quota.drafting import is_recorded
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.metering.journal_sweeper import JournalSweeper
from extproc.metering.leases import Leases
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.presence import Presence
from extproc.metering.settler import Settler
from extproc.metering.write_fence import WriteFence
from extproc.ports.base import ShardId, StoreError
from extproc.ports.epochs import CounterStore
from extproc.ports.records import Records
from extproc.timing.periodic import periodically

_log = logging.getLogger(__name__)
# Younger entries may be those of a replica that was not seen yet.
_LEFT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class TakeoverOptions:
    """Set the durations of a takeover, in seconds.

    A replica notes every `look_s` that it is here. It is gone when it was not noted for `gone_s`, which must be
    more than a write fence stays open without a look. The replicas that are here act `turn_s` apart: each of them
    only if those before it did not.
    """

    look_s: float = 0.25
    gone_s: float = 1.25
    turn_s: float = 0.3


class Takeover:
    """Note that this replica is here, and take over what replicas that are gone left in one shard."""

    def __init__(
        self,
        presence: Presence,
        shard_id: ShardId,
        counters: CounterStore,
        records: Records,
        *,
        leases: Leases,
        settler: Settler,
        writer: LedgerWriter,
        sweeper: JournalSweeper,
        fence: WriteFence,
        options: TakeoverOptions,
    ) -> None:
        self._presence = presence
        self._shard_id = shard_id
        self._counters = counters
        self._records = records
        self._leases = leases
        self._settler = settler
        self._writer = writer
        self._sweeper = sweeper
        self._fence = fence
        self._options = options
        self._due: list[str] = []
        self._looked_at = float("inf")
        # When this replica was seen again after others took it for gone, loop time.
        self.returned_at = float("-inf")
        self._looked = asyncio.Event()

    async def run(self) -> None:
        """Look, and take over, until cancelled.

        A takeover waits for MongoDB. This replica goes on to note that it is here meanwhile.
        """

        def not_seen(error: StoreError) -> None:
            self._presence.not_seen()
            self._due = []
            _log.debug("redis: replicas can't be seen: nothing is taken over", extra={"error": str(error)})

        def not_taken_over(error: StoreError) -> None:
            _log.warning("replica is gone: nothing is taken over yet", extra={"error": str(error)})

        async def after_a_look() -> None:
            await self._looked.wait()
            self._looked.clear()
            await self.take_over_due()

        look_s = self._options.look_s
        async with asyncio.TaskGroup() as group:
            looks = periodically(self.look, look_s, expected=StoreError, on_failure=not_seen, at_once=True)
            group.create_task(looks)
            group.create_task(periodically(after_a_look, 0, expected=StoreError, on_failure=not_taken_over))

    async def look(self) -> None:
        """Note that this replica is here, and see which others are. Raise `StoreError`."""
        ages_s = await self._counters.seen(self._presence.replica, self._shard_id)
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > self._options.gone_s:
            self.returned_at = now
            self._was_taken_over()
        self._looked_at = now
        self._presence.looked(ages_s, self._options.gone_s)
        my_turn_s = self._presence.place() * self._options.turn_s
        self._due = [each for each, age_s in ages_s.items() if age_s > self._options.gone_s + my_turn_s]
        self._looked.set()

    async def take_over_due(self) -> None:
        """Take over from those that are gone, if it is this replica's turn. Raise `StoreError`."""
        while self._due and self._fence.is_open():  # a rebuild has all of it in view
            gone = self._due[0]
            await self.take_over(gone)
            self._due = [each for each in self._due if each != gone]  # a look meanwhile has listed it again

    async def take_over(self, gone: str) -> None:
        """Write and save what a replica left. Raise `StoreError`; then it is tried again."""
        await self._records.abort_writes_of(gone)
        # This order: what was saved before the mark is found as saved.
        marks = await self._records.saved_until()
        left = [each for each in await self._counters.opened_by(gone, self._shard_id) if is_recorded(each)]
        saved = await self._records.which_saved([each.id for each in left])
        unanswered = never_answered(left, saved, marks)
        for each in left:
            if each.id in unanswered:
                self._settler.undo(each)
        answered = [each for each in left if each.id not in unanswered]
        if answered:
            await self._records.save(answered)
        entries = await self._sweeper.sweep_all(_LEFT_S)
        await self._counters.forget_replica(gone, self._shard_id)
        if entries or left:
            _log.warning(
                "replica is gone: its entries are written, and its open reservations are saved",
                extra={"replica": gone, "entries": entries, "saved": len(answered), "released": len(unanswered)},
            )

    def _was_taken_over(self) -> None:
        """Have everything dropped from the records when it ends: another replica may have saved it there."""
        self._writer.perhaps_saved([*(each.id for each in self._leases), *self._settler.ids()])


def never_answered(
    left: Sequence[Reservation], saved: set[ReservationId], saved_until: Mapping[str, datetime]
) -> set[ReservationId]:
    """Return the open reservations that their replicas, now dead, never knew as admitted: nobody was served.

    `saved_until`, by replica: each reservation that the replica answers for and that was admitted before is saved,
    or its entry is in the journal or the ledger. A replica of version 0.1 does not say.
    """
    return {
        each.id
        for each in left
        if each.id not in saved
        and (until := saved_until.get(each.replica)) is not None
        and each.admitted_at < until
    }
