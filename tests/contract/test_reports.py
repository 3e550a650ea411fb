"""What every implementation of `ports.UsageSums` must do: its sums are those of the ledger."""

import asyncio
import random
from datetime import timedelta

import pytest

from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.ports.ledger import UsageFilter
from extproc.ports.reports import By, Grain, Measure, ReportFilter, Sums, UsageRow, sums_of
from tests.changing import replace
from tests.sizes import sampled, sized

from .reservations import HOSTILE, NOW, entry, who

ALL = ReportFilter()
MODELS = ["m", "llama-3.3", "a.b$c", "%2E", "(other)", "(none)", "", "=cmd()", "$x", "ü", "x\0y"]
ENDPOINTS = ["chat_completions", "embeddings", "messages"]


def some_entry(chosen, tenants):
    at = NOW - timedelta(minutes=chosen.randrange(120 * 24 * 60))
    local = at + timedelta(hours=chosen.choice([-11, 0, 14]))
    outcome = chosen.choice([Outcome.SETTLED, Outcome.SETTLED, Outcome.ESTIMATED, Outcome.DENIED])
    denied = outcome is Outcome.DENIED
    amount = 0 if denied else chosen.randrange(2**33)
    return replace(
        entry(amount, outcome=outcome),
        identity=who(*chosen.choice(tenants)),
        usage=NO_USAGE if denied else Usage(chosen.randrange(900), chosen.randrange(900), chosen.randrange(9)),
        price=0 if denied else chosen.randrange(10**11),
        count=chosen.randrange(1, 5) if denied else 1,
        model=chosen.choice(MODELS),
        endpoint=chosen.choice(ENDPOINTS),
        status=0 if denied else chosen.choice([200, 200, 404]),
        admitted_at=at,
        ended_at=at + timedelta(seconds=chosen.randrange(300)),
        date=f"{local:%Y-%m-%d}",
    )


def plainly(entries, by, wanted, grain):
    sums = {}
    for each in entries:
        if wanted.fits(each, grain or Grain.DAY):
            key = (grain.period(each) if grain else None, *by.key(each))
            sums[key] = sums.get(key, Sums()) + sums_of(each)
    return [UsageRow(*key, value) for key, value in sums.items()]


def in_order(rows):
    rows = sorted(rows, key=lambda row: (row.name, row.tenant or ""))
    return sorted(rows, key=lambda row: row.period or "", reverse=True)


def filters(chosen, entries):
    one, other = chosen.choice(entries), chosen.choice(entries)
    who_ = one.identity
    since, until = sorted([one.date, other.date])
    yield ALL
    yield ReportFilter(since=since, until=until)
    yield ReportFilter(tenant=who_.tenant, since=since)
    yield ReportFilter(tenant=who_.tenant, service_account=who_.service_account, until=until)
    yield ReportFilter(service_account=who_.service_account, client_ip=who_.client_ip)
    yield ReportFilter(client_ip=who_.client_ip, since=since, until=until)
    yield ReportFilter(model=one.model, until=until)
    yield ReportFilter(tenant=who_.tenant, endpoint=one.endpoint)
    yield ReportFilter(model=one.model, endpoint=one.endpoint, since=since)
    yield ReportFilter(service_account=who_.service_account, model=one.model)
    yield ReportFilter(since=f"{until[:7]}-01", until=f"{until[:7]}-28")


# Every report by every grain. In the quick form each filter meets a fourth of them, and all filters together each one:
# the number of grains has no factor in common with it.
KINDS = [(by, grain) for by in By for grain in Grain]
STEP = sized(4, 1)
TENANTS = [(f"t{n % 3}", f"sa{n % 2}", f"10.0.0.{n % 4}") for n in range(9)]


@pytest.mark.parametrize("seed", range(1))
async def test_all_reports_of_all_filters_are_the_sums_of_the_ledger(ledger, sums, seed):
    chosen = random.Random(seed)
    made = [some_entry(chosen, TENANTS) for _ in range(100)]
    for start in range(0, 100, 50):
        await ledger.append(made[start : start + 50])
    assert len(await ledger.entries(UsageFilter(), 1000)) == 100
    for number, wanted in enumerate(filters(chosen, made)):
        expected = sum((sums_of(each) for each in made if wanted.fits(each)), Sums())
        assert await sums.total(wanted) == expected, wanted
        for by, grain in KINDS[number % STEP :: STEP]:
            assert in_order(await sums.top(by, wanted, Measure.USAGE, 1000)) == in_order(
                plainly(made, by, wanted, None)
            ), (by, wanted)
            rows = await sums.report(by, grain, wanted, 1000)
            assert rows == in_order(plainly(made, by, wanted, grain)), (by, grain, wanted)
    assert not (await sums.missing()).entries


async def test_pages_of_a_report_are_the_whole_report(ledger, sums):
    chosen = random.Random(7)
    await ledger.append([some_entry(chosen, HOSTILE) for _ in range(60)])
    for by, grain in KINDS[::STEP]:
        whole, paged, after = await sums.report(by, grain, ALL, 1000), [], None
        while page := await sums.report(by, grain, ALL, 7, after):
            paged += page
            after = page[-1].place
        assert paged == whole, (by, grain)


@pytest.mark.parametrize("measure", sampled(Measure, quick=2))
async def test_the_largest_come_first_by_any_measure(ledger, sums, measure):
    chosen = random.Random(3)
    made = [some_entry(chosen, TENANTS) for _ in range(50)]
    await ledger.append(made)
    for by in By:
        ranked = sorted(
            plainly(made, by, ALL, None),
            key=lambda row: (-getattr(row.sums, measure), row.name, row.tenant or ""),
        )
        assert await sums.top(by, ALL, measure, 3) == ranked[:3]


async def test_an_empty_ledger_has_empty_reports(sums):
    assert await sums.report(By.TENANT, Grain.DAY, ALL, 10) == []
    assert await sums.top(By.MODEL, ALL, Measure.PRICE, 10) == []
    assert await sums.total(ALL) == Sums()


async def test_entries_of_two_that_append_at_once_are_all_summed(ledger, sums):
    chosen = random.Random(5)
    batches = [[some_entry(chosen, TENANTS) for _ in range(10)] for _ in range(6)]
    await asyncio.gather(*(ledger.append([*batch, *batches[0]]) for batch in batches))
    made = [each for batch in batches for each in batch]
    assert await sums.report(By.MODEL, Grain.HOUR, ALL, 1000) == in_order(plainly(made, By.MODEL, ALL, Grain.HOUR))


async def test_made_up_models_share_a_row_and_a_filter_still_finds_each_of_them(ledger, sums, in_memory):
    today = f"{NOW:%Y-%m-%d}"
    made = [replace(entry(0, status=404), date=today, model=f"made-up {n}") for n in range(130)]
    await ledger.append([*made, replace(entry(5), date=today, model="real")])
    rows = await sums.report(By.MODEL, Grain.MONTH, ALL, 1000)
    assert sum(row.sums.requests for row in rows) == 131
    assert next(row for row in rows if row.name == "real").sums.usage == 5
    assert in_memory or len(rows) == 102
    for name in ("made-up 3", "made-up 127"):
        assert (await sums.total(ReportFilter(model=name))).requests == 1
        assert [row.name for row in await sums.report(By.TENANT, Grain.DAY, ReportFilter(model=name), 9)] == [
            "acme"
        ]
