"""Counters that are lost, and rebuilt by several replicas: what they say then is what the ledger says."""

import asyncio

import pytest

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.reservation import Admitted, Denied, Unavailable
from extproc.core.quota.settlement import Outcome, released
from extproc.metering.rebuild import RebuildOptions
from extproc.ports.base import StoreError
from tests.changing import replace

from .shared import ELSEWHERE, HERE, Cluster, Replica, lives
from .waiting import all_done, until
from .world import away, usage


async def spin(times=5):
    for _ in range(times):
        await asyncio.sleep(0)


async def test_replicas_that_start_make_the_counters_ready():
    cluster = Cluster()
    a, b, c = cluster.replicas
    assert not await a.epochs.start()
    assert isinstance(await b.reserve(), Unavailable)
    await cluster.started()
    assert all(epoch.ready for epoch in lives(cluster.server))
    for each in (a, b, c):
        assert isinstance(await each.reserve(), Admitted)
    assert a.counted("partitions_unready") == 0


async def test_what_was_used_before_is_in_counters_that_were_lost():
    cluster = Cluster(limit=100)
    a, b, _ = await cluster.started()
    a.service.close(await a.admitted(60), usage(55))
    await cluster.quiet()
    cluster.server.lose()
    assert isinstance(await b.reserve(10), Unavailable)
    await cluster.ready()
    assert await cluster.agreed() == 55
    assert isinstance(await b.reserve(46), Denied)
    assert isinstance(await b.reserve(45), Admitted)


async def test_what_streams_hold_is_held_in_the_counters_next_life():
    cluster = Cluster(limit=100)
    a, b, c = await cluster.started()
    held = [await each.admitted(30) for each in (a, b, c)]
    cluster.server.lose()
    await cluster.ready()
    assert await a.counts() == (0, 90)
    assert isinstance(await a.reserve(11), Denied)
    for each, reservation in zip((a, b, c), held, strict=True):
        each.service.close(reservation, usage(20))
    assert await cluster.quiet() == 60


async def test_ends_that_were_not_delivered_are_charged_once():
    cluster = Cluster()
    a, b, _ = await cluster.started()
    for each in (a, a, b):
        each.service.close(await each.admitted(), usage(7))
    cluster.server.lose()
    await cluster.ready()
    assert await a.counts() == (0, 30), "they hold what they held until they are charged"
    assert await cluster.quiet() == 21
    assert len(await a.entries()) == 3


@pytest.mark.parametrize("journal", ["lost", "there"])
async def test_entries_that_were_not_written_are_charged_and_written_once(journal):
    cluster = Cluster()
    a, b, _ = await cluster.started()
    for each in (a, a, b):
        each.service.close(await each.admitted(), usage(7))
        await each.ended()
    assert await a.counts() == (21, 0)
    if journal == "lost":
        cluster.server.lose()
    else:
        cluster.server.begin(HERE)
    await cluster.ready()
    assert await cluster.quiet() == 21
    assert cluster.server.journal == {}
    for each, ends in ((a, 2), (b, 1)):
        assert each.counted("tokens_total", kind="charged") == 7 * ends, "metrics count an end once"


async def test_an_end_that_was_applied_but_not_answered_before_the_loss_is_charged_once():
    cluster = Cluster()
    a, *_ = await cluster.started()
    a.service.close(await a.admitted(), usage(7))
    a.counters.after = [away()]
    async with a.running():
        await until(lambda: cluster.server.journal)
    cluster.server.begin(HERE)
    await cluster.ready()
    assert await cluster.quiet() == 7


@pytest.mark.parametrize("where", ["close", "append"])
async def test_a_delivery_that_hangs_does_not_keep_the_counters_from_being_rebuilt(where):
    cluster = Cluster()
    a, *_ = await cluster.started()
    store = {"close": a.counters, "append": a.ledger}[where]
    deliver, hanging = getattr(store, where), asyncio.Event()

    async def hangs(*args):
        await deliver(*args)  # done, and never answered
        hanging.set()
        await asyncio.Event().wait()

    setattr(store, where, hangs)
    a.service.close(await a.admitted(), usage(7))
    async with a.running():
        await hanging.wait()
        cluster.server.begin(HERE)
        setattr(store, where, deliver)
        await cluster.ready()
    assert await cluster.quiet() == 7


