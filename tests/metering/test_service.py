"""Reserve -> settle | release | expire: each once, whatever the stores do."""

import asyncio

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.drafting import Caller
from extproc.core.quota.reservation import Admitted, Denied, Suspended, Unavailable
from extproc.core.quota.settlement import Outcome, released
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.metering import settler as books_module
from tests.changing import replace

from .waiting import until
from .world import DECISION_TIMEOUT_S, WHO, World, away, refused, usage


async def spin(times=50):
    for _ in range(times):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- before the body is read


CALL = Caller(WHO, Endpoint.CHAT_COMPLETIONS, None, "request-1")


async def test_a_caller_that_is_suspended_is_refused_before_its_body_is_read():
    world = World(limit=100)
    world.limits.documents[WHO.tenant] = {"suspended": "unpaid"}
    assert world.service.screen(CALL) == Suspended("unpaid")
    await world.drained()
    (entry,) = await world.entries()
    assert (entry.outcome, entry.reason, entry.model) == (Outcome.DENIED, "suspended", "")
    assert world.counted("decisions_total", outcome="denied", reason="suspended") == 1


async def test_a_caller_that_has_used_all_of_a_limit_is_refused_for_a_moment_without_asking_the_counters():
    world = World(limit=20)
    reservation = await world.admitted(cost=20)
    assert isinstance(await world.reserve(1), Denied)
    assert world.service.screen(CALL) is None  # held is not used: it may be given back
    world.service.close(reservation, usage(20))
    await world.drained()
    assert isinstance(await world.reserve(1), Denied)
    refused = world.service.screen(CALL)
    assert isinstance(refused, Denied)
    assert (refused.state.count.used, refused.need) == (20, 1)
    assert world.service.screen(replace(CALL, identity=Identity("acme", "other", "10.0.0.1"))) is None
    world.limits.documents[WHO.tenant] = {"sa_limit": 21}
    assert world.service.screen(CALL) is None  # more was granted
    del world.limits.documents[WHO.tenant]
    world.clock.passes(5)
    assert world.service.screen(CALL) is None


# ---------------------------------------------------------------- reserving


async def test_a_reservation_is_made_of_the_request_the_tenants_limits_and_the_time():
    world = World(limit=100, reservation_ttl_s=30.0)
    world.clock.passes(4 * 3600)  # 16:00 in London is the next day in Tokyo
    reservation = await world.admitted(cost=10)
    assert reservation.identity == WHO
    assert reservation.cost == Cost(5, 5)
    assert [bucket.limit for bucket in reservation.buckets] == list(world.defaults.limits)
    assert reservation.admitted_at == world.clock.now()
    assert reservation.date == "2026-03-02"
    assert reservation.deadline == world.clock.now().timestamp() + 30
    assert (reservation.request_id, reservation.model, reservation.stream) == ("request-1", "m", False)
    assert await world.counts() == (0, 10)
    assert world.counted("decisions_total", outcome="admitted", reason="") == 1
    assert world.counted("reserve_seconds_count") == 1


async def test_what_was_denied_is_recorded_and_costs_nothing():
    world = World(limit=9)
    assert isinstance(await world.reserve(10), Denied)
    await world.drained()
    (entry,) = await world.entries()
    assert (entry.outcome, entry.reason, entry.charge, entry.held) == (Outcome.DENIED, "service_account", 0, 0)
    assert await world.counts() == (0, 0)
    assert world.counted("decisions_total", outcome="denied", reason="service_account") == 1


async def test_recording_what_was_denied_can_be_switched_off():
    world = World(limit=9, record_denied=False)
    assert isinstance(await world.reserve(10), Denied)
    await world.drained()
    assert await world.entries() == []
    assert world.counted("decisions_total", outcome="denied", reason="service_account") == 1


async def test_identities_are_counted_each_on_its_own():
    world = World(limit=10)
    assert isinstance(await world.reserve(10), Admitted)
    assert isinstance(await world.reserve(10), Denied)
    assert isinstance(await world.reserve(10, Identity("acme", "other", "10.0.0.1")), Admitted)


@pytest.mark.parametrize("fault", [away, refused])
async def test_counters_that_fail_make_no_decision_and_nothing_stays_held(fault):
    world = World()
    world.counters.before = [fault()]
    assert isinstance(await world.reserve(), Unavailable)
    await world.drained()
    assert await world.counts() == (0, 0)
    assert await world.entries() == []
    assert world.counted("decisions_total", outcome="unavailable", reason="store") == 1


async def test_a_reservation_whose_answer_got_lost_is_released():
    world = World()
    world.counters.after = [away()]
    assert isinstance(await world.reserve(), Unavailable)
    assert await world.counts() == (0, 10)
    await world.drained()
    assert await world.counts() == (0, 0)
    assert await world.entries() == []


async def test_counters_that_hang_make_no_decision_in_bounded_time():
    world = World()
    world.counters.hang = True
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert isinstance(await world.reserve(), Unavailable)
    assert DECISION_TIMEOUT_S * 0.8 < loop.time() - start <= DECISION_TIMEOUT_S
    assert world.counted("reserve_seconds_count") == 1


