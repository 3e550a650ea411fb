"""A change of limits in MongoDB, by whatever means, is effective within 5 seconds, on every processor."""

import pytest
import pytest_asyncio

from .callers import DEFAULT_LIMIT, Caller
from .marks import SYSTEM
from .waiting import until

pytestmark = SYSTEM


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two(beside):
    async with beside(processors=2) as started:
        yield started


@pytest.fixture
def anybody(two, records):
    """A new service account at a gateway with two processors."""
    return Caller(two, records)


async def effective(caller, amount):
    """Returns once several answers in a row tell the limit: the processors take turns. It costs nothing."""

    async def told():
        answers = [await caller.post(max_tokens=10_000_000) for _ in range(4)]
        assert {answer.status_code for answer in answers} == {429}
        return {answer.headers["x-ratelimit-limit-tokens"] for answer in answers} == {str(amount)}

    await until(told, f"a limit of {amount} is effective", within_s=5)


def documents(caller):
    return caller.records.database["tenantLimitation"]


async def test_nobody_is_without_a_limit(anybody):
    await effective(anybody, DEFAULT_LIMIT)


async def test_the_short_form_alone_is_a_whole_document(anybody):
    short = {"tenant_id": anybody.tenant, "sa_limit": 12_000, "ip_limit": 4000}
    await documents(anybody).insert_one(short)
    await effective(anybody, 4000)


async def test_numbers_that_the_legacy_shell_wrote_as_doubles_count(anybody):
    await documents(anybody).insert_one({"tenant_id": anybody.tenant, "sa_limit": 5000.0, "ip_limit": 3000.0})
    await effective(anybody, 3000)


async def test_a_limit_raised_and_lowered_is_effective_within_5_seconds(anybody):
    for amount in (1, 9000, 8000):
        await anybody.records.admin.limits.set(anybody.tenant, {"ip_limit": amount})
        await effective(anybody, amount)


async def test_what_was_used_stays_used_when_a_limit_changes(anybody):
    await anybody.limit(ip_limit=9000)
    await anybody.post(max_tokens=16)
    used = await anybody.settled()
    assert used > 0
    await anybody.records.admin.limits.set(anybody.tenant, {"ip_limit": used + 1})
    await effective(anybody, used + 1)
    answer = await anybody.post(max_tokens=16)
    assert answer.status_code == 429
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1"


async def test_a_deleted_tenant_is_bound_by_the_defaults(anybody):
    await anybody.limit(ip_limit=9000)
    await effective(anybody, 9000)
    await anybody.records.admin.limits.delete(anybody.tenant)
    await effective(anybody, DEFAULT_LIMIT)


@pytest.mark.parametrize("amount", [-1, "many", 1.5, True])
async def test_a_limit_that_can_not_be_meant_leaves_the_one_that_stood(anybody, amount):
    await anybody.limit(ip_limit=9000)
    await effective(anybody, 9000)
    await documents(anybody).update_one({"tenant_id": anybody.tenant}, {"$set": {"ip_limit": amount}})
    try:
        # Whoever comes next is known when the bad document is.
        other = Caller(anybody.stack, anybody.records)
        await other.records.admin.limits.set(other.tenant, {"ip_limit": 7000})
        await effective(other, 7000)
        await effective(anybody, 9000)
    finally:
        await anybody.records.admin.limits.set(anybody.tenant, {"ip_limit": 9000})
