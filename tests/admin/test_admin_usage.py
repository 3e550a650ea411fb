"""The use cases on usage reports and closed months, over stores in memory."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.admin.change import Change
from extproc.admin.closing import Closing
from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.usage import UsageAdmin, a_month, of_month, rebuild
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.quota.policies import Defaults
from extproc.core.quota.settlement import Outcome
from extproc.ports.audit import Actor, ActorKind, AuditFilter
from extproc.ports.journal import Backlog
from extproc.ports.reports import By, Grain, Measure, Missing, ReportFilter, Sums, sums_of
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.sums import MemoryClosedMonths, MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from tests.changing import replace
from tests.contract.reservations import entry, who

NOW = datetime(2026, 3, 1, 1, 30, tzinfo=UTC)
CLOSE = Change(Actor("ada", ActorKind.OS_USER, "host"), note="run 7")
ALL = ReportFilter()


class Setup:
    def __init__(self, now=NOW):
        self.now = now
        self.ledger, self.tenants, self.months = MemoryLedger(), MemoryTenants(), MemoryClosedMonths()
        self.sums = MemorySums(self.ledger.all_entries)
        self.backlog_now = Backlog(0, 0.0, 0)
        defaults = Defaults((Limit(Scope.TENANT, Window.DAY, 100),), ZoneInfo("UTC"))
        self.usage = UsageAdmin(self.sums, self.tenants, defaults, lambda: self.now)
        self.closing = Closing(self.sums, self.months, self, self.tenants.audit, lambda: self.now, "EUR")

    async def backlog(self):
        return self.backlog_now

    async def used(self, amount, date="2026-02-10", tenant="acme", account="sa", price=0, **more):
        at = datetime.fromisoformat(date).replace(hour=12, tzinfo=UTC)
        made = replace(
            entry(amount, identity=who(tenant, account), **more),
            date=date,
            price=price,
            admitted_at=at,
            ended_at=at,
        )
        await self.ledger.append([made])
        return made


async def test_pages_follow_one_another_to_the_end():
    setup = Setup()
    for day in range(1, 10):
        for tenant in ("a", "b"):
            await setup.used(day, f"2026-02-{day:02}", tenant)
    rows, cursor = [], None
    while True:
        page = await setup.usage.report(By.TENANT, Grain.DAY, ALL, 4, cursor)
        rows += page.rows
        cursor = page.cursor
        if cursor is None:
            break
    assert [(row.period[-2:], row.name) for row in rows] == [(f"{d:02}", t) for d in range(9, 0, -1) for t in "ab"]


async def test_top_sums_up_and_ranks_by_what_is_asked_for():
    setup = Setup()
    await setup.used(10, account="a", price=5)
    await setup.used(12, account="b", price=3)
    await setup.used(0, account="c", outcome=Outcome.DENIED)
    by_usage = await setup.usage.top(By.SERVICE_ACCOUNT, ALL, Measure.USAGE, 2)
    assert [(row.name, row.tenant, row.sums.usage) for row in by_usage] == [("b", "acme", 12), ("a", "acme", 10)]
    assert [row.name for row in await setup.usage.top(By.SERVICE_ACCOUNT, ALL, Measure.PRICE)] == ["a", "b", "c"]
    assert (await setup.usage.top(By.SERVICE_ACCOUNT, ALL, Measure.DENIED))[0].name == "c"
    assert (await setup.usage.total(ALL)).price == 8


async def test_today_and_this_month_are_those_of_the_tenants_clock():
    setup = Setup()  # in New York it is still the last day of February
    await setup.tenants.update("acme", {"tenant_id": "acme", "sa_limit": 5, "timezone": "America/New_York"})
    await setup.used(3, "2026-02-28")
    await setup.used(4, "2026-02-01", account="other", model="large")
    await setup.used(50, "2026-03-01")
    now = await setup.usage.of("acme")
    assert (now.date, now.month, now.today.usage, now.this_month.usage) == ("2026-02-28", "2026-02", 3, 7)
    assert [(row.name, row.sums.usage) for row in now.models] == [("large", 4), ("m", 3)]
    assert (await setup.usage.of("acme", "other")).this_month.usage == 4
    assert (await setup.usage.of("nobody")).today == Sums()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ReportFilter(since="2026-02-30"), "'since' must be a date such as 2026-01-31, not '2026-02-30'"),
        (ReportFilter(until="\x1b[31m"), "'until' must be a date"),
        (ReportFilter(since="2026-03-02", until="2026-03-01"), "must not be after"),
        (ReportFilter(tenant=""), "the tenant must be a printable name"),
        (ReportFilter(service_account="\udcff"), "the service account must be a printable name"),
        (ReportFilter(model="x" * 257), "the model must be a printable name"),
        (ReportFilter(endpoint="nonsense"), "the endpoint must be one of chat_completions, "),
        (ReportFilter(client_ip="1.2.3"), "is no IP address"),
    ],
)
async def test_a_filter_that_can_not_match_is_refused_by_every_report(wanted, message):
    usage = Setup().usage
    for call in (
        usage.report(By.TENANT, Grain.DAY, wanted),
        usage.top(By.TENANT, wanted),
        usage.total(wanted),
    ):
        with pytest.raises(AdminError, match=message):
            await call


@pytest.mark.parametrize("cursor", ["", "x", "W10", "bm9uc2Vuc2U", "é"])
async def test_a_cursor_that_is_none_is_refused(cursor):
    with pytest.raises(AdminError, match="the cursor can't be read"):
        await Setup().usage.report(By.TENANT, Grain.DAY, ALL, 10, cursor)


@pytest.mark.parametrize("at_most", [0, -1, 10_001])
async def test_a_number_of_rows_that_can_not_be_is_refused(at_most):
    with pytest.raises(AdminError, match="from 1 to 10000"):
        await Setup().usage.top(By.TENANT, ALL, Measure.USAGE, at_most)


@pytest.mark.parametrize("text", ["2026", "2026-13", "January", "", "2026-01-01", "=1"])
def test_a_month_that_is_none_is_refused(text):
    with pytest.raises(AdminError, match="the month must be such as 2026-01"):
        a_month(text)


@pytest.mark.parametrize(
    ("month", "last"), [("2026-02", "28"), ("2028-02", "29"), ("2026-12", "31"), ("2026-1", "31")]
)
def test_a_month_has_all_its_days(month, last):
    wanted = of_month(ALL, month)
    assert (wanted.since[-2:], wanted.until[-2:]) == ("01", last)


# Closed months.


async def test_a_closed_month_stays_as_it_was_and_what_came_later_is_the_difference():
    setup = Setup(datetime(2026, 3, 2, tzinfo=UTC))
    chosen, made = random.Random(1), []
    for _ in range(30):
        tenant, account = chosen.choice("ab"), chosen.choice(["sa1", "=cmd()"])
        made.append(
            await setup.used(chosen.randrange(99), "2026-02-28", tenant, account, price=chosen.randrange(10**12))
        )
    await setup.used(7, "2026-03-01")
    closed = await setup.closing.close("2026-02", CLOSE)
    assert closed.total == sum(map(sums_of, made), Sums())
    rows = (await setup.closing.show("2026-02")).rows
    assert len(rows) == closed.rows == 6
    assert sum((row.sums for row in rows if row.tenant is not None), Sums()) == closed.total
    late = await setup.used(5, "2026-02-11", price=3)
    verified = await setup.closing.verify("2026-02")
    assert (verified.intact, verified.difference) == (True, sums_of(late))
    assert (await setup.closing.show("2026-02")).rows == rows
    assert [each.month for each in (await setup.closing.closed()).rows] == ["2026-02"]
    (audited,) = await setup.tenants.audit.entries(AuditFilter(action="usage.close"), 10)
    assert (audited.actor, audited.subject, audited.note) == (CLOSE.actor, "2026-02", "run 7")
    assert audited.after["checksum"] == closed.checksum


async def test_a_changed_row_of_a_closed_month_is_seen():
    setup = Setup(datetime(2026, 3, 2, tzinfo=UTC))
    await setup.used(5)
    await setup.closing.close("2026-02", CLOSE)
    closed, rows = setup.months._closed["2026-02"]
    setup.months._closed["2026-02"] = closed, [replace(row, sums=replace(row.sums, price=1)) for row in rows]
    assert not (await setup.closing.verify("2026-02")).intact


async def test_a_month_is_closed_once_and_a_close_that_died_is_audited_by_the_next():
    setup = Setup(datetime(2026, 3, 2, tzinfo=UTC))
    append = setup.tenants.audit.append

    async def dies(_):
        raise RuntimeError

    setup.tenants.audit.append = dies
    with pytest.raises(RuntimeError):
        await setup.closing.close("2026-02", CLOSE)
    setup.tenants.audit.append = append
    for _ in range(2):
        with pytest.raises(AdminError, match="2026-02 is closed"):
            await setup.closing.close("2026-02", Change(Actor("eve", ActorKind.OS_USER, "x")))
    (audited,) = await setup.tenants.audit.entries(AuditFilter(action="usage.close"), 10)
    assert audited.actor == CLOSE.actor


async def test_a_month_that_is_not_over_everywhere_can_not_be_closed():
    setup = Setup(datetime(2026, 3, 1, 17, 59, tzinfo=UTC))
    with pytest.raises(AdminError, match="2026-02 can be closed from 2026-03-01T18:00Z on"):
        await setup.closing.close("2026-02", CLOSE)
    setup.now += timedelta(minutes=1)
    assert (await setup.closing.close("2026-02", CLOSE)).rows == 0


@pytest.mark.parametrize(
    ("backlog", "message"),
    [
        (Backlog(3, 60.0, 0), "3 entries wait for the ledger, the oldest for 60 s"),
        (Backlog(0, 0.0, 2), "the ledger refused 2 entries"),
    ],
)
async def test_a_month_is_not_closed_while_entries_wait(backlog, message):
    setup = Setup(datetime(2026, 3, 9, tzinfo=UTC))
    setup.backlog_now = backlog
    with pytest.raises(AdminError, match=message):
        await setup.closing.close("2026-02", CLOSE)
    setup.backlog_now = Backlog(3, 2.0, 0)  # as in any second of a system in use
    await setup.closing.close("2026-02", CLOSE)


async def test_a_month_is_not_closed_while_reports_lack_entries():
    setup = Setup(datetime(2026, 3, 9, tzinfo=UTC))

    async def missing():
        return Missing(entries=True)

    setup.sums.missing = missing
    assert await setup.usage.incomplete(By.TENANT, ReportFilter())
    assert not await setup.usage.incomplete(By.SERVICE_ACCOUNT, ReportFilter())
    assert not await setup.usage.incomplete(By.TENANT, ReportFilter(client_ip="10.0.0.1"))
    with pytest.raises(AdminError, match="still being added to the reports"):
        await setup.closing.close("2026-02", CLOSE)


async def test_a_dry_run_closes_nothing():
    setup = Setup(datetime(2026, 3, 9, tzinfo=UTC))
    await setup.used(5)
    dry = await setup.closing.close("2026-02", replace(CLOSE, dry_run=True))
    assert (await setup.closing.closed()).rows == ()
    assert (await setup.closing.close("2026-02", CLOSE)).checksum == dry.checksum
    for call in (setup.closing.verify("2026-01"), setup.closing.show("2026-01")):
        with pytest.raises(NotFoundError, match="2026-01 is not closed"):
            await call


# Rebuilding.


class Repair:
    def __init__(self):
        self.dates, self.months, self.accounts = [], [], []

    async def rebuild(self, date, *, dry_run):
        self.dates.append(date)
        return Sums(usage=1)

    async def rebuild_month(self, month, *, dry_run):
        self.months.append(month)
        return Sums(usage=28)

    async def rebuild_accounts(self, month, *, dry_run):
        self.accounts.append(month)
        return Sums(usage=9)


async def test_a_rebuild_goes_through_all_dates_and_then_the_month():
    repair, told = Repair(), []
    done = await rebuild(repair, "2026-02", dry_run=False, gone_before=None, tell=told.append)
    assert (len(repair.dates), repair.months, done.lacked.usage) == (28, ["2026-02"], 28)
    assert repair.accounts == ["2026-02"]
    assert told == [*repair.dates, "2026-02"]


async def test_a_month_with_deleted_entries_is_not_rebuilt():
    with pytest.raises(AdminError, match="may be deleted by ledger retention"):
        await rebuild(
            Repair(), "2026-02", dry_run=True, gone_before=datetime(2026, 2, 1, 1, tzinfo=UTC), tell=lambda _: None
        )