async def test_what_is_released_meanwhile_is_not_charged():
    cluster = Cluster()
    a, *_ = await cluster.started()
    reservation = await a.admitted()
    cluster.server.lose()
    a.service.close(reservation, released("upstream_error"))
    await cluster.ready()
    assert await cluster.quiet() == 0


class Asked(Replica):
    """A replica whose `reserve` is on its way when the counters are lost, for as long as it is told."""

    def delay(self, *, applied):
        self.arrived, self.go = asyncio.Event(), asyncio.Event()
        reserve = self.counters.reserve

        async def slow(reservation):
            decision = await reserve(reservation) if applied else None
            self.arrived.set()
            await self.go.wait()
            return decision if applied else await reserve(reservation)

        self.counters.reserve = slow


@pytest.mark.parametrize("reply", ["admitted", "denied", "lost", "late"])
async def test_a_request_that_is_being_decided_on_when_counters_are_lost_holds_nothing(reply):
    """Its answer is of counters that are gone. If its replica dies now, nobody charges it."""
    cluster = Cluster(limit=100, decision_timeout_s=2.0 if reply != "lost" else 0.05)
    cluster.replicas[0] = a = Asked(cluster, "r0", **cluster.options | {"limit": 5 if reply == "denied" else 100})
    a.clock = cluster.clock
    await cluster.started()
    a.delay(applied=reply != "late")
    asking = asyncio.create_task(a.reserve(10))
    await a.arrived.wait()
    cluster.server.lose()
    await cluster.ready()
    assert await a.counts() == (0, 0)
    if reply != "lost":
        a.go.set()
    decision = await asking
    assert isinstance(decision, Denied if reply == "denied" else Unavailable)
    await a.delivered()
    assert await a.counts() == (0, 0)
    assert [entry.outcome for entry in await a.entries()] == [Outcome.DENIED] * (reply == "denied")


async def test_a_request_that_comes_while_partitions_are_registered_leaves_nothing_behind():
    cluster = Cluster(replicas=1)
    (a,) = await cluster.started()
    restore, first, seen = a.counters.restore, [], []

    async def slow(epoch, reservations):
        if not first:
            first.append(epoch)
            seen.extend(await asyncio.gather(a.reserve(10), a.reserve(10, ELSEWHERE)))
        await restore(epoch, reservations)

    a.counters.restore = slow
    cluster.server.lose()
    await cluster.ready()
    assert seen == [Unavailable(), Unavailable()]
    await a.delivered()
    assert await a.counts() == await a.counts(ELSEWHERE) == (0, 0)


async def test_a_registration_that_fails_half_way_is_repeated():
    cluster = Cluster()
    a, *_ = await cluster.started()
    held = await a.admitted(30)
    register, faults = a.counters.register, [away(), away()]

    async def failing(epoch, replica):
        await register(epoch, replica)
        if epoch.partition == HERE and faults:
            raise faults.pop()

    a.counters.register = failing
    cluster.server.lose()
    for _ in range(2):
        with pytest.raises(StoreError, match="away"):
            await cluster.ready()
    await cluster.ready()
    assert await a.counts() == (0, 30)
    a.service.close(held, usage(7))
    assert await cluster.quiet() == 7


async def test_nothing_is_rebuilt_before_everybody_who_lives_has_registered():
    cluster = Cluster()
    a, b, c = await cluster.started()
    held = await c.admitted(30)
    cluster.server.lose()
    for _ in range(3):
        await asyncio.gather(a.epochs.check(), b.epochs.check())
    assert not any(epoch.ready for epoch in lives(cluster.server))
    assert isinstance(await a.reserve(), Unavailable)
    await cluster.ready()
    c.service.close(held, usage(7))
    assert await cluster.quiet() == 7


LATE = {"turn_s": 0.0, "barrier_s": 0.05, "gone_s": 0.05}