async def test_a_reservation_that_was_applied_but_not_answered_in_time_is_released():
    world = World()
    world.counters.hang_after = True
    assert isinstance(await world.reserve(), Unavailable)
    assert await world.counts() == (0, 10)
    await world.drained()
    assert await world.counts() == (0, 0)
    assert await world.entries() == []


async def test_a_reservation_that_arrives_after_its_release_is_not_opened():
    world = World()
    late = []

    async def reserve(reservation):
        late.append(reservation)
        await asyncio.Event().wait()

    real, world.counters.reserve = world.counters.reserve, reserve
    assert isinstance(await world.reserve(), Unavailable)
    await world.drained()
    world.counters.reserve = real
    with pytest.raises(Exception, match="ended before"):
        await real(late[0])
    assert await world.counts() == (0, 0)


@pytest.mark.parametrize("where", ["hang", "hang_after"])
async def test_a_request_that_is_cancelled_while_it_reserves_is_released(where):
    world = World(decision_timeout_s=60.0)
    setattr(world.counters, where, True)
    task = asyncio.create_task(world.reserve())
    await spin(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.drained()
    assert [closing.outcome for closing in world.counters.closed] == [Outcome.RELEASED]
    assert await world.counts() == (0, 0)
    assert await world.entries() == []


async def test_a_fault_that_nobody_foresaw_leaves_nothing_held():
    world = World()
    world.counters.after = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError):
        await world.reserve()
    await world.drained()
    assert await world.counts() == (0, 0)


# ---------------------------------------------------------------- closing


async def test_what_is_settled_is_charged_recorded_and_measured():
    world = World()
    reservation = await world.admitted(10)
    world.clock.passes(3)
    world.service.close(reservation, usage(7))
    assert await world.counts() == (0, 10)  # nothing was waited for
    await world.drained()
    assert await world.counts() == (7, 0)
    (entry,) = await world.entries()
    assert (entry.id, entry.outcome, entry.charge, entry.held, entry.status) == (
        reservation.id,
        Outcome.SETTLED,
        7,
        10,
        200,
    )
    assert entry.ended_at == world.clock.now()
    assert world.counted("reservations_closed_total", outcome="settled", reason="usage") == 1
    assert {k: world.counted("tokens_total", kind=k) for k in ("input", "output", "charged")} == {
        "input": 6,
        "output": 1,
        "charged": 7,
    }


async def test_what_is_released_is_recorded_and_charges_nothing():
    world = World()
    world.service.close(await world.admitted(), released("upstream_error"))
    await world.drained()
    assert await world.counts() == (0, 0)
    assert await world.recorded() == [(Outcome.RELEASED, 0)]
    assert world.counted("reservations_closed_total", outcome="released", reason="upstream_error") == 1
    assert world.counted("tokens_total", kind="charged") == 0


async def test_closing_again_changes_nothing():
    world = World()
    reservation = await world.admitted()
    for charge in (7, 8):
        world.service.close(reservation, usage(charge))
    world.service.close(reservation, released("late"))
    await world.drained()
    assert await world.counts() == (7, 0)
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


@pytest.mark.parametrize("lost", [1, 3])
async def test_an_end_whose_answer_got_lost_is_charged_and_recorded_once(lost):
    world = World()
    world.service.close(await world.admitted(), usage(7))
    world.counters.after = [away() for _ in range(lost)]
    world.ledger.after = [away()]
    await world.drained()
    assert len(world.counters.closed) == lost + 1
    assert world.ledger.calls == 2
    assert await world.counts() == (7, 0)
    assert await world.recorded() == [(Outcome.SETTLED, 7)]
    assert world.counted("reservations_closed_total", outcome="settled", reason="usage") == 1


async def test_an_end_waits_until_the_stores_are_back():
    world = World()
    world.service.close(await world.admitted(), usage(7))
    world.counters.before = [away(), away()]
    world.ledger.before = [away(), away()]
    await world.drained()
    assert await world.counts() == (7, 0)
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


async def test_a_refused_end_is_set_aside_and_takes_no_other_with_it():
    world = World()
    made = [await world.admitted() for _ in range(3)]
    for reservation in made:
        world.service.close(reservation, usage(7))
    world.counters.poison = {made[1].id}
    await world.drained()
    assert await world.counts() == (14, 10)
    assert {entry.id for entry in await world.entries()} == {made[0].id, made[2].id}
    assert world.counted("queue_lost_total", queue="closings") == 1


async def test_requests_go_on_while_the_ledger_is_away():
    world = World()
    world.ledger.open.clear()
    async with world.running():
        for _ in range(5):
            world.service.close(await world.admitted(), usage(7))
        await spin()
        assert await world.counts() == (35, 0)
        assert world.counted("queue_items", queue="ledger") == 5
        assert await world.metering.drain(0.01) is True  # they wait in the journal: others will write them
        assert (await world.counters.backlog()).waiting == 5
        world.ledger.open.set()
        assert await world.metering.drain(5.0) is True
    assert len(await world.entries()) == 5
    assert world.counted("queue_items", queue="ledger") == 0


