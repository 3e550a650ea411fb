"""Limits in memory follow the store: by its change stream, by polling where there is none, and never to nothing."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from extproc.core.quota.policies import Defaults, limits_from
from extproc.metering.limits_cache import LimitsCache, LimitsCacheOptions
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.mongo.client import TENANTS
from extproc.stores.mongo.tenants import MongoTenants

from .reservations import short

DEFAULTS = Defaults(limits_from({"sa_limit": 7}), ZoneInfo("UTC"))
LONG = LimitsCacheOptions(poll_s=60.0, refresh_s=60.0, settle_s=0.01)
POLLING = LimitsCacheOptions(poll_s=0.02, refresh_s=60.0, settle_s=0.0)


class Clock:
    def now(self):
        return datetime(2026, 3, 1, tzinfo=UTC)


class Store(MemoryTenants):
    """Tenants in memory, with documents of any shape and faults to switch on."""

    def __init__(self):
        super().__init__()
        self.watchable = True
        self.broken = False
        self.reads = 0
        self.cut = asyncio.Event()

    def store(self, *documents):
        self._documents = dict(enumerate(documents))
        self._changed.set()

    async def documents(self):
        self.reads += 1
        if self.broken:
            raise StoreError("away", transient=True)
        return await super().documents()

    async def changes(self):
        if not self.watchable:
            raise StoreError("no change streams here", transient=False)
        inner, cut = super().changes(), asyncio.ensure_future(self.cut.wait())
        try:
            while True:
                change = asyncio.ensure_future(anext(inner))
                await asyncio.wait({change, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    change.cancel()
                    raise StoreError("cut off", transient=True)
                yield change.result()
        finally:
            cut.cancel()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def metrics():
    return Metrics()


def follower_of(store, metrics, options=LONG):
    return LimitsCache(store, DEFAULTS, Clock(), metrics, options)


@asynccontextmanager
async def running(follower):
    task = asyncio.create_task(follower.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


def sa_limit(follower, tenant="a"):
    return next((limit.amount for limit in follower.policy(tenant).limits), None)


async def until(condition, seconds=5.0):
    """Seconds until the condition held."""
    start = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a policy has no event
            await asyncio.sleep(0.002)
    return time.monotonic() - start


def value(metrics, name):
    return metrics.registry.get_sample_value(name)


# ---------------------------------------------------------------- reading


async def test_a_tenant_that_nobody_configured_has_the_defaults(store, metrics):
    follower = follower_of(store, metrics)
    assert follower.policy("a") == DEFAULTS.policy("a")
    await follower.load()
    assert not follower.policy("a").known


async def test_the_limits_of_a_tenant_stay_the_same_object_as_long_as_nothing_changes(store, metrics, monkeypatch):
    monkeypatch.setattr("extproc.metering.limits_cache._DEFAULTS_AT_MOST", 3)
    limits = follower_of(store, metrics)
    await limits.load()
    assert limits.policy("nobody-1") is limits.policy("nobody-1")
    found = [limits.policy(f"nobody-{number}") for number in range(9)]
    assert [policy.tenant for policy in found] == [f"nobody-{number}" for number in range(9)]
    assert len(limits._without_document) <= 3
    assert limits.policy("nobody-8") is found[-1]


async def test_what_was_read_binds(store, metrics):
    follower = follower_of(store, metrics)
    store.store({"tenant_id": "a", "sa_limit": 100.0, "ip_limit": 5}, {"tenant_id": "b", "sa_limit": 3})
    await follower.load()
    assert follower.policy("a").limits == limits_from({"sa_limit": 100, "ip_limit": 5})
    assert follower.policy("b").limits == limits_from({"sa_limit": 3})
    assert value(metrics, "tokenweir_limits_tenants") == 2
    assert value(metrics, "tokenweir_limits_loaded_timestamp_seconds") == Clock().now().timestamp()


async def test_a_deleted_tenant_falls_back_to_the_defaults(store, metrics):
    follower = follower_of(store, metrics)
    store.store({"tenant_id": "a", "sa_limit": 100})
    await follower.load()
    store.store()
    await follower.load()
    assert follower.policy("a") == DEFAULTS.policy("a")


async def test_a_field_that_can_not_be_used_keeps_its_last_good_value_and_is_complained_of_once(
    store, metrics, caplog
):
    follower = follower_of(store, metrics)
    good = {"tenant_id": "b", "sa_limit": 3}
    store.store({"tenant_id": "a", "sa_limit": 100}, good)
    await follower.load()
    for _ in range(3):
        store.store({"tenant_id": "a", "sa_limit": "lots", "ip_limit": 5}, good | {"sa_limit": 4})
        await follower.load()
        assert follower.policy("a").limits == limits_from({"sa_limit": 100, "ip_limit": 5})
        assert sa_limit(follower, "b") == 4
    assert [record.tenant for record in caplog.records if record.levelno == logging.ERROR] == ["a"]
    assert value(metrics, "tokenweir_limits_bad_documents") == 1
    store.store({"tenant_id": "a", "sa_limit": "more", "suspended": 7, "version": 2}, good)
    await follower.load()
    assert (sa_limit(follower, "a"), follower.policy("a").suspended) == (100, None)
    assert value(metrics, "tokenweir_limits_bad_fields") == 2
    store.store({"tenant_id": "a", "sa_limit": "more", "suspended": 7, "version": 3}, good)
    await follower.load()
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 3  # two more versions
    store.store({"tenant_id": "a", "sa_limit": 101}, good)
    await follower.load()
    assert sa_limit(follower, "a") == 101
    assert value(metrics, "tokenweir_limits_bad_documents") == 0


async def test_a_document_that_was_never_good_leaves_its_tenant_the_defaults(store, metrics):
    follower = follower_of(store, metrics)
    store.store({"tenant_id": "a", "sa_limit": "lots"}, {"sa_limit": 5}, {"tenant_id": 5})
    await follower.load()
    assert follower.policy("a").limits == DEFAULTS.policy("a").limits
    assert value(metrics, "tokenweir_limits_bad_documents") >= 1


async def test_a_suspension_outlives_a_document_that_can_not_be_read(store, metrics):
    follower = follower_of(store, metrics)
    store.store({"tenant_id": "a", "sa_limit": 100, "suspended": "unpaid"})
    await follower.load()
    for version in range(3):
        store.store({"tenant_id": "a", "sa_limit": [], "suspended": {"why": 1}, "version": version})
        await follower.load()
        assert (sa_limit(follower, "a"), follower.policy("a").suspended) == (100, "unpaid")
    store.store({"tenant_id": "a", "sa_limit": 5})
    await follower.load()
    assert (sa_limit(follower, "a"), follower.policy("a").suspended) == (5, None)


async def test_a_store_that_is_away_leaves_what_is_known(store, metrics):
    follower = follower_of(store, metrics)
    store.store({"tenant_id": "a", "sa_limit": 100})
    await follower.load()
    store.broken = True
    with pytest.raises(StoreError):
        await follower.load()
    assert sa_limit(follower) == 100


async def test_an_earlier_state_never_replaces_a_later_one(store, metrics):
    follower, goes_on, plain = follower_of(store, metrics), asyncio.Event(), store.documents

    async def slow():
        documents = await plain()
        await goes_on.wait()
        return documents

    store.store({"tenant_id": "a", "sa_limit": 1})
    store.documents = slow
    first = asyncio.create_task(follower.load())
    await asyncio.sleep(0)
    store.store({"tenant_id": "a", "sa_limit": 2})
    store.documents = plain
    second = asyncio.create_task(follower.load())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(first, second)
    assert sa_limit(follower) == 2


# ---------------------------------------------------------------- following


async def test_a_change_binds_at_once_where_the_store_tells_of_it(store, metrics):
    follower = follower_of(store, metrics)
    async with running(follower):
        await store.update("a", short(100, None))
        assert await until(lambda: sa_limit(follower) == 100) < 5
        await store.update("a", short(200, None))
        assert await until(lambda: sa_limit(follower) == 200) < 5


async def test_a_burst_of_changes_is_read_once(store, metrics):
    follower = follower_of(store, metrics, LimitsCacheOptions(60.0, 60.0, settle_s=0.05))
    async with running(follower):
        await until(lambda: store.reads == 1)
        for amount in range(1, 50):
            await store.update("a", short(amount, None))
            await asyncio.sleep(0)
        await until(lambda: sa_limit(follower) == 49)
        assert store.reads == 2


async def test_changes_are_found_by_polling_where_the_store_can_not_be_watched(store, metrics):
    store.watchable = False
    follower = follower_of(store, metrics, POLLING)
    async with running(follower):
        await store.update("a", short(100, None))
        assert await until(lambda: sa_limit(follower) == 100) < 5


async def test_polling_takes_over_as_soon_as_watching_ends(store, metrics):
    follower = follower_of(store, metrics, POLLING)
    async with running(follower):
        await until(lambda: store.reads == 1)
        store.watchable = False
        store.cut.set()
        reads = store.reads
        await until(lambda: store.reads > reads + 3, 1.0)


async def test_watching_is_taken_up_again(store, metrics):
    store.watchable = False
    follower = follower_of(store, metrics, LimitsCacheOptions(poll_s=0.02, refresh_s=60.0, settle_s=0.0))
    async with running(follower):
        await until(lambda: store.reads > 2)
        store.watchable = True
        await until(lambda: follower._watching)
        await store.update("a", short(100, None))
        await until(lambda: sa_limit(follower) == 100)


async def test_a_change_that_could_not_be_read_is_read_as_soon_as_the_store_is_back(store, metrics):
    follower = follower_of(store, metrics, POLLING)
    async with running(follower):
        await until(lambda: store.reads == 1)
        store.broken = True
        await store.update("a", short(100, None))
        await until(lambda: store.reads > 2)
        store.broken = False
        assert await until(lambda: sa_limit(follower) == 100) < 5


async def test_limits_are_read_again_now_and_then_even_where_nobody_tells(store, metrics):
    follower = follower_of(store, metrics, LimitsCacheOptions(poll_s=60.0, refresh_s=0.02))
    async with running(follower):
        await until(lambda: store.reads > 3)


# ---------------------------------------------------------------- on MongoDB


async def test_a_change_in_mongodb_binds_within_five_seconds_and_usually_at_once(replica_set, metrics):
    tenants = MongoTenants(replica_set)
    follower = LimitsCache(tenants, DEFAULTS, Clock(), metrics, LimitsCacheOptions(poll_s=4.0))
    await follower.load()
    async with running(follower):
        await until(lambda: follower._watching)
        for amount in (100, 200, 300):
            await replica_set.collection(TENANTS).update_one(
                {"tenant_id": "a"}, {"$set": {"sa_limit": float(amount)}}, upsert=True
            )
            assert await until(lambda amount=amount: sa_limit(follower) == amount) < 5
        await replica_set.collection(TENANTS).delete_one({"tenant_id": "a"})
        assert await until(lambda: sa_limit(follower) == 7) < 5


async def test_a_change_in_mongodb_binds_within_five_seconds_also_without_a_change_stream(replica_set, metrics):
    tenants = MongoTenants(replica_set)
    follower = LimitsCache(_Unwatchable(tenants), DEFAULTS, Clock(), metrics, LimitsCacheOptions(poll_s=0.1))
    async with running(follower):
        await tenants.update("a", short(100, None))
        assert await until(lambda: sa_limit(follower) == 100) < 5


class _Unwatchable:
    def __init__(self, inner):
        self.documents = inner.documents

    async def changes(self):
        raise StoreError("not on this server", transient=False)
        yield
