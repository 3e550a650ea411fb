"""What the counters have lost is rebuilt, before anything is admitted on them again.

An epoch of a partition's counters begins with nothing in them. Each replica then

    1. restores what it holds there, and what it has ended but not seen in the ledger; then it registers;
    2. waits for the other replicas that are alive to do the same (or for `barrier_s`);
    3. restores what replicas held that are gone, as it is kept in the records or still to be found of the epoch
       before; and takes out again what is over, by the ledger or by what waits in the journal for it;
    4. sets what is used to what the ledger and the journal say, and declares the epoch ready.

All replicas may do 3 and 4 at once: restoring knows reservations by their id, and what is set is the same for all.
No end of a reservation is taken before the epoch is ready, so the journal gets nothing new, and what goes from it
to the ledger meanwhile is seen. Nobody waits for the ledger to be written.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from extproc.core.quota import partitions
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.metering.service import MeteringService
from extproc.metering.settler import Settler
from extproc.metering.shards import Part
from extproc.observe.metrics import Metrics
from extproc.ports.base import Clock, StoreError, UnreadyError
from extproc.ports.epochs import CounterStore, Epoch, Used
from extproc.ports.journal import Journalled
from extproc.ports.records import Records

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """Durations in seconds.

    Nothing is written to the ledger when the epoch was not looked at for `fresh_s`: this process may have been
    stopped for a while, and its counters rebuilt without it. A rebuild waits at most `barrier_s` for replicas that
    beat but do not register, which must be well more. A replica whose beat stands still for `gone_s` is gone. To
    spare the stores, the replicas begin to rebuild one after the other, `turn_s` apart, and write nothing to the
    ledger for `still_s` meanwhile.
    """

    check_s: float = 0.25
    beat_s: float = 2.0
    fresh_s: float = 2.0
    barrier_s: float = 10.0
    gone_s: float = 15.0
    turn_s: float = 1.0
    still_s: float = 20.0


class Rebuilder:
    """Follows the epochs; rebuilds. Also the books' gate."""

    def __init__(
        self,
        replica: str,
        epochs: CounterStore,
        records: Records,
        accounting: MeteringService,
        books: Settler,
        *,
        clock: Clock,
        metrics: Metrics,
        options: RebuildOptions | None = None,
    ) -> None:
        self._replica = replica
        self._epochs = epochs
        self._records = records
        self._accounting = accounting
        self._books = books
        self._clock = clock
        self._metrics = metrics
        self._options = options or RebuildOptions()
        self._registered: dict[int, str] = {}
        self._since: dict[str, float] = {}  # when an epoch that is not ready was first seen
        self._beats: dict[str, tuple[int, float]] = {}  # a replica's last beat, and when it was first seen
        self._beat_at = float("-inf")
        self._wanted = asyncio.Event()
        self._checked = asyncio.Event()
        self._checked_at: dict[Part, float] = {}
        self._rebuilding: set[Part] = set()
        self._released = False
        self._complaint = ""
        accounting.decider.on_unready = self._wanted.set
        books.guard(self)

    # ------------------------------------------------ the gate

    def is_open(self, part: Part) -> bool:
        fresh = _now() - self._checked_at.get(part, float("-inf")) <= self._options.fresh_s
        return self._released or (fresh and part not in self._rebuilding)

    async def passes(self, part: Part) -> None:
        while not self.is_open(part):
            self._checked.clear()
            await self._checked.wait()

    def release(self) -> None:
        self._released = True
        self._checked.set()

    # ------------------------------------------------ life

    async def start(self) -> bool:
        """Makes this replica known, and rebuilds what has to be. As `check`."""
        await self._beat()
        return await self.check()

    async def run(self) -> None:
        """Follows until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._repeat(self._beat, self._options.beat_s))
            group.create_task(self._repeat(self._accounting.keep, 1.0))

    async def leave(self) -> None:
        """This replica has ended and holds nothing any more. Raises `StoreError`."""
        await self._records.leave(self._replica)

    async def check(self) -> bool:
        """Looks at the epochs once, and does what there is to do. True: all that can be reached are ready.

        Raises `StoreError`, after all has been done that could be.
        """
        looked_at = _now()  # if this process is stopped from here on, it is as if it had not looked
        epochs = await self._epochs.epochs()
        faults: dict[int, StoreError] = {}
        new = [epoch for epoch in epochs if self._registered.get(epoch.partition) != epoch.id]
        if new:
            await _all(self._register(part, mine, faults) for part, mine in self._by_part(new).items())
        here = [epoch for epoch in epochs if epoch.partition not in faults]
        for part, mine in self._by_part(epochs).items():
            if faults.keys().isdisjoint(epoch.partition for epoch in mine):
                self._checked_at[part] = looked_at
        self._note([epoch for epoch in epochs if not epoch.ready])
        self._checked.set()
        unready = [epoch for epoch in here if not epoch.ready]
        self._metrics.unready(partitions.PARTITIONS - len(here) + len(unready))
        if unready:
            await self._rebuild(unready, faults)
        if new:
            self._accounting.retry()
        for fault in faults.values():
            raise fault
        return not unready

    def _by_part(self, epochs: Sequence[Epoch]) -> dict[Part, list[Epoch]]:
        of: dict[Part, list[Epoch]] = {}
        for epoch in epochs:
            of.setdefault(self._part_of(epoch), []).append(epoch)
        return of

    def _part_of(self, epoch: Epoch) -> Part:
        return epoch.partition if self._epochs.apart else None

    def _note(self, unready: Sequence[Epoch]) -> None:
        """Since when they are not ready; and what is rebuilt, for a while: the rest must not wait for ever."""
        now = _now()
        self._since = {epoch.id: self._since.get(epoch.id, now) for epoch in unready}
        young = (epoch for epoch in unready if now - self._since[epoch.id] < self._options.still_s)
        self._rebuilding = {self._part_of(epoch) for epoch in young}

    # ------------------------------------------------ registering

    async def _register(self, part: Part, epochs: Sequence[Epoch], faults: dict[int, StoreError]) -> None:
        """Registers in the epochs of one part of the counters; where that fails, says why in `faults`."""
        try:
            async with self._books.at_rest(part):
                await self._books.take_back({epoch.partition for epoch in epochs})
                await _all(self._register_in(epoch) for epoch in epochs)
        except StoreError as error:
            faults.update((epoch.partition, error) for epoch in epochs)

    async def _register_in(self, epoch: Epoch) -> None:
        await self._epochs.restore(epoch, self._accounting.to_restore(epoch.partition))
        # Others may have found these in the journal; if they were the last, nobody takes them out after this.
        unended = _of(epoch, self._books.unended())
        await self._forget(epoch, unended, await self._books.over([r.id for r in unended], [epoch.partition]))
        await self._epochs.register(epoch, self._replica)
        self._registered[epoch.partition] = epoch.id
        self._accounting.tell_again(epoch.partition)

    # ------------------------------------------------ rebuilding

    async def _rebuild(self, epochs: Sequence[Epoch], faults: dict[int, StoreError]) -> None:
        """What fails for one epoch is in `faults`, and none of the others waits for it."""
        alive = await self._alive()
        registered = await _each(epochs, self._epochs.registered, faults)
        complete = [epoch for epoch, there in registered.items() if self._nobody_is_missing(epoch, there, alive)]
        if not complete:
            return
        started = _now()
        journalled = await _each(complete, lambda epoch: self._epochs.journalled(epoch.partition), faults)
        waiting = {each.id: each for some in journalled.values() for each in some}
        kept = [r for r in await self._records.kept() if r.endpoint is not Endpoint.ROUTE]
        over = await _each(list(journalled), lambda epoch: self._restore_of_the_gone(epoch, kept, waiting), faults)
        # What only the journal has may be lost with it.
        written = [each for ids in over.values() for each in ids if each not in waiting]
        if written:
            await self._records.drop(written)
        used, complete = await self._used(list(over), waiting, faults)
        await _each(complete, lambda epoch: self._complete(epoch, used), faults)
        _log.warning(
            "counters were rebuilt from the ledger",
            extra={"partitions": len(complete), "buckets": len(used), "seconds": round(_now() - started, 3)},
        )
        self._wanted.set()  # look again at once

    async def _used(
        self, epochs: Sequence[Epoch], waiting: dict[ReservationId, Journalled], faults: dict[int, StoreError]
    ) -> tuple[list[Used], list[Epoch]]:
        """What is used by the ledger and by what waits for it, without anything that is held as well.

        And of which of the epochs. A write that was given up may arrive at the ledger even now: then it is looked
        at again.
        """
        now, unwritten = self._clock.now(), dict(waiting)
        await self._leave_out_what_is_written(unwritten)
        while True:
            used = await self._records.used(now)
            late = await _each(epochs, lambda epoch: self._take_out_what_is_over(epoch, waiting), faults)
            epochs = list(late)
            if not await self._leave_out_what_is_written(unwritten) and not any(late.values()):
                return _with(used, unwritten.values(), now), epochs

    async def _leave_out_what_is_written(self, unwritten: dict[ReservationId, Journalled]) -> bool:
        """Whether there was anything that is in the ledger by now."""
        written = await self._records.outcomes(list(unwritten)) if unwritten else {}
        for each in written:
            del unwritten[each]
        return bool(written)

    async def _alive(self) -> set[str]:
        return set(await self._records.beat(self._replica)) | {self._replica}

    def _nobody_is_missing(self, epoch: Epoch, registered: set[str], alive: set[str]) -> bool:
        """Whether everybody has registered, or was waited for long enough; and it is this replica's turn."""
        waited_s = _now() - self._since.setdefault(epoch.id, _now())
        missing, late = alive - registered, waited_s >= self._options.barrier_s
        if missing and late:
            _log.warning("rebuilding without replicas that don't register", extra={"replicas": len(missing)})
        turn_s = sorted(alive).index(self._replica) * self._options.turn_s
        return (late or not missing) and waited_s >= turn_s

    async def _restore_of_the_gone(
        self, epoch: Epoch, kept: Sequence[Reservation], waiting: dict[ReservationId, Journalled]
    ) -> list[ReservationId]:
        """Restores what replicas held that are gone; returns what of all that is open is over."""
        here = await self._epochs.registered(epoch)
        # Who registered has restored what it really holds: anything else of its is over.
        found = [*_of(epoch, kept), *await self._epochs.left_open(epoch)]
        gone = [r for r in found if r.replica not in here]
        known = await self._over(gone, waiting)
        # Nothing that is over, not even for a moment: this replica may fail before it takes anything out again.
        await self._epochs.restore(epoch, [self._in_time(r) for r in gone if r.id not in known])
        return [*known, *await self._take_out_what_is_over(epoch, waiting)]

    async def _take_out_what_is_over(
        self, epoch: Epoch, waiting: dict[ReservationId, Journalled]
    ) -> list[ReservationId]:
        held = await self._epochs.still_open(epoch)
        return await self._forget(epoch, held, await self._over(held, waiting))

    async def _over(
        self, reservations: Sequence[Reservation], waiting: dict[ReservationId, Journalled]
    ) -> dict[ReservationId, Outcome]:
        """How those of them ended that are in the journal or the ledger."""
        ids = [r.id for r in reservations]
        found = {each: waiting[each].outcome for each in ids if each in waiting}
        others = [each for each in ids if each not in found]
        return found | (await self._records.outcomes(others) if others else {})

    def _in_time(self, reservation: Reservation) -> Reservation:
        """With a deadline that leaves its replica the time to renew it, should it still be there."""
        soonest = self._clock.now().timestamp() + self._options.barrier_s
        return replace(reservation, deadline=max(reservation.deadline, soonest))

    async def _forget(
        self, epoch: Epoch, held: Sequence[Reservation], outcomes: dict[ReservationId, Outcome]
    ) -> list[ReservationId]:
        """Takes out of an epoch what is over."""
        over = [(r, outcomes[r.id]) for r in held if r.id in outcomes]
        if over:
            await self._epochs.forget(epoch, over)
        return [reservation.id for reservation, _ in over]

    async def _complete(self, epoch: Epoch, used: Sequence[Used]) -> None:
        mine = [each for each in used if partition_of(each.tenant) == epoch.partition]
        try:
            await self._epochs.install(epoch, mine)
            await self._epochs.complete(epoch)
        except UnreadyError:
            return  # another replica was faster, or yet another epoch has begun: the next look will tell
        self._metrics.rebuilt()

    # ------------------------------------------------ in the background

    async def _follow(self) -> None:
        while True:
            self._wanted.clear()
            try:
                ready = await self.check()
            except StoreError as error:
                self._complain(str(error))
                ready = True  # no need to hurry
            else:
                self._complain("")
            pause_s = self._options.check_s if ready else self._options.check_s / 5
            try:
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()
                await asyncio.sleep(
                    self._options.check_s / 25
                )  # a flood of requests does not make a flood of looks
            except TimeoutError:
                pass

    async def _beat(self) -> None:
        beats, now = await self._records.beat(self._replica), _now()
        # Who did not look for a while can't say that somebody stood still meanwhile.
        known = self._beats if now - self._beat_at < 3 * self._options.beat_s else {}
        self._beats, self._beat_at = {}, now
        for replica, beat in beats.items():
            last, seen_at = known.get(replica, (-1, now))
            self._beats[replica] = (beat, seen_at if beat == last else now)
            if now - self._beats[replica][1] > self._options.gone_s:
                await self._records.leave(replica)

    async def _repeat(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await step()
            except StoreError as error:
                _log.debug("not done, will be repeated", extra={"error": str(error)})

    def _complain(self, error: str) -> None:
        """Logs when it begins and when it is over, not all the time."""
        if bool(error) is not bool(self._complaint):
            if error:
                _log.warning("the counters can't be looked after", extra={"error": error})
            else:
                _log.warning("the counters are looked after again")
        self._complaint = error


async def _each(
    epochs: Sequence[Epoch], step: Callable[[Epoch], Awaitable[T]], faults: dict[int, StoreError]
) -> dict[Epoch, T]:
    """Takes a step with all epochs at once; what it gives, without those that it failed with."""
    done: dict[Epoch, T] = {}

    async def take(epoch: Epoch) -> None:
        try:
            done[epoch] = await step(epoch)
        except StoreError as error:
            faults[epoch.partition] = error

    await _all(map(take, epochs))
    return {epoch: done[epoch] for epoch in epochs if epoch in done}


async def _all(steps: Iterable[Awaitable[T]]) -> list[T]:
    """Takes the steps at once. All have ended when it returns, or raises what the first one of them raised."""
    done = await asyncio.gather(*steps, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]


def _with(used: Sequence[Used], unwritten: Iterable[Journalled], now: datetime) -> list[Used]:
    """What is used, with what these are charged to buckets whose window is not over."""
    sums = {(each.tenant, each.key): each for each in used}
    for entry in unwritten:
        for charge in entry.charges:
            if charge.until > now.timestamp():
                nothing = Used(entry.tenant, charge.key, charge.until, 0)
                known = sums.get((entry.tenant, charge.key), nothing)
                sums[entry.tenant, charge.key] = replace(known, amount=known.amount + charge.amount)
    return list(sums.values())


def _of(epoch: Epoch, reservations: Iterable[Reservation]) -> list[Reservation]:
    return [r for r in reservations if partition_of(r.identity.tenant) == epoch.partition]


def _now() -> float:
    return asyncio.get_running_loop().time()
