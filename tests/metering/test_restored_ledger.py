"""MongoDB, Redis, or both restored from backups: no limit is exceeded for it, as far as one of them knows."""

import asyncio
import copy

import pytest

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.reservation import Admitted, Denied
from extproc.core.quota.settlement import Outcome
from extproc.ports.epochs import Used

from .shared import ELSEWHERE, HERE, Cluster, Replica, lives
from .waiting import until
from .world import WHO, usage

LIMIT = 100
LATE = {"turn_s": 0.0, "barrier_s": 0.05, "gone_s": 0.05}
DURABLE = ("_entries", "_saved", "_beats", "_saved_until", "_corrections", "_generation")


class Site(Cluster):
    """Replicas, and both stores with their backups."""

    def __init__(self, replicas=2, **options):
        super().__init__(replicas, limit=LIMIT, **options)

    def ledger_backup(self):
        return {name: copy.copy(getattr(self.ledger, name)) for name in DURABLE}

    def restore_ledger(self, backup):
        for name in DURABLE:
            setattr(self.ledger, name, copy.copy(backup[name]))

    def snapshot(self):
        server = self.server
        return copy.deepcopy((server.lives, server.before, server.journal, server.aside, server.generation))

    def restore_counters(self, snapshot):
        """Another process has the snapshot: a new epoch begins in each partition."""
        server = self.server
        server.lives, server.before, server.journal, server.aside, server.generation = copy.deepcopy(snapshot)
        self.restart_counters()

    def restart_counters(self):
        for partition in range(PARTITIONS):
            self.server.begin(partition)

    async def spend(self, replica, tokens):
        replica.service.close(await replica.admitted(tokens), usage(tokens))
        await replica.delivered()

    async def look(self, *replicas):
        await asyncio.gather(*(each.restored.look() for each in replicas or self.replicas))

    async def spent(self):
        """What the counters say is used. No more than the rest is admitted."""
        used, held = await self.replicas[0].counts()
        assert isinstance(await self.replicas[0].reserve(LIMIT - used - held + 1), Denied)
        return used


async def at_work(**options):
    """A site that has used 30 tokens and been looked at; its backup; then 40 more are used."""
    site = Site(**options)
    a, *_ = await site.started()
    await site.spend(a, 30)
    await site.look()
    backup, snapshot = site.ledger_backup(), site.snapshot()
    await site.spend(a, 40)
    await site.look()
    await site.look()
    return site, backup, snapshot


def corrections(site):
    return [each.amount for each in site.ledger._corrections.values()]


# ---------------------------------------------------------------- nothing was restored


async def test_nothing_is_corrected_as_long_as_nothing_is_restored():
    site, *_ = await at_work(replicas=3)
    for loss in (site.server.lose, site.restart_counters, lambda: site.server.lose(HERE)):
        await asyncio.gather(*(site.look() for _ in range(3)))
        loss()
        await site.look()
        await site.ready()
        assert await site.spent() == 70
    assert corrections(site) == []
    assert site.replicas[0].counted("ledger_behind_total") == 0


async def test_the_generation_grows_at_each_look_and_is_noted_beside_the_counters():
    site, *_ = await at_work()
    numbers = []
    for _ in range(3):
        await site.look()
        numbers.append(site.server.generation)
    assert numbers == sorted(set(numbers))
    assert site.ledger._generation.number == numbers[-1]


# ---------------------------------------------------------------- the ledger was restored


async def test_with_live_counters_the_limit_holds_and_the_ledger_is_corrected_for_the_next_rebuild():
    site, backup, _ = await at_work()
    site.restore_ledger(backup)
    assert await site.spent() == 70
    await site.look()
    assert corrections(site) == [40]
    assert site.replicas[0].counted("ledger_behind_total") == 1
    await site.look()
    assert site.replicas[0].counted("ledger_behind_total") == 1
    site.server.lose()
    await site.ready()
    assert await site.spent() == 70


async def test_counters_that_restart_before_the_correction_keep_what_they_had_counted():
    site, backup, _ = await at_work()
    site.restore_ledger(backup)
    site.restart_counters()
    await site.ready()
    assert await site.spent() == 70
    await site.look()
    site.server.lose()
    await site.ready()
    assert await site.spent() == 70


