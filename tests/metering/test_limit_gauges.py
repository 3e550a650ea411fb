"""The use of the tenants' limits, as metrics: right, bounded, and gone when its window or its tenant is."""

import asyncio

import pytest

from extproc.core.quota.binding import Policy
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.request.identity import Identity
from extproc.metering.limit_gauges import LimitGaugesOptions
from extproc.stores.memory.counters import MemoryCounters

from .world import WHO, Counters, Policies, World, away, usage

DAY = {"scope": "tenant", "window": "day", "amount": 1000}
OTHER_ACCOUNT = Identity("acme", "other", "10.0.0.2")


def world_of(tenants=10, counters=None, **documents):
    world = World(counters=counters, limit_gauges=LimitGaugesOptions(tenants=tenants))
    world.limits.documents |= documents
    return world


def shown(world, name="used"):
    """Labels but the unit -> value, of one gauge."""
    found = {}
    for family in world.metrics.registry.collect():
        if family.name == f"tokenweir_limit_{name}":
            for sample in family.samples:
                found[sample.labels["tenant"], sample.labels["scope"], sample.labels["window"]] = sample.value
    return found


def tenants(world):
    return {tenant for tenant, _, _ in shown(world)}


async def spend(world, amount, identity=WHO):
    reservation = (await world.reserve(amount, identity)).reservation
    world.service.close(reservation, usage(amount))
    await world.drained()


async def test_a_tenants_own_limit_is_shown_before_anybody_has_asked():
    world = world_of(acme={"limits": [DAY]})
    await world.metering.limit_gauges.show()
    key = ("acme", "tenant", "day")
    assert {name: shown(world, name)[key] for name in ("amount", "used", "remaining", "used_ratio")} == {
        "amount": 1000,
        "used": 0,
        "remaining": 1000,
        "used_ratio": 0,
    }


async def test_use_holds_and_the_end_of_the_window_are_those_of_the_counters():
    world = world_of(acme={"limits": [DAY], "timezone": "Asia/Tokyo"})
    await spend(world, 300)
    held = (await world.admitted(100)).held
    await world.metering.limit_gauges.show()
    key = ("acme", "tenant", "day")
    assert shown(world)[key] == 300
    assert shown(world, "remaining")[key] == 700 - held < 700
    assert shown(world, "used_ratio")[key] == pytest.approx(0.3)
    assert shown(world, "resets_timestamp_seconds")[key] == world.clock.now().replace(hour=15).timestamp()


async def test_of_service_accounts_the_one_that_used_the_greatest_part_is_shown_without_its_name():
    accounts = [{"name": "other", "limits": [{"scope": "service_account", "window": "day", "amount": 50}]}]
    world = world_of(acme={"sa_limit": 1000, "service_accounts": accounts})
    await spend(world, 300)
    await spend(world, 40, OTHER_ACCOUNT)
    await world.metering.limit_gauges.show()
    key = ("acme", "service_account", "day")
    assert (shown(world)[key], shown(world, "amount")[key]) == (40, 50)


async def test_a_top_up_is_part_of_the_amount():
    until = "2026-03-02T00:00:00Z"
    top_up = {"scope": "tenant", "window": "day", "amount": 500, "until": until}
    world = world_of(acme={"limits": [DAY], "top_ups": [top_up]})
    await world.metering.limit_gauges.show()
    assert shown(world, "amount") == {("acme", "tenant", "day"): 1500}


async def test_a_limit_of_0_is_all_used():
    world = world_of(acme={"limits": [DAY | {"amount": 0}]})
    await world.metering.limit_gauges.show()
    assert shown(world, "used_ratio") == {("acme", "tenant", "day"): 1}


async def test_a_shadow_limit_is_not_shown():
    world = world_of(acme={"limits": [DAY | {"mode": "shadow", "shadows": "reserve"}]})
    await spend(world, 10)
    await world.metering.limit_gauges.show()
    assert ("acme", "tenant", "day") not in shown(world)


async def test_when_a_window_ends_its_use_goes():
    world = world_of(acme={"limits": [DAY], "sa_limit": 500})
    await spend(world, 300)
    await world.metering.limit_gauges.show()
    assert shown(world)["acme", "service_account", "day"] == 300
    world.clock.passes(86400)
    await world.metering.limit_gauges.show()
    assert shown(world) == {("acme", "tenant", "day"): 0}, "nobody has asked in the new day"


async def test_a_tenant_that_was_deleted_is_not_shown_any_more():
    world = world_of(acme={"limits": [DAY], "sa_limit": 500}, other={"limits": [DAY]})
    await spend(world, 300)
    await world.metering.limit_gauges.show()
    assert tenants(world) == {"acme", "other"}
    del world.limits.documents["acme"]
    await world.metering.limit_gauges.show()
    assert tenants(world) == {"other"}


async def test_a_limit_that_was_changed_is_shown_as_it_is_now():
    world = world_of(acme={"limits": [DAY]})
    await spend(world, 300)
    await world.metering.limit_gauges.show()
    world.limits.documents["acme"] = {"limits": [DAY | {"amount": 600}]}
    await world.metering.limit_gauges.show()
    key = ("acme", "tenant", "day")
    assert (shown(world, "amount")[key], shown(world, "used_ratio")[key]) == (600, 0.5)


