"""A change of limits in MongoDB, by whatever means, is effective on every processor."""

import pytest

from tests.sizes import sampled

from .callers import CHANGE, DEFAULT_LIMIT, Caller
from .marks import SYSTEM
from .waiting import until

pytestmark = SYSTEM


async def effective(caller, amount):
    """Return once several answers in a row tell the limit: the processors take turns. It costs nothing.

    How soon that is, is shown by tests/chaos/test_limit_edits.py.
    """

    async def told():
        answers = [await caller.post(max_tokens=10_000_000) for _ in range(4)]
        assert {answer.status_code for answer in answers} == {429}
        return {answer.headers["x-ratelimit-limit-tokens"] for answer in answers} == {str(amount)}

    await until(told, f"a limit of {amount} is effective")


def documents(caller):
    return caller.records.database["tenantLimitation"]


async def test_nobody_is_without_a_limit(pair_caller):
    await effective(pair_caller, DEFAULT_LIMIT)


async def test_the_short_form_alone_is_a_whole_document(pair_caller):
    short = {"tenant_id": pair_caller.tenant, "sa_limit": 12_000, "ip_limit": 4000}
    await documents(pair_caller).insert_one(short)
    await effective(pair_caller, 4000)


async def test_numbers_that_the_legacy_shell_wrote_as_doubles_count(pair_caller):
    await documents(pair_caller).insert_one(
        {"tenant_id": pair_caller.tenant, "sa_limit": 5000.0, "ip_limit": 3000.0}
    )
    await effective(pair_caller, 3000)


async def test_a_limit_raised_and_lowered_is_effective_within_5_seconds(pair_caller):
    for amount in (1, 9000, 8000):
        await pair_caller.records.admin.limits.set(pair_caller.tenant, {"ip_limit": amount}, CHANGE)
        await effective(pair_caller, amount)


async def test_what_was_used_stays_used_when_a_limit_changes(pair_caller):
    await pair_caller.limit(ip_limit=9000)
    await pair_caller.post(max_tokens=16)
    used = await pair_caller.settled()
    assert used > 0
    await pair_caller.records.admin.limits.set(pair_caller.tenant, {"ip_limit": used + 1}, CHANGE)
    await effective(pair_caller, used + 1)
    answer = await pair_caller.post(max_tokens=16)
    assert answer.status_code == 429
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1"


async def test_a_deleted_tenant_is_bound_by_the_defaults(pair_caller):
    await pair_caller.limit(ip_limit=9000)
    await effective(pair_caller, 9000)
    await pair_caller.records.admin.limits.delete(pair_caller.tenant, CHANGE)
    await effective(pair_caller, DEFAULT_LIMIT)


@pytest.mark.parametrize("amount", sampled([-1, "many", 1.5, True], 1))
async def test_a_limit_that_can_not_be_meant_leaves_the_one_that_stood(pair_caller, amount):
    await pair_caller.limit(ip_limit=9000)
    await effective(pair_caller, 9000)
    await documents(pair_caller).update_one({"tenant_id": pair_caller.tenant}, {"$set": {"ip_limit": amount}})
    try:
        # Whoever comes next is known when the bad document is.
        other = Caller(pair_caller.stack, pair_caller.records)
        await other.records.admin.limits.set(other.tenant, {"ip_limit": 7000}, CHANGE)
        await effective(other, 7000)
        await effective(pair_caller, 9000)
    finally:
        await pair_caller.records.admin.limits.set(pair_caller.tenant, {"ip_limit": 9000}, CHANGE)