async def test_replicas_that_were_stopped_for_the_restore_notice_it_when_they_start():
    site, backup, _ = await at_work()
    site.restore_ledger(backup)
    site.replicas = [Replica(site, f"new{n}", **site.options) for n in range(2)]
    await site.started()
    await site.look()
    assert corrections(site) == [40]
    site.server.lose()
    await site.ready()
    assert await site.spent() == 70


async def test_a_ledger_that_is_empty_is_corrected_too():
    site, *_ = await at_work()
    site.restore_ledger(Site().ledger_backup())
    await site.look()
    site.server.lose()
    await site.ready()
    assert await site.spent() == 70


async def test_entries_that_wait_in_the_journal_are_not_lost_and_so_not_corrected():
    site, backup, _ = await at_work()
    a, *_ = site.replicas
    site.restore_ledger(backup)
    a.service.close(await a.admitted(10), usage(10))
    await a.ended()
    assert len(site.server.journal) == 1
    await site.look()
    assert corrections(site) == [40]
    await a.delivered()
    site.server.lose()
    await site.ready()
    assert await site.spent() == 80


async def test_an_entry_that_is_in_the_journal_and_in_the_ledger_counts_once():
    site, backup, _ = await at_work()
    a, *_ = site.replicas
    site.restore_ledger(backup)
    a.service.close(await a.admitted(10), usage(10))
    await a.ended()
    journal = dict(site.server.journal)
    await a.delivered()
    site.server.journal.update(journal)
    await site.look()
    assert corrections(site) == [40]


async def test_what_is_charged_while_the_sums_are_read_makes_no_correction_too_small():
    site, backup, _ = await at_work()
    a, b = site.replicas
    site.restore_ledger(backup)
    used, left = a.ledger.used, [3, 2, 1]

    async def busy(now):
        found = await used(now)
        if left:
            await site.spend(b, left.pop())
        return found

    site.ledger.used = busy
    await site.look(a)
    assert corrections(site) == [41], "the lowest of three readings: one token too many, and not one too few"
    site.server.lose()
    await site.ready()
    assert await site.spent() == 77


async def test_replicas_that_correct_at_once_and_again_correct_once():
    site, backup, _ = await at_work(replicas=3)
    site.restore_ledger(backup)
    await asyncio.gather(*(site.look() for _ in range(3)))
    site.ledger._generation = backup["_generation"]
    await site.look()
    assert corrections(site) == [40]


async def test_a_second_restore_is_corrected_to_the_whole_amount():
    site, first, _ = await at_work()
    a, *_ = site.replicas
    site.restore_ledger(first)
    await site.look()
    await site.look()
    second = site.ledger_backup()
    await site.spend(a, 20)
    await site.look()
    await site.look()
    site.restore_ledger(second)
    await site.look()
    assert corrections(site) == [60]
    site.restore_ledger(first)
    await site.look()
    assert corrections(site) == [60]
    site.server.lose()
    await site.ready()
    assert await site.spent() == 90


async def test_every_bucket_is_corrected_and_none_whose_window_is_over():
    site, backup, _ = await at_work()
    a, *_ = site.replicas
    a.service.close((await a.reserve(25, ELSEWHERE)).reservation, usage(25))
    await a.delivered()
    site.restore_ledger(backup)
    site.clock.passes(86_400)
    a.service.close(await a.admitted(5), usage(5))
    await a.delivered()
    site.ledger._entries = dict(backup["_entries"])
    await site.look()
    assert corrections(site) == [5]
    site.clock.passes(-86_400)
    site.restore_ledger(backup)
    await site.look()
    assert sorted(corrections(site)) == [5, 25, 40]


async def test_nothing_is_corrected_from_counters_that_are_being_rebuilt():
    site, backup, _ = await at_work()
    site.restore_ledger(backup)
    site.restart_counters()
    await site.look()
    assert corrections(site) == []
    assert site.ledger._generation == backup["_generation"]
    await site.ready()
    await site.look()
    assert corrections(site) == [40]


# ---------------------------------------------------------------- holds


@pytest.mark.parametrize("noticed", ["itself", "by another replica"])
async def test_streams_whose_saved_holds_went_back_are_saved_again(noticed):
    site = Site(replicas=3, recovery=LATE)
    a, b, dead = await site.started()
    await site.look()
    backup = site.ledger_backup()
    stream = await dead.admitted(30)
    site.clock.passes(2)
    await dead.saver.save()
    await site.look()
    await site.look()
    site.restore_ledger(backup)
    await site.look(*([dead] if noticed == "itself" else [a, dead]))
    await dead.saver.save()
    assert [each.id for each in await site.ledger.saved()] == [stream.id]
    site.server.lose()
    await site.ready(a, b)
    assert await a.counts() == (0, 30)