async def test_a_dead_replicas_kept_holds_are_restored_and_charged_as_held_when_they_expire():
    cluster = Cluster(recovery=LATE)
    a, b, dead = await cluster.started()
    kept = await dead.admitted(30)
    cluster.clock.passes(2)
    await dead.saver.save()
    await dead.admitted(11)  # too young to be kept: nobody knows of it when both are lost
    cluster.server.lose()
    await cluster.ready(a, b)
    assert await a.counts() == (0, 30)
    cluster.clock.passes(1000)
    assert await a.expiry.expire_overdue() == 1
    await a.delivered()
    assert await a.recorded() == [(Outcome.EXPIRED, 30)]
    assert await cluster.quiet(a, b) == 30
    assert [entry.id for entry in await a.entries()] == [kept.id]


async def test_who_is_gone_is_not_waited_for():
    cluster = Cluster(recovery=LATE | {"barrier_s": 60.0})
    a, b, _ = await cluster.started()

    async def one_is_gone():
        await asyncio.gather(a.metering.membership.heartbeat(), b.metering.membership.heartbeat())
        return len(cluster.ledger._beats) < 3

    await until(one_is_gone)
    assert set(cluster.ledger._beats) == {"r0", "r1"}
    cluster.server.lose()
    await cluster.ready(a, b)


async def test_one_that_was_stopped_comes_back_into_counters_that_were_rebuilt_without_it():
    cluster = Cluster(recovery=LATE)
    a, b, late = await cluster.started()
    streaming = await late.admitted(30)
    for charge in (5, 6):
        late.service.close(await late.admitted(), usage(charge))
    await late.ended()  # their entries are not written yet
    late.service.close(await late.admitted(), usage(8))  # and this one is not even delivered
    cluster.server.lose()
    await cluster.ready(a, b)
    assert await a.counts() == (0, 0)
    assert not late.ledger._entries
    await cluster.ready(late)
    assert await a.counts() == (0, 60)
    late.service.close(streaming, usage(20))
    assert await cluster.quiet() == 39
    assert len(await a.entries()) == 4


async def test_one_that_was_stopped_does_not_charge_what_others_found_in_the_journal():
    cluster = Cluster(recovery=LATE)
    a, b, late = await cluster.started()
    late.service.close(await late.admitted(), usage(5))
    await late.ended()  # known to be closed, not known to be written
    late.service.close(await late.admitted(), usage(6))
    late.counters.after = [away()]  # closed, and not known to be
    cluster.ledger.open.clear()
    async with late.running():
        await until(lambda: len(cluster.server.journal) == 2)
    cluster.ledger.open.set()
    cluster.server.begin(HERE)
    await cluster.ready(a, b)
    assert await a.counts() == (11, 0)
    await cluster.ready(late)
    assert await cluster.quiet() == 11


async def test_a_stream_whose_replica_was_stopped_does_not_expire_when_it_is_back():
    cluster = Cluster(recovery=LATE)
    a, b, late = await cluster.started()
    stream = await late.admitted(30)
    cluster.clock.passes(2)
    await late.saver.save()
    cluster.clock.passes(600)
    late.leases.renew_due()
    await _renewed(late)
    cluster.clock.passes(400)  # what is kept of it has an old deadline
    cluster.server.lose()
    await cluster.ready(a, b)
    assert await a.expiry.expire_overdue() == 0, "it has a little time to come back"
    await cluster.ready(late)
    await _renewed(late)
    cluster.clock.passes(60)
    assert await a.expiry.expire_overdue() == 0
    late.service.close(stream, usage(7))
    assert await cluster.quiet() == 7


async def _renewed(replica):
    async with replica.running():
        await until(lambda: not replica.leases.waiting)


async def test_old_data_that_comes_back_is_set_right():
    """As an old snapshot does, or a replica of the server that missed the last writes."""
    cluster = Cluster()
    a, b, _ = await cluster.started()
    over, streaming = await a.admitted(30), await b.admitted(20)
    old = cluster.server.lives[HERE]
    cluster.server.lives[HERE] = replace(
        old, known={**old.known}, counts={**old.counts}, registered={*old.registered}
    )
    known = {key: replace(value) for key, value in old.known.items()}
    a.service.close(over, usage(25))
    await cluster.quiet()
    old.known = known  # both are open in it
    cluster.server.lives[HERE] = old
    cluster.server.begin(HERE)
    await cluster.ready()
    assert await a.counts() == (25, 20)
    b.service.close(streaming, usage(15))
    assert await cluster.quiet() == 40