async def test_no_more_tenants_are_shown_than_fit_and_the_others_are_counted():
    world = world_of(tenants=2, **{name: {"limits": [DAY]} for name in ("a", "b", "c", "acme")})
    await spend(world, 10)
    for _ in range(2):
        await world.metering.limit_gauges.show()
        assert tenants(world) == {"acme", "a"}, "first who asks, then who has a document"
        assert world.counted("limits_not_shown") == 2
    del world.limits.documents["c"]
    await world.metering.limit_gauges.show()
    assert world.counted("limits_not_shown") == 1


async def test_who_has_a_place_keeps_it_while_its_requests_come():
    world = world_of(tenants=1, **{name: {"limits": [DAY]} for name in ("a", "b")})
    for name in ("a", "b", "b"):
        await spend(world, 10, Identity(name, "sa", "10.0.0.1"))
        await world.metering.limit_gauges.show()
        assert tenants(world) == {"a"}


class Unconfigured(Policies):
    """Tenants without a document have the defaults, and are not known."""

    def policy(self, tenant):
        if tenant in self.documents:
            return super().policy(tenant)
        return Policy(tenant, (Limit(Scope.TENANT, Window.DAY, 500),), self.defaults.zone, known=False)


async def test_a_tenant_that_nobody_configured_is_shown_once_it_has_used_anything_and_leaves_half_to_others(
    monkeypatch,
):
    monkeypatch.setattr("tests.metering.world.Policies", Unconfigured)
    world = world_of(tenants=4)
    asked = [Identity(f"t{n}", "sa", "10.0.0.1") for n in range(4)]
    for identity in asked:
        await world.reserve(10, identity)
    await world.metering.limit_gauges.show()
    assert shown(world) == {}
    for identity in asked:
        await spend(world, 10, identity)
    await world.metering.limit_gauges.show()
    assert len(tenants(world)) == 2
    assert world.counted("limits_not_shown") == 2
    world.limits.documents |= {name: {"limits": [DAY]} for name in ("a", "b", "c")}
    await world.metering.limit_gauges.show()
    assert tenants(world) > {"a", "b"}
    assert len(tenants(world)) == 4


async def test_while_the_counters_are_away_the_last_counts_stay_until_their_window_ends():
    failing = Counters()
    world = world_of(counters=failing, acme={"limits": [DAY, DAY | {"window": "hour"}]}, b={"limits": [DAY]})
    await spend(world, 300)
    await world.metering.limit_gauges.show()
    asked = []

    async def read(tenant, buckets):
        asked.append(tenant)
        raise away()

    failing.read = read
    world.clock.passes(3600)
    await world.metering.limit_gauges.show()
    assert shown(world) == {("acme", "tenant", "day"): 300, ("b", "tenant", "day"): 0}
    assert len(asked) == 1, "what is away is asked once"


async def test_counters_that_hang_are_given_up():
    world = world_of(acme={"limits": [DAY]})
    await world.metering.limit_gauges.show()
    world.counters.hang_reads = True
    await world.metering.limit_gauges.show()
    assert shown(world) == {("acme", "tenant", "day"): 0}


async def test_however_many_callers_there_are_the_series_and_the_reads_are_bounded(monkeypatch):
    monkeypatch.setattr("extproc.metering.limit_gauges._CALLERS_BUCKETS", 100)

    class Counting(MemoryCounters):
        read_buckets = largest = 0

        async def read(self, tenant, buckets):
            self.read_buckets += len(buckets)
            self.largest = max(self.largest, len(buckets))
            return await super().read(tenant, buckets)

    counting = Counting()
    world = World(counters=counting, limit_gauges=LimitGaugesOptions(tenants=10))
    world.limits.documents["acme"] = {"limits": [DAY | {"amount": 10**9}], "sa_limit": 100, "ip_limit": 100}
    for number in range(300):
        await world.reserve(10, Identity("acme", f"account-{number}", f"10.0.1.{number % 250}"))
    await world.metering.limit_gauges.show()
    assert counting.read_buckets <= 101
    assert counting.largest <= 50
    assert len(shown(world)) == 3
    assert not any(
        "account-" in str(sample.labels) for f in world.metrics.registry.collect() for sample in f.samples
    )


async def test_with_0_tenants_nothing_is_read():
    world = world_of(tenants=0, acme={"limits": [DAY]})
    await world.metering.limit_gauges.run()
    assert shown(world) == {}


async def test_it_is_shown_again_and_again_as_long_as_the_replica_runs():
    world = world_of(acme={"limits": [DAY]})
    async with world.running():
        await asyncio.sleep(20)
        assert shown(world) == {("acme", "tenant", "day"): 0}


async def test_decisions_are_counted_by_tenant():
    world = world_of(acme={"limits": [DAY | {"amount": 15}]})
    await world.reserve(10)
    await world.reserve(10)
    world.counters.before.append(away())
    await world.reserve(1)
    world.limits.documents["acme"] = {"suspended": "unpaid"}
    await world.reserve(1)
    told = {
        outcome: world.counted("tenant_decisions_total", tenant="acme", outcome=outcome)
        for outcome in ("admitted", "denied", "unavailable")
    }
    assert told == {"admitted": 1, "denied": 2, "unavailable": 1}