async def test_a_saved_hold_that_comes_back_with_its_end_lost_is_charged_as_held_and_never_admits_more():
    """The request had ended in the time that the ledger lost. Nobody knows that any more after a loss of Redis."""
    site = Site(replicas=3, recovery=LATE)
    a, b, dead = await site.started()
    stream = await dead.admitted(30)
    site.clock.passes(2)
    await dead.saver.save()
    await site.look()
    backup = site.ledger_backup()
    dead.service.close(stream, usage(20))
    await dead.delivered()
    await site.look()
    await site.look()
    site.restore_ledger(backup)
    await site.look(a, b)
    site.server.lose()
    await site.ready(a, b)
    assert await a.counts() == (20, 30)
    site.clock.passes(1000)
    await a.expiry.expire_overdue()
    await a.delivered()
    assert await a.counts() == (50, 0)


# ---------------------------------------------------------------- the counters were restored


async def test_counters_from_a_snapshot_are_rebuilt_from_the_live_ledger():
    site, _, snapshot = await at_work()
    site.restore_counters(snapshot)
    assert not any(epoch.ready for epoch in lives(site.server))
    await site.ready()
    assert await site.spent() == 70
    await site.look()
    assert corrections(site) == []


async def test_entries_that_come_back_with_a_snapshot_are_not_written_or_counted_twice():
    site = Site()
    a, b = await site.started()
    a.service.close(await a.admitted(30), usage(30))
    await a.ended()
    (entry, _), *_ = site.server.journal.values()
    await a.counters.set_aside(entry, None, "refused then")
    snapshot = site.snapshot()
    await a.delivered()
    site.restore_counters(snapshot)
    assert len(site.server.journal) == len(site.server.aside) == 1
    await site.ready()
    assert await site.spent() == 30
    async with b.running():
        assert await b.sweeper.sweep(0.0) == 1
        await until(lambda: not site.server.journal)
    assert await a.recorded() == [(Outcome.SETTLED, 30)]
    assert not site.server.journal
    site.server.lose()
    await site.ready()
    assert await site.spent() == 30


async def test_an_entry_deleted_by_hand_that_comes_back_with_a_snapshot_is_charged_again_at_most():
    site = Site()
    a, *_ = await site.started()
    a.service.close(await a.admitted(30), usage(30))
    await a.ended()
    snapshot = site.snapshot()
    await a.delivered()
    site.ledger._entries.clear()
    site.restore_counters(snapshot)
    await site.ready()
    assert await site.spent() >= 30


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("later", ["ledger", "counters"])
async def test_both_restored_from_different_moments_have_what_the_newer_one_had(later):
    site, backup, snapshot = await at_work()
    newer = (site.ledger_backup(), site.snapshot())
    await site.spend(site.replicas[0], 20)
    await site.look()
    site.restore_ledger(newer[0] if later == "ledger" else backup)
    site.restore_counters(newer[1] if later == "counters" else snapshot)
    await site.ready()
    assert await site.spent() == 70, "of the 90 that were used; who restores both loses the rest"
    await site.look()
    site.server.lose()
    await site.ready()
    assert await site.spent() == 70


async def test_counters_that_are_lost_before_the_correction_take_its_amount_with_them():
    """This is not promised. It is here so that the documents say the truth."""
    site, backup, _ = await at_work()
    site.restore_ledger(backup)
    site.server.lose()
    await site.ready()
    assert await site.spent() == 30
    await site.look()
    assert site.replicas[0].counted("ledger_behind_total") == 1, "but it is noticed"
    assert isinstance(await site.replicas[0].reserve(60), Admitted)


async def test_a_correction_is_the_operators_to_remove():
    """As the documents say for a restore into a server in use: remove the corrections and the generation."""
    site, backup, _ = await at_work()
    site.restore_ledger(Site().ledger_backup())
    await site.look()
    assert corrections(site) == [70]
    site.ledger._entries = dict(backup["_entries"])  # arrives only now
    (bucket,) = site.ledger._corrections
    assert bucket[0] == WHO.tenant
    site.ledger._corrections, site.ledger._generation = {}, backup["_generation"]
    await site.look()
    assert list(site.ledger._corrections.values()) == [Used(*bucket, site.ledger._corrections[bucket].until, 40)]
