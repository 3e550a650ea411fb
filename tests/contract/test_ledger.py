"""What every implementation of `ports.Ledger` and `ports.UsageReports` must do."""

import asyncio
import random

import pytest
from msgspec.structs import astuple

from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.ports.base import StoreError
from extproc.ports.ledger import DailyUsage, UsageFilter
from tests.changing import replace

from .reservations import HOSTILE, entry, who

ALL = UsageFilter()
_SUMS = ("usage", "input", "output", "cached", "requests", "denied", "estimated", "price")


async def summed(ledger):
    """Daily usage as the sum over the ledger, in the plainest way."""
    days = {}
    for each in await ledger.entries(ALL, 10_000):
        key = (*astuple(each.identity), each.date)
        day = days.setdefault(key, dict.fromkeys(_SUMS, 0))
        if each.outcome is Outcome.DENIED:
            day["denied"] += 1
            continue
        day["usage"] += each.charge
        for part in ("input", "output", "cached"):
            day[part] += getattr(each.usage, part)
        day["requests"] += 1
        day["price"] += each.price
        day["estimated"] += each.outcome is Outcome.ESTIMATED
    return days


async def stored(ledger):
    return {
        (day.tenant, day.service_account, day.client_ip, day.date): {name: getattr(day, name) for name in _SUMS}
        for day in await ledger.daily(ALL, 10_000)
    }


async def test_what_was_appended_can_be_read_back_as_it_was(ledger):
    made = [
        entry(12),
        replace(entry(7), usage=Usage(4, 3, 2, 1, 7), reason="cut_off", status=200, stream=False),
        entry(0, outcome=Outcome.DENIED, status=0),
        entry(9, outcome=Outcome.ESTIMATED),
        entry(
            5,
            cost=Cost(40, 2000),
            shadow=("service_account:day~shadow", "tenant:month~shadow"),
            price=3_500_000_000,
        ),
        entry(0, outcome=Outcome.DENIED, cost=Cost(12, 256), shadow=("client_ip:minute~requests~shadow",)),
    ]
    await ledger.append(made)
    assert await ledger.entries(ALL, 10) == made[::-1]  # newest first
    assert await ledger.entries(ALL, 2) == made[:-3:-1]


async def test_daily_usage_is_the_sum_of_a_day_per_service_account_and_ip(ledger):
    other = who(ip="10.0.0.2")
    await ledger.append([entry(10), entry(20), entry(5, identity=other)])
    await ledger.append([entry(0, outcome=Outcome.DENIED), entry(8, outcome=Outcome.ESTIMATED)])
    first, second = await ledger.daily(ALL, 10)
    assert first == DailyUsage("acme", "sa", "10.0.0.1", "2026-03-01", 38, 19, 19, 9, 3, 1, 1)
    assert second == DailyUsage("acme", "sa", "10.0.0.2", "2026-03-01", 5, 3, 2, 1, 1, 0, 0)


async def test_tenants_with_one_service_account_name_have_days_of_their_own(ledger):
    accounts = ("sa", "anonymous")
    for _ in range(2):
        made = [entry(n, identity=who(t, a)) for a in accounts for n, t in enumerate(("t1", "t2", "t3"), start=1)]
        await ledger.append([*made, entry(0, identity=who("t1"), outcome=Outcome.DENIED)])
    days = await ledger.daily(ALL, 10)
    assert {(day.tenant, day.service_account): (day.usage, day.denied) for day in days} == {
        (tenant, account): (2 * n, 2 * (account == "sa" and tenant == "t1"))
        for account in accounts
        for n, tenant in enumerate(("t1", "t2", "t3"), start=1)
    }
    assert [day.usage for day in await ledger.daily(UsageFilter(tenant="t2"), 10)] == [4, 4]


async def test_daily_usage_has_the_price_of_what_was_used(ledger):
    billion = 10**9  # the price of one unit of the currency
    await ledger.append([entry(1, price=2 * billion), entry(1), entry(1, price=1)])
    await ledger.append([entry(1, price=40_000_000 * billion), entry(0, outcome=Outcome.DENIED)])
    await ledger.append([entry(1, date="2026-03-02")])
    assert [day.price for day in await ledger.daily(ALL, 10)] == [0, 40_000_002 * billion + 1]


async def test_a_day_of_denials_only_has_no_usage(ledger):
    await ledger.append([entry(0, outcome=Outcome.DENIED)])
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests, day.denied) == (0, 0, 1)


async def test_appending_twice_counts_once(ledger):
    made = [entry(10), entry(20)]
    for _ in range(3):
        await ledger.append(made)
    assert len(await ledger.entries(ALL, 10)) == 2
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (30, 2)


async def test_a_batch_of_which_a_part_was_written_before_adds_the_other_part(ledger):
    made = [entry(1), entry(2), entry(4), entry(8)]
    await ledger.append([made[2], made[0]])
    await ledger.append(made)
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (15, 4)


