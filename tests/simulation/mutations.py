"""Deliberate breaks of the product, each of which the simulation has to find."""

from contextlib import contextmanager
from unittest import mock

from extproc.core.quota.learning import Learned
from extproc.core.quota.reservation import Admitted
from extproc.metering import takeover
from extproc.metering.admission import Admission
from extproc.metering.expiry import Expiry
from extproc.metering.hold_saver import HoldSaver
from extproc.metering.journal_sweeper import JournalSweeper
from extproc.metering.leases import Leases
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.rebuild import Rebuild
from extproc.metering.shard import Shard
from extproc.metering.shared_clock import SharedClock
from extproc.metering.takeover import Takeover
from extproc.metering.write_fence import WriteFence
from extproc.ports.base import UnreadyError
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger

from . import nemesis
from .bursts import Bursts


async def _nothing(*_, **__):
    return None


def _no_epoch_check(self, reservation, *, ready):
    life = self.server.lives.get(_partition(reservation))
    if life is None:
        raise UnreadyError("there is none")
    return life


def _partition(reservation):
    from extproc.core.quota import partitions

    return partitions.partition_of(reservation.identity.tenant)


_close = MemoryCounters._close


def _charges_each_time(self, closing, thresholds):
    life = self.server.lives.get(_partition(closing.reservation))
    known = life.known.get(closing.reservation.id) if life is not None else None
    if known is not None and known.closed is not None and known.closed.outcome is closing.outcome and known.holds:
        known.holds = [0] * len(known.holds)
        known.closed = None
    return _close(self, closing, thresholds)


def _without_journal(self, closing, thresholds):
    from tests.changing import replace

    return _close(self, replace(closing, entry=None), thresholds)


def _waits_for_nobody(self, epoch, missing, marks):
    return False


def _all_unanswered(left, saved, saved_until):
    return {each.id for each in left if each.id not in saved}


def _none_unanswered(left, saved, saved_until):
    return set()


async def _takes_nothing_over(self, gone):
    await self._counters.forget_replica(gone, self._shard_id)


def _restores_what_it_asks_for(self, epoch):
    found = {r.id: r for r in (*self.leases, *(end.closing.reservation for end in self.settler._ends))}
    return [r for r in found.values() if epoch.counts(r.identity.tenant)]


async def _nothing_used(self, now):
    return []


async def _no_outcomes(self, ids):
    return {}


async def _nothing_kept(self):
    return []


async def _left_open_nothing(self, epoch):
    return []


async def _nothing_journalled(self, partition):
    return []


async def _nothing_collected(self, found):
    return 0


_reserve = MemoryCounters.reserve


async def _reserves_without_asking(self, reservation):
    decision = await _reserve(self, reservation)
    if isinstance(decision, Admitted):
        return decision
    from extproc.core.quota.reservation import admitted

    return admitted(reservation, [state.count for state in [decision.state] * len(reservation.buckets)])


def _whole_limits(self, bucket):
    return bucket


async def _not_written_down(self, local):
    return True


def _own_time(self):
    return self._own.now()


def _as_its_answers(self, tenant, model, start):
    return self._find(tenant, model).outputs.estimate(start.output, 1, start.output_high)


MUTATIONS = {
    "a replica that registers restores nothing": (Shard, "_answers_for", lambda self, epoch: []),
    "a store takes commands of any epoch": (MemoryCounters, "_life", _no_epoch_check),
    "an end that is repeated charges again": (MemoryCounters, "_close", _charges_each_time),
    "an end puts nothing into the journal": (MemoryCounters, "_close", _without_journal),
    "a rebuild waits for nobody": (Rebuild, "_waits", _waits_for_nobody),
    "nobody takes over what a dead one left": (Takeover, "take_over", _takes_nothing_over),
    "whoever takes over releases all that is not saved": (takeover, "never_answered", _all_unanswered),
    "a hold that nobody was told of is charged": (takeover, "never_answered", _none_unanswered),
    "what was undone is restored": (Shard, "_answers_for", _restores_what_it_asks_for),
    "an answer of an epoch that is over admits": (Admission, "epoch_begins", lambda self: None),
    "a rebuild does not read the ledger": (MemoryLedger, "used", _nothing_used),
    "a rebuild does not read what was kept": (MemoryLedger, "saved", _nothing_kept),
    "a rebuild does not look at the epoch before": (MemoryCounters, "left_open", _left_open_nothing),
    "a rebuild does not read the journal": (MemoryCounters, "journalled", _nothing_journalled),
    "what is over is not taken out again": (MemoryLedger, "outcomes", _no_outcomes),
    "the gate is always open": (WriteFence, "is_open", lambda self: True),
    "ends that only the old epoch had are not repeated": (Shard, "_tell_again", _nothing),
    "nothing that is undecided is undone": (Admission, "_undo", lambda self, reservation: None),
    "nothing is renewed": (Leases, "renew_due", lambda self: 0),
    "nothing expires": (Expiry, "expire_overdue", _nothing),
    "nobody writes what others left in the journal": (JournalSweeper, "_write_all", _nothing_collected),
    "nothing that is open is kept": (HoldSaver, "save", _nothing),
    "each replica alone admits up to the whole limit": (LocalAdmission, "_scaled", _whole_limits),
    "what is admitted alone is not written down": (LocalAdmission, "_written", _not_written_down),
    "each replica goes by its own clock": (SharedClock, "now", _own_time),
    "what does not fit is admitted": (MemoryCounters, "reserve", _reserves_without_asking),
    "small answers lower the holds of long ones": (Learned, "typical_output", _as_its_answers),
}

# Some seeds that find each of them: tried first. When the product's calls come in another order, other seeds do.
FOUND_BY = {
    "an answer of an epoch that is over admits": (756,),
    "a rebuild waits for nobody": (258, 394),
    "a rebuild does not read what was kept": (149,),
    "a rebuild does not look at the epoch before": (27, 28, 41),
    "a rebuild does not read the journal": (333, 548, 743),
    "what is over is not taken out again": (85, 124),
    "the gate is always open": (56, 191, 272),
    "ends that only the old epoch had are not repeated": (4, 51, 83),
    "nobody writes what others left in the journal": (24, 33),
    "nothing that is open is kept": (143, 234, 763),
    "each replica alone admits up to the whole limit": (5, 8, 13),
    "what is admitted alone is not written down": (83, 159, 241),
    "each replica goes by its own clock": (6, 7, 16),
    "small answers lower the holds of long ones": (10, 11, 12),
}


# These show in other worlds than the usual ones.
IN = {"small answers lower the holds of long ones": Bursts}


# What is found out by one seed in hundreds: in these worlds it is aimed at the moments that matter.
AIMED = {
    "nobody takes over what a dead one left": (("close",), (nemesis.taken_over,)),
    "a hold that nobody was told of is charged": (("reserve",), (nemesis.unanswered,)),
    "what was undone is restored": (("reserve",), (nemesis.unanswered_and_lost,)),
    "an answer of an epoch that is over admits": (("reserve",), (nemesis.answered_late,)),
    "a rebuild waits for nobody": (("reserve", "close"), (nemesis.struck, nemesis.flush)),
    "the gate is always open": (("close",), (nemesis.stands_still,)),
}


@contextmanager
def mutated(name):
    """The product with one of them, for as long as the context lasts."""
    owner, attribute, replacement = MUTATIONS[name]
    with mock.patch.object(owner, attribute, replacement), nemesis.aimed(*AIMED.get(name, ())):
        yield
