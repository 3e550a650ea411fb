"""Rebuild the counters of a new epoch from the ledger, the journal and all open holds, before they admit.

When every replica that is here has registered in the epoch, a replica

    1. restores what dead replicas held: as saved in the records, or still to be found of the epoch before, but for
       what they never knew as admitted (takeover.py);
    2. takes out what has ended, by the ledger or by the journal;
    3. sets what is used to the sum of the ledger and the journal, and declares the epoch ready. Where the ledger
       was restored from a backup, what the epoch before had counted is used, if that is more.

All replicas may do this at once: restoring knows reservations by their id, and what is set is the same for all. No
reservation is ended before the epoch is ready, so the journal gets no new entries; entries that move from it to
the ledger meanwhile are noticed. The rebuild never waits for the ledger to be written.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from msgspec.structs import replace

from extproc.core.quota.drafting import is_recorded
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.metering.membership import Membership
from extproc.metering.restored_ledger import RestoredLedger, larger
from extproc.metering.shards import Shards
from extproc.metering.takeover import never_answered
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError, UnreadyError
from extproc.ports.epochs import CounterStore, Epoch, Used
from extproc.ports.journal import Journalled
from extproc.ports.records import Records
from extproc.timing.in_parallel import in_parallel

T = TypeVar("T")
_Outcomes = dict[ReservationId, Outcome]
_Waiting = dict[ReservationId, Journalled]  # what waits in the journal
_Faults = dict[int, StoreError]  # by partition
_Marks = dict[str, datetime]  # by replica: up to when it had saved what it answers for

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """Set the durations of a rebuild, in seconds.

    It waits at most `barrier_s` for replicas that are here and do not register; `unseen_s` for replicas that were
    not seen since the counters are back, which must be more than a write fence stays open without a look; and not
    at all for those that are known to be gone. Replicas begin `turn_s` apart, to spare the stores, and write
    nothing to the ledger for the first `still_s` of a rebuild.
    """

    barrier_s: float = 10.0
    unseen_s: float = 1.25
    turn_s: float = 1.0
    still_s: float = 20.0


class Rebuild:
    """Rebuild epochs that are not ready."""

    def __init__(
        self,
        counters: CounterStore,
        records: Records,
        shards: Shards,
        membership: Membership,
        restored: RestoredLedger,
        *,
        clock: Clock,
        metrics: Metrics,
        options: RebuildOptions | None = None,
    ) -> None:
        self._counters = counters
        self._records = records
        self._shards = shards
        self._membership = membership
        self._restored = restored
        self._clock = clock
        self._metrics = metrics
        self._options = options or RebuildOptions()
        self._unready_since: dict[str, float] = {}

    def note_unready(self, unready: Sequence[Epoch]) -> list[Epoch]:
        """Remember since when epochs are not ready. Return those for which the ledger is not written to yet."""
        now = _now()
        self._unready_since = {epoch.id: self._unready_since.get(epoch.id, now) for epoch in unready}
        return [epoch for epoch in unready if now - self._unready_since[epoch.id] < self._options.still_s]

    async def rebuild(self, epochs: Sequence[Epoch], faults: _Faults) -> bool:
        """Rebuild the epochs that every replica has registered in; return whether there were any.

        A failure of one epoch goes into `faults`, and delays no other.
        """
        alive = await self._membership.alive()
        registered = await _each(epochs, self._counters.registered, faults)
        marks = await self._records.saved_until()  # before what is saved is read
        complete = [
            epoch
            for epoch, there in registered.items()
            if self._is_my_turn(epoch, there) and not self._waits(epoch, alive - there, marks)
        ]
        if not complete:
            return False
        registered_everywhere: set[str] = set.intersection(*[registered[epoch] for epoch in complete])
        started = _now()
        if missing := sorted(alive - registered_everywhere):
            _log.warning("redis: rebuilding without replicas that did not register", extra={"replicas": missing})
        for replica in missing:  # nothing that it has begun to write may reach the ledger after it was read
            await self._records.abort_writes_of(replica)
        journalled = await _each(complete, lambda epoch: self._counters.journalled(epoch.partition), faults)
        waiting = {entry.id: entry for entries in journalled.values() for entry in entries}
        saved = [reservation for reservation in await self._records.saved() if is_recorded(reservation)]
        ended = await _each(list(journalled), lambda epoch: self._restore(epoch, saved, marks, waiting), faults)
        used, complete = await self._used(list(ended), waiting, faults)
        await _each(complete, lambda epoch: self._complete(epoch, used), faults)
        _log.warning(
            "redis: counters were rebuilt from the ledger: decisions resume",
            extra={"partitions": len(complete), "buckets": len(used), "seconds": round(_now() - started, 3)},
        )
        # Requests are served now. What has its entry only in the journal stays saved: that may be lost as well.
        written = [each for ids in ended.values() for each in ids if each not in waiting]
        if written:
            with suppress(StoreError):  # else the next rebuild drops them
                await self._records.drop(written)
        return True

    async def _take_out(
        self, epoch: Epoch, held: Sequence[Reservation], outcomes: _Outcomes
    ) -> list[ReservationId]:
        """Take reservations that have ended out of an epoch; return their ids. Raise `StoreError`."""
        ended = [(reservation, outcomes[reservation.id]) for reservation in held if reservation.id in outcomes]
        if ended:
            await self._counters.forget(epoch, ended)
        return [reservation.id for reservation, _ in ended]

    def _is_my_turn(self, epoch: Epoch, registered: set[str]) -> bool:
        """Tell whether the replicas before this one had their time to rebuild the epoch."""
        before = sum(replica < self._membership.replica for replica in registered)
        return self._waited_s(epoch) >= before * self._options.turn_s

    def _waits(self, epoch: Epoch, missing: set[str], marks: _Marks) -> bool:
        """Tell whether any of the replicas that have not registered is still waited for."""
        return any(self._waits_for(epoch, replica, marks) for replica in missing)

    def _waits_for(self, epoch: Epoch, replica: str, marks: _Marks) -> bool:
        waited_s, barrier_s = self._waited_s(epoch), self._options.barrier_s
        if replica not in marks:  # version 0.1 has no mark, and is never seen
            return waited_s < barrier_s
        presence = self._shards.of_epoch(epoch).presence
        return presence.awaits(replica, waited_s, barrier_s=barrier_s, unseen_s=self._options.unseen_s)

    def _waited_s(self, epoch: Epoch) -> float:
        return _now() - self._unready_since.setdefault(epoch.id, _now())

    async def _restore(
        self, epoch: Epoch, saved: Sequence[Reservation], marks: _Marks, waiting: _Waiting
    ) -> list[ReservationId]:
        """Restore what dead replicas held; return the ids of all open reservations that have ended."""
        registered = await self._counters.registered(epoch)
        # A registered replica has restored what it really holds: its other reservations have ended.
        left = await self._counters.left_open(epoch)
        unanswered = never_answered(left, {each.id for each in saved}, marks)
        found = [*_of_partition(epoch, saved), *(r for r in left if r.id not in unanswered)]
        of_the_dead = [r for r in found if r.replica not in registered]
        ended = await self._outcomes(of_the_dead, waiting)
        # An ended one is not restored even for a moment: this replica may die before it takes it out again.
        open_ones = [self._with_time_to_renew(r) for r in of_the_dead if r.id not in ended]
        await self._counters.restore(epoch, open_ones)
        return [*ended, *await self._take_out_ended(epoch, waiting)]

    async def _take_out_ended(self, epoch: Epoch, waiting: _Waiting) -> list[ReservationId]:
        held = await self._counters.still_open(epoch)
        return await self._take_out(epoch, held, await self._outcomes(held, waiting))

    async def _outcomes(self, reservations: Sequence[Reservation], waiting: _Waiting) -> _Outcomes:
        """Return how those ended that are in the journal or the ledger."""
        ids = [reservation.id for reservation in reservations]
        found = {each: waiting[each].outcome for each in ids if each in waiting}
        others = [each for each in ids if each not in found]
        return found | (await self._records.outcomes(others) if others else {})

    def _with_time_to_renew(self, reservation: Reservation) -> Reservation:
        """Move the deadline so that its replica, if it lives after all, has time to renew it."""
        soonest = self._clock.now().timestamp() + self._options.barrier_s
        return replace(reservation, deadline=max(reservation.deadline, soonest))

    async def _used(
        self, epochs: Sequence[Epoch], waiting: _Waiting, faults: _Faults
    ) -> tuple[list[Used], list[Epoch]]:
        """Return what is used by the ledger and the journal, and the epochs that this is true for.

        Nothing of it is held as well. A detached write may arrive at the ledger even now: then look again.
        """
        now, unwritten = self._clock.now(), dict(waiting)
        await self._drop_written(unwritten)
        before = await self._restored.counted_before(epochs)
        while True:
            used = await self._records.used(now)
            late = await _each(epochs, lambda epoch: self._take_out_ended(epoch, waiting), faults)
            epochs = list(late)
            if not await self._drop_written(unwritten) and not any(late.values()):
                return larger(_with_entries(used, unwritten.values(), now), before), epochs

    async def _drop_written(self, unwritten: _Waiting) -> bool:
        """Drop the entries that are in the ledger by now; return whether there were any."""
        written = await self._records.outcomes(list(unwritten)) if unwritten else {}
        for each in written:
            del unwritten[each]
        return bool(written)

    async def _complete(self, epoch: Epoch, used: Sequence[Used]) -> None:
        try:
            await self._counters.install(epoch, [u for u in used if epoch.counts(u.tenant)])
            await self._counters.complete(epoch)
        except UnreadyError:
            return  # another replica was faster, or yet another epoch has begun: the next look will tell
        self._metrics.rebuilt()


def _of_partition(epoch: Epoch, reservations: Iterable[Reservation]) -> list[Reservation]:
    """Return the reservations in the epoch's partition."""
    return [r for r in reservations if epoch.counts(r.identity.tenant)]


async def _each(epochs: Sequence[Epoch], step: Callable[[Epoch], Awaitable[T]], faults: _Faults) -> dict[Epoch, T]:
    """Take a step with all epochs at once; return the results of those that did not fail."""
    done: dict[Epoch, T] = {}

    async def take(epoch: Epoch) -> None:
        try:
            done[epoch] = await step(epoch)
        except StoreError as error:
            faults[epoch.partition] = error

    await in_parallel(map(take, epochs))
    return {epoch: done[epoch] for epoch in epochs if epoch in done}


def _with_entries(used: Sequence[Used], unwritten: Iterable[Journalled], now: datetime) -> list[Used]:
    """Add the charges of entries to what is used of buckets whose window is not over."""
    sums = {(each.tenant, each.key): each for each in used}
    for entry in unwritten:
        for charge in entry.charges:
            if charge.until > now.timestamp():
                nothing = Used(entry.tenant, charge.key, charge.until, 0)
                known = sums.get((entry.tenant, charge.key), nothing)
                sums[entry.tenant, charge.key] = replace(known, amount=known.amount + charge.amount)
    return list(sums.values())


def _now() -> float:
    return asyncio.get_running_loop().time()