async def test_a_write_that_came_too_late_writes_nothing_and_can_be_repeated(ledger):
    made, known = [entry(1), entry(2)], entry(4)
    await ledger.append([known])
    for batch in (made, [*made, known]):
        with pytest.raises(StoreError, match="too late") as caught:
            await ledger.append(batch, lambda: False)
        assert caught.value.transient
        assert await ledger.entries(ALL, 10) == [known]
        assert [day.usage for day in await ledger.daily(ALL, 10)] == [4]
    await ledger.append([*made, known], lambda: True)
    assert [day.usage for day in await ledger.daily(ALL, 10)] == [7]
    await ledger.append([], lambda: False)


async def test_an_entry_that_is_in_a_batch_twice_counts_once(ledger):
    same = entry(3)
    await ledger.append([same, entry(1), same])
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (4, 2)


async def test_the_first_entry_of_an_id_stands(ledger):
    first = entry(3)
    await ledger.append([first])
    await ledger.append([replace(first, charge=1000)])
    assert await ledger.entries(ALL, 10) == [first]
    assert (await ledger.daily(ALL, 10))[0].usage == 3


async def test_appending_nothing_writes_nothing(ledger):
    await ledger.append([])
    assert await ledger.daily(ALL, 10) == []


async def test_concurrent_appenders_of_one_day_lose_nothing(ledger):
    shared = [entry(1), entry(1)]
    batches = [[entry(n + 1), *shared, entry(n + 1)] for n in range(6)]
    await asyncio.gather(*map(ledger.append, batches))
    (day,) = await ledger.daily(ALL, 10)
    assert (day.usage, day.requests) == (2 * sum(range(1, 7)) + 2, 14)


async def test_concurrent_appenders_of_the_same_days_in_another_order_end(ledger):
    days = [f"2026-03-{day:02}" for day in range(1, 6)]
    batches = [[entry(1, date=day) for day in days], [entry(1, date=day) for day in reversed(days)]]
    await asyncio.gather(*map(ledger.append, batches))
    assert [(day.date, day.usage) for day in await ledger.daily(ALL, 10)] == [(day, 2) for day in days[::-1]]


async def test_daily_usage_is_the_sum_over_the_ledger_after_every_append(ledger):
    dice = random.Random(7)
    made = []
    for _ in range(12):
        for _ in range(dice.randint(1, 6)):
            identity = who(dice.choice(["acme", "t"]), dice.choice("ab"), dice.choice(["1", "2"]))
            outcome = dice.choice([Outcome.SETTLED, Outcome.ESTIMATED, Outcome.EXPIRED, Outcome.DENIED])
            date = dice.choice(["2026-03-01", "2026-03-02"])
            price = 0 if outcome is Outcome.DENIED else dice.choice([0, dice.randint(1, 10**10)])
            made.append(entry(dice.randint(0, 50), identity=identity, outcome=outcome, date=date, price=price))
        await ledger.append(dice.sample(made, min(len(made), 6)))
        assert await stored(ledger) == await summed(ledger)


async def test_hostile_names_never_share_a_day_and_come_back_unharmed(ledger):
    made = [entry(n, identity=who(*names)) for n, names in enumerate(HOSTILE, start=1)]
    await ledger.append(made)
    found = {(d.tenant, d.service_account, d.client_ip): d.usage for d in await ledger.daily(ALL, 100)}
    assert found == {(e.identity.tenant, e.identity.service_account, e.identity.client_ip): e.charge for e in made}
    assert await ledger.entries(ALL, 100) == made[::-1]
    for each in made:
        wanted = UsageFilter(*astuple(each.identity))
        assert [day.usage for day in await ledger.daily(wanted, 10)] == [each.charge]


@pytest.mark.parametrize("model", ["a.b", "$inc", ".", "$", "a..b", "%2E", "a b/c:d", "x\0y", "名前", "m" * 256])
async def test_any_name_of_a_model_can_be_counted(ledger, model):
    made = entry(5, model=model)
    await ledger.append([made, entry(1)])
    assert (await ledger.daily(ALL, 10))[0].usage == 6
    assert made in await ledger.entries(ALL, 10)


async def test_reports_are_of_what_was_asked_for(ledger):
    made = [
        entry(1, identity=who("t1", "a", "1"), date="2026-03-01"),
        entry(2, identity=who("t1", "a", "2"), date="2026-03-02"),
        entry(4, identity=who("t2", "b", "1"), date="2026-03-02"),
        entry(8, identity=who("t2", "b", "1"), date="2026-03-03"),
    ]
    await ledger.append(made)
    cases = {
        UsageFilter(): [8, 4, 2, 1],
        UsageFilter(tenant="t1"): [2, 1],
        UsageFilter(service_account="b"): [8, 4],
        UsageFilter(client_ip="1"): [8, 4, 1],
        UsageFilter(client_ip="1", tenant="t2"): [8, 4],
        UsageFilter(since="2026-03-02"): [8, 4, 2],
        UsageFilter(until="2026-03-02"): [4, 2, 1],
        UsageFilter(since="2026-03-02", until="2026-03-02"): [4, 2],
        UsageFilter(tenant="t"): [],
        UsageFilter(tenant=""): [],
    }
    for wanted, charges in cases.items():
        assert [day.usage for day in await ledger.daily(wanted, 10)] == charges, wanted
        assert sorted(e.charge for e in await ledger.entries(wanted, 10)) == sorted(charges), wanted
    assert [day.usage for day in await ledger.daily(ALL, 2)] == [8, 4]
