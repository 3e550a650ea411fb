"""Admission by a replica alone, while the counters are away: never more than a share of each limit a window."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from extproc.core.quota.hits import Hit
from extproc.core.quota.reservation import Admitted, Unavailable
from extproc.core.quota.settlement import Outcome, Settlement, released
from extproc.core.quota.usage import Usage
from extproc.core.request.identity import Identity
from extproc.metering.circuit_breaker import CircuitBreakerOptions
from extproc.ports.base import StoreError
from extproc.stores.spool import FileSpool, SpoolOptions, left_behind
from tests.changing import replace

from .waiting import all_done, until
from .world import WHO, World, away, usage

# Of what is expected to cost 10.
AS_EXPECTED = Settlement(Outcome.SETTLED, Usage(5, 5, total=10), 10, "usage", 200)


class Disk:
    """A spool in memory."""

    def __init__(self):
        self.lines, self.fault, self.hang = [], None, False

    async def opened(self, reservation):
        if self.hang:
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault
        self.lines.append(("opened", reservation.id))

    def ended(self, closing):
        self.lines.append(("ended", closing.reservation.id))

    def done(self, ids):
        self.lines += [("done", each) for each in ids]

    async def keep(self, closings):
        self.lines += [("kept", closing.reservation.id) for closing in closings]


def allowing(limit=1000, spool=None, **options):
    world = World(limit, spool=spool or Disk(), breaker=CircuitBreakerOptions(probe_s=0.005), **options)
    world.limits.documents[WHO.tenant] = {"on_store_failure": "allow"}
    return world


@asynccontextmanager
async def outage(world):
    """Nothing reaches the counters."""
    methods = ("reserve", "renew", "close", "ping", "overdue")
    before = {name: getattr(world.counters, name) for name in methods}

    async def failing(*_):
        raise away()

    for name in methods:
        setattr(world.counters, name, failing)
    yield
    for name, method in before.items():
        setattr(world.counters, name, method)


async def admitted_of(world, requests, cost=10, identity=WHO):
    decisions = [await world.reserve(cost, identity) for _ in range(requests)]
    return [decision.reservation for decision in decisions if isinstance(decision, Admitted)]


async def test_a_share_of_the_limit_is_admitted_and_counted_as_standby():
    world = allowing(1000)
    async with outage(world):
        local = await admitted_of(world, 20)
    assert len(local) == 10
    assert all(reservation.local for reservation in local)
    assert world.counted("decisions_total", outcome="admitted", reason="standby") == 10
    assert world.counted("decisions_total", outcome="unavailable", reason="store") == 10
    assert [what for what, _ in world.spool.lines] == ["opened"] * 10


async def test_a_tenant_that_did_not_ask_for_it_is_refused():
    world = allowing()
    world.limits.documents[WHO.tenant] = {"on_store_failure": "deny"}
    async with outage(world):
        assert isinstance(await world.reserve(), Unavailable)
    assert world.spool.lines == []


async def test_the_share_is_for_a_window_however_many_outages_there_are():
    world = allowing(1000)
    for _ in range(3):
        async with outage(world):
            for reservation in await admitted_of(world, 4):
                world.service.close(reservation, AS_EXPECTED)
        async with world.running(), asyncio.timeout(5):
            world.retry()
            await world.settler._ends.drained()
            await until(lambda: not world.counted("breaker_open"))
    assert (await world.counts())[0] == 100
    world.clock.passes(86_400)
    async with outage(world):
        assert len(await admitted_of(world, 20)) == 10


async def test_each_bucket_has_a_share_of_its_own():
    world = allowing(1000)
    async with outage(world):
        assert len(await admitted_of(world, 20)) == 10
        assert len(await admitted_of(world, 20, identity=replace(WHO, service_account="other"))) == 10


async def test_what_was_held_and_not_used_may_be_used_by_others():
    world = allowing(1000)
    async with outage(world):
        for charge in (None, 4):
            for reservation in await admitted_of(world, 20):
                world.service.close(reservation, usage(charge) if charge else released("upstream_error"))
        assert len(await admitted_of(world, 20)) == 6


@pytest.mark.parametrize(("mode", "admits"), [("strict", 0), ("shadow", 20), ("soft", 20), ("reserve", 10)])
async def test_a_strict_limit_admits_nothing_and_a_shadow_everything(mode, admits):
    world = allowing(1000)
    world.limits.documents[WHO.tenant] |= {"mode": mode, "sa_limit": 1000}
    async with outage(world):
        assert len(await admitted_of(world, 20)) == admits


async def test_a_full_spool_admits_nothing_and_takes_nothing_of_the_share():
    world = allowing(1000)
    world.spool.fault = StoreError("the spool is full", transient=True)
    async with outage(world):
        assert await admitted_of(world, 20) == []
        world.spool.fault = None
        assert len(await admitted_of(world, 20)) == 10


@pytest.mark.parametrize("how", ["cancelled", "too slow"])
async def test_what_could_not_be_written_down_in_time_takes_nothing_of_the_share(how):
    world = allowing(1000, decision_timeout_s=60.0 if how == "cancelled" else 0.02)
    async with outage(world):
        world.spool.hang = True
        asking = asyncio.create_task(world.reserve())
        if how == "cancelled":
            await all_done()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            assert isinstance(await asking, Unavailable)
        assert [what for what, _ in world.spool.lines] == ["done"]
        world.spool.hang = False
        assert len(await admitted_of(world, 20)) == 10


async def test_without_a_spool_nothing_is_admitted():
    world = World()
    world.limits.documents[WHO.tenant] = {"on_store_failure": "allow"}
    async with outage(world):
        assert isinstance(await world.reserve(), Unavailable)


async def test_names_that_are_made_up_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("extproc.metering.local_admission._BUCKETS_AT_MOST", 20)
    world = allowing(1000)
    async with outage(world):
        names = [Identity("acme", f"sa{n}", "10.0.0.1") for n in range(50)]
        assert sum([len(await admitted_of(world, 1, identity=name)) for name in names]) == 20
        world.clock.passes(2 * 86_400)
        assert len(await admitted_of(world, 1, identity=names[30])) == 1
    assert len(world.metering.local._counts) == 1


async def test_hits_are_counted_too_and_need_no_disk():
    world = allowing(1000)
    world.limits.documents[WHO.tenant] |= {"ratelimitIPPerMinute": 50}
    world.spool.fault = StoreError("the spool is full", transient=True)
    async with outage(world):
        decisions = [await world.service.hit(Hit(WHO, None, 1, ())) for _ in range(10)]
    assert sum(isinstance(each, Admitted) for each in decisions) == 5


# When the counters are back.


async def test_counters_that_are_back_hold_it_and_then_charge_it_once():
    world = allowing(1000)
    async with outage(world):
        streaming, over = await admitted_of(world, 2)
        world.service.close(over, usage(7))

    async def counted():
        return await world.counts() == (7, 10)

    async with world.running():
        world.retry()
        await until(counted)
    world.service.close(streaming, usage(8))
    await world.drained()
    assert await world.counts() == (15, 0)
    assert sorted(await world.recorded()) == [(Outcome.SETTLED, 7), (Outcome.SETTLED, 8)]
    assert {each for what, each in world.spool.lines if what == "done"} == {streaming.id, over.id}


async def test_an_end_that_overtakes_the_renewal_is_charged_once():
    world = allowing(1000)
    async with outage(world):
        (local,) = await admitted_of(world, 1)
        world.service.close(local, usage(7))
    (end,) = [end for end in world.settler._ends if end.closing.reservation.local]
    await world.counters.close([end.closing])
    await world.counters.renew([local])
    assert await world.counts() == (7, 0)
    await world.drained()
    assert await world.counts() == (7, 0)


async def test_what_has_ended_is_not_taken_up_again_by_its_renewal():
    """Its end may be forgotten by then: with the life of the counters that knew of it."""
    world = allowing(1000)
    async with outage(world):
        (local,) = await admitted_of(world, 1)
        world.service.close(local, usage(7))
    await world.leases._carry_out([local])
    assert await world.counts() == (0, 0)


async def test_a_killed_process_is_charged_as_held_once_however_often_it_is_replayed(tmp_path):
    spool = FileSpool(SpoolOptions(tmp_path / "spool"), "dead")
    world = allowing(1000, spool=spool, decision_timeout_s=2.0)
    async with outage(world):
        streaming, over = await admitted_of(world, 2)
        world.service.close(over, usage(7))
        await all_done()
        assert spool._flushing.done()
    os.close(spool._file)  # as by a kill
    after = World(1000, counters=world.counters, ledger=world.ledger, clock=world.clock, name="after")
    (left,) = left_behind(tmp_path / "spool")
    assert (left.unended, [c.reservation.id for c in left.ended]) == ([streaming], [over.id])
    world.counters.after = [away()]
    with pytest.raises(StoreError, match="away"):
        await after.metering.replay.replay(left.ended, left.unended)
    world.counters.after = []
    for _ in range(2):  # it was done, and could be lost with the counters: the spool has to stay
        with pytest.raises(StoreError, match="wait in the journal"):
            await after.metering.replay.replay(left.ended, left.unended)
    await after.sweeper.sweep(0.0)
    assert await after.metering.replay.replay(left.ended, left.unended) == 0
    assert await after.counts() == (17, 0)
    assert sorted(await after.recorded()) == [(Outcome.EXPIRED, 10), (Outcome.SETTLED, 7)]


async def test_what_could_not_be_delivered_at_the_end_goes_to_the_spool():
    world = allowing(1000)
    reservation = await world.admitted()
    async with outage(world):
        world.service.close(reservation, usage(7))
        async with world.running():
            assert await world.metering.drain(0.01)
    assert world.spool.lines == [("kept", reservation.id)]


async def test_more_than_the_disk_takes_is_not_said_to_be_kept(caplog):
    world = World(1000)
    reservation = await world.admitted()
    async with outage(world):
        world.service.close(reservation, usage(7))
        async with world.running():
            assert not await world.metering.drain(0.01)
    assert "shutdown: not everything was recorded in time: entries are lost" in caplog.messages