async def test_what_is_found_of_a_dead_replica_in_the_life_before_stays_held():
    cluster = Cluster(recovery=LATE)
    a, b, dead = await cluster.started()
    await dead.admitted(30)
    cluster.server.begin(HERE)
    await cluster.ready(a, b)
    assert await a.counts() == (0, 30)


async def test_one_partition_that_is_lost_leaves_the_others_alone():
    cluster = Cluster()
    a, b, _ = await cluster.started()
    here, there = await a.admitted(30), (await b.reserve(20, ELSEWHERE)).reservation
    cluster.server.lose(HERE)
    assert isinstance(await a.reserve(5), Unavailable)
    elsewhere = await a.reserve(5, ELSEWHERE)
    assert isinstance(elsewhere, Admitted)
    await cluster.ready()
    assert await a.counts() == (0, 30)
    assert await a.counts(ELSEWHERE) == (0, 25)
    assert a.counted("rebuilds_total") + b.counted("rebuilds_total") < 2 * PARTITIONS + 2
    for each, reservation in ((a, here), (b, there), (a, elsewhere.reservation)):
        each.service.close(reservation, usage(4))
    assert await cluster.quiet() == 4
    assert await cluster.agreed(identity=ELSEWHERE) == 8


async def test_counters_that_are_lost_again_while_they_are_rebuilt_are_rebuilt_again():
    cluster = Cluster(limit=100)
    a, b, _ = await cluster.started()
    a.service.close(await a.admitted(60), usage(55))
    await cluster.quiet()
    held = await b.admitted(20)
    install, losses = a.counters.install, [1, 2]

    async def interrupted(epoch, used):
        if losses:
            losses.pop()
            cluster.server.lose()
        await install(epoch, used)

    a.counters.install = interrupted
    cluster.server.lose()
    await cluster.ready()
    assert not losses
    assert await a.counts() == (55, 20)
    b.service.close(held, usage(7))
    assert await cluster.quiet() == 62


async def test_no_limit_is_passed_however_often_counters_are_lost():
    cluster = Cluster(limit=200)
    replicas = await cluster.started()
    admitted = 0
    for turn in range(12):
        decisions = await asyncio.gather(*(each.reserve(10) for each in replicas for _ in range(2)))
        for each, decision in zip([each for each in replicas for _ in range(2)], decisions, strict=True):
            if isinstance(decision, Admitted):
                admitted += 1
                if turn % 3:
                    each.service.close(decision.reservation, usage(10))
                if turn % 2:
                    await each.ended()
        cluster.server.lose()
        await cluster.ready()
        used, held = await replicas[0].counts()
        assert used + held == admitted * 10 <= 200
    assert admitted == 20
    for each in replicas:
        for reservation in each.leases:
            each.service.close(reservation, usage(10))
    assert await cluster.quiet() == 200


# The gate.


async def test_nothing_is_written_by_who_did_not_look_at_the_counters_for_a_while():
    cluster = Cluster(replicas=1, recovery={"turn_s": 0.0, "fresh_s": 0.05})
    (a,) = await cluster.started()
    await asyncio.sleep(0.06)
    a.service.close(await a.admitted(), usage(7))
    async with a.running():
        await until(lambda: cluster.server.journal)
        await all_done()
        assert a.ledger.calls == 0
        await a.epochs.check()
        async with asyncio.timeout(5):
            await a.writer._queue.drained()
    assert await a.recorded() == [(Outcome.SETTLED, 7)]


async def test_nothing_is_written_while_counters_are_rebuilt_but_not_for_ever():
    cluster = Cluster(recovery={"turn_s": 0.0, "still_s": 0.05, "fresh_s": 60.0})
    a, *_ = await cluster.started()
    a.service.close(await a.admitted(), usage(7))
    await a.ended()
    cluster.server.begin(HERE)
    assert not await a.epochs.check()  # the others do not register
    assert not a.fence.is_open()
    calls = a.ledger.calls
    async with a.running():
        await asyncio.sleep(0.045)
        assert a.ledger.calls == calls
        await asyncio.sleep(0.01)
        await a.epochs.check()
        async with asyncio.timeout(5):
            await a.writer._queue.drained()
    assert await a.recorded() == [(Outcome.SETTLED, 7)]
    await cluster.ready()
    assert await cluster.agreed() == 7