async def test_draining_waits_for_counters_and_ledger():
    world = World(ledger_linger_s=60.0)  # draining does not linger
    async with world.running():
        assert await world.metering.drain(1.0)
        world.service.close(await world.admitted(), usage(7))
        assert await world.metering.drain(1.0)
        assert await world.recorded() == [(Outcome.SETTLED, 7)]


async def test_ledger_entries_wait_for_company():
    world = World(ledger_linger_s=0.4)
    async with world.running():
        for _ in range(20):
            world.service.close(await world.admitted(), usage(1))
            await spin(3)
        await until(lambda: len(world.ledger._entries) == 20)
        assert world.ledger.calls <= 2


async def test_what_was_in_hand_when_accounting_was_stopped_is_delivered_when_it_runs_again():
    world = World()
    world.ledger.open.clear()
    world.service.close(await world.admitted(), usage(7))
    async with world.running():
        await spin()
        assert world.ledger.calls == 1
    world.ledger.open.set()
    await world.drained()
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


# ---------------------------------------------------------------- expiry


async def test_what_nobody_ended_expires_and_is_charged_as_held():
    world = World(reservation_ttl_s=30.0)
    await world.admitted(10)
    world.clock.passes(30)
    assert await world.expiry.expire_overdue() == 0
    world.clock.passes(1)
    assert await world.expiry.expire_overdue() == 1
    await world.drained()
    assert await world.counts() == (10, 0)
    assert await world.recorded() == [(Outcome.EXPIRED, 10)]
    assert world.counted("reservations_closed_total", outcome="expired", reason="expired") == 1


async def test_a_settlement_that_comes_after_expiry_is_recorded_as_expired_once():
    world = World(reservation_ttl_s=30.0)
    reservation = await world.admitted(10)
    world.clock.passes(31)
    await world.expiry.expire_overdue()
    world.service.close(reservation, usage(7))
    await world.drained()
    assert await world.counts() == (10, 0)
    assert await world.recorded() == [(Outcome.EXPIRED, 10)]


async def test_an_expiry_that_another_replica_had_no_time_to_record_waits_in_the_journal():
    world = World(reservation_ttl_s=30.0)
    reservation = await world.admitted(10)
    world.clock.passes(31)
    other = World(counters=world.counters)
    other.clock.passes(31)
    assert await other.expiry.expire_overdue() == 1
    other.ledger.open.clear()  # it dies before it could write
    async with other.running():
        await spin()
    world.service.close(reservation, usage(7))
    await world.drained()
    assert await world.recorded() == []
    assert await world.sweeper.sweep(0.0) == 1
    assert await world.recorded() == [(Outcome.EXPIRED, 10)]
    assert (await world.counters.backlog()).waiting == 0


async def test_an_expiry_that_comes_after_settlement_changes_and_records_nothing():
    world = World(reservation_ttl_s=30.0)
    reservation = await world.admitted(10)
    world.clock.passes(31)
    world.service.close(reservation, usage(7))
    await world.expiry.expire_overdue()  # both are in the queue
    await world.drained()
    assert await world.counts() == (7, 0)
    assert await world.recorded() == [(Outcome.SETTLED, 7)]
    assert world.counted("reservations_closed_total", outcome="expired", reason="expired") == 0


async def test_overdue_reservations_are_looked_for_again_and_again_and_faults_do_not_end_it():
    dead = World(reservation_ttl_s=30.0)  # a living one would renew
    await dead.admitted(10)
    world = World(counters=dead.counters, expiry_interval_s=0.005, renewed_within_s=0.001)
    world.clock.passes(31)
    world.counters.before = [away(), refused()]
    async with world.running():
        await until(world.entries)
    assert world.counters.before == []
    assert await world.recorded() == [(Outcome.EXPIRED, 10)]


async def test_every_reservation_has_an_id_of_its_own():
    world = World()
    ids = {(await world.admitted()).id for _ in range(5)}
    assert len(ids) == 5


async def test_an_outage_is_a_line_in_the_log_at_its_beginning_and_one_at_its_end(caplog):
    world = World()
    world.counters.before = [away(), away(), away()]
    for _ in range(5):
        await world.reserve()
    lines = [r.message for r in caplog.records if r.name == "extproc.metering.admission"]
    assert lines == ["redis unavailable: on_store_failure applies", "redis available again: decisions resume"]


async def test_what_was_never_decided_does_not_take_the_room_of_what_is_held(monkeypatch):
    monkeypatch.setattr(books_module, "_UNDONE_AT_MOST", 2)
    world = World()
    held = await world.admitted()
    world.counters.before = [away()] * 5
    for _ in range(5):
        assert isinstance(await world.reserve(), Unavailable)
    world.service.close(held, usage(7))
    async with world.running():
        assert await world.metering.drain(1)
    assert [closing.outcome for closing in world.counters.closed] == [Outcome.RELEASED] * 2 + [Outcome.SETTLED]