async def test_what_waits_in_the_journal_is_used_and_not_held_though_nobody_writes_it():
    cluster = Cluster(limit=100)
    a, b, c = await cluster.started()
    a.service.close(await a.admitted(60), usage(55))
    await a.ended()
    c.service.close(await c.admitted(10), usage(3))
    c.counters.after = [away()]  # applied, and not answered
    async with c.running():
        await until(lambda: len(cluster.server.journal) == 2)
    cluster.server.begin(HERE)
    a.ledger.open.clear()
    await cluster.ready()
    assert await b.counts() == (58, 0)
    assert isinstance(await b.reserve(43), Denied)
    a.ledger.open.set()
    assert await cluster.quiet() == 58


async def test_a_look_counts_from_its_beginning():
    """Who is stopped in the middle of it, and wakes up much later, has seen nothing of what happened since."""
    cluster = Cluster(replicas=1, recovery={"turn_s": 0.0, "fresh_s": 0.02})
    (a,) = await cluster.started()
    epochs = a.counters.epochs

    async def slow():
        found = await epochs()
        await asyncio.sleep(0.03)
        return found

    a.counters.epochs = slow
    await a.epochs.check()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await a.fence.wait_until_open()


async def test_a_process_that_ends_writes_what_it_has():
    cluster = Cluster(replicas=1, recovery={"turn_s": 0.0, "fresh_s": 0.0})
    (a,) = await cluster.started()
    a.service.close(await a.admitted(), usage(7))
    await a.drained()
    assert await a.recorded() == [(Outcome.SETTLED, 7)]


# By itself.


async def test_it_follows_in_the_background_and_is_hurried_by_a_request_that_found_the_counters_unready(caplog):
    cluster = Cluster(replicas=1, recovery={"turn_s": 0.0, "check_s": 60.0})
    (a,) = await cluster.started()
    running = asyncio.create_task(a.epochs.run())
    await spin()
    cluster.server.lose()
    assert isinstance(await a.reserve(), Unavailable)
    a.epochs._check_s = 0.05

    async def admits():
        return isinstance(await a.reserve(), Admitted)

    await until(admits)
    running.cancel()
    await asyncio.wait({running})
    assert "redis: counters were rebuilt from the ledger: decisions resume" in caplog.messages


async def test_a_store_that_is_away_is_complained_about_once(caplog):
    cluster = Cluster(replicas=1, recovery={"turn_s": 0.0, "check_s": 0.005})
    (a,) = await cluster.started()
    epochs, faults = a.counters.epochs, [away() for _ in range(5)]

    async def failing():
        if faults:
            raise faults.pop()
        return await epochs()

    a.counters.epochs = failing
    running = asyncio.create_task(a.epochs.run())
    await until(lambda: "redis: epochs are followed again" in caplog.messages)
    running.cancel()
    await asyncio.wait({running})
    assert caplog.messages.count("redis: epochs can't be followed: nothing is rebuilt") == 1


async def test_who_leaves_is_not_waited_for():
    cluster = Cluster()
    a, b, gone = await cluster.started()
    await gone.metering.membership.deregister()
    cluster.server.lose()
    await cluster.ready(a, b)
    assert RebuildOptions().barrier_s > 5


async def test_what_is_kept_is_dropped_when_it_is_in_the_ledger():
    cluster = Cluster(replicas=1)
    (a,) = await cluster.started()
    reservation = await a.admitted()
    await a.saver.save()
    assert await a.ledger.saved() == []
    cluster.clock.passes(2)
    await a.saver.save()
    assert [r.id for r in await a.ledger.saved()] == [reservation.id]
    a.service.close(reservation, usage(7))
    await a.delivered()
    assert await a.ledger.saved() == []
    assert not a.writer._saved


async def test_what_ends_while_it_is_being_kept_is_not_kept_for_ever():
    cluster = Cluster(replicas=1)
    (a,) = await cluster.started()
    reservation = await a.admitted()
    cluster.clock.passes(2)
    save = a.ledger.save

    async def slow(reservations):
        a.service.close(reservation, usage(7))
        await a.delivered()
        await save(reservations)

    a.ledger.save = slow
    await a.saver.save()
    assert await a.ledger.saved() == []
    assert not a.writer._saved
