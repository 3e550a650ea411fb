"""A person's name is erased from stored records, and no sum changes, however often it is killed on the way."""

from datetime import UTC, date, datetime, timedelta

import pytest
import pytest_asyncio

from extproc.admin.change import Change
from extproc.admin.closing import checksum
from extproc.admin.erasing import Erasing
from extproc.admin.errors import AdminError
from extproc.core.quota.ledger import Charge, RefusedBy
from extproc.core.quota.limits import read_key
from extproc.core.quota.settlement import Outcome
from extproc.ports.audit import Actor, ActorKind, AuditEntry, AuditFilter
from extproc.ports.base import StoreError
from extproc.ports.erasure import NameKind
from extproc.ports.ledger import UsageFilter
from extproc.ports.reports import ClosedMonth, Sums, UsageRow
from extproc.stores.mongo.audit import MongoAudit
from extproc.stores.mongo.closed import MongoClosedMonths
from extproc.stores.mongo.erasure import MongoErasure
from extproc.stores.mongo.ledger import MongoLedger
from tests.changing import replace
from tests.sizes import sampled

from .reservations import NOW, entry, who

JANE = "jane@zone/prod"
ACTOR = Actor("root", ActorKind.OS_USER, "host")
CHANGE = Change(ACTOR, "request 4711")
OLD = NOW - timedelta(days=90)
DATES = [(OLD + timedelta(days=n)).date().isoformat() for n in range(3)]
BEFORE = (OLD + timedelta(days=3)).date().isoformat()
UNTIL = int(OLD.timestamp()) + 10**6


class World:
    def __init__(self, mongo):
        self.mongo = mongo
        self.ledger = MongoLedger(mongo)
        self.audit = MongoAudit(mongo)
        self.store = MongoErasure(mongo)
        self.months = MongoClosedMonths(mongo)
        self.numbers = 0

    def _new_id(self):
        self.numbers += 1
        return f"{self.numbers:016x}"

    @property
    def erasing(self):
        return Erasing(self.store, self.audit, self.months, lambda: NOW, new_id=self._new_id)

    async def prepare(self):
        await self.ledger.create_indexes()
        await self.mongo.collection("token_migrations").insert_one({"_id": "daily_usage_by_tenant", "done": True})

    async def used(self, charge, *, date=DATES[0], identity=None, until=UNTIL, **further):
        identity = identity or who(account=JANE)
        account = identity.service_account.replace("/", "%2F")
        keys = (
            f"service_account:day:1:{account}",
            f"service_account+client_ip:day:1:{account}:10.0.0.1",
            "tenant:month:1:",
        )
        charges = tuple(Charge(key, until, charge, 1000) for key in keys)
        made = replace(
            entry(charge, identity=identity, date=date, charges=charges, **further), admitted_at=OLD, ended_at=OLD
        )
        await self.ledger.append([made])
        return made

    async def erase(self, kind=NameKind.SERVICE_ACCOUNT, name=JANE, before=BEFORE, change=CHANGE, tenant="acme"):
        return await self.erasing.erase(tenant, kind, name, before, change)

    async def everything(self):
        """All documents of all collections, as text."""
        names = (
            "token_ledger",
            "sa_ip_usage_daily",
            "sa_ip_usage_daily_aside",
            "admin_audit",
            "token_migrations",
            "usage_account_months",
        )
        return {name: [d async for d in self.mongo.collection(name).find({})] for name in names}

    async def days(self):
        return await self.ledger.daily(UsageFilter(), 100)

    async def totals(self):
        days, entries = await self.days(), await self.ledger.entries(UsageFilter(), 100)
        return (
            sum(day.usage for day in days),
            sum(day.requests for day in days),
            sum(day.denied for day in days),
            sum(each.charge for each in entries),
            len(entries),
        )


@pytest_asyncio.fixture
async def world(mongo):
    made = World(mongo)
    await made.prepare()
    return made


async def test_the_name_is_gone_everywhere_and_every_sum_is_as_it_was(world):
    for number, day in enumerate(DATES):
        await world.used(10 + number, date=day)
        await world.used(7, date=day, identity=who(account="other"))
    refused = RefusedBy(f"service_account:day:1:{JANE.replace('/', '%2F')}", UNTIL, 5, 5, 0, 1)
    await world.used(0, outcome=Outcome.DENIED, refused_by=refused)
    await world.audit.append(
        AuditEntry(
            "a1", OLD, ACTOR, "limit.add", "acme", f"limit of {JANE}",
            before={"service_accounts": [{"name": JANE, "sa_limit": 5}, {"name": JANE + "2"}]}, note=f"for {JANE}.",
        )
    )  # fmt: skip
    before = await world.totals()
    found = await world.erase()
    assert await world.totals() == before
    assert (found.dates, found.sums.entries, found.sums.charge) == (tuple(DATES), 4, 33)
    text = str(await world.everything())
    assert JANE + "2" in text
    assert JANE not in text.replace(JANE + "2", "")
    assert JANE.replace("/", "%2F") not in text
    entries = await world.ledger.entries(UsageFilter(service_account=found.pseudonym), 10)
    assert len(entries) == 4
    assert {read_key(charge.key).parts for each in entries for charge in each.charges} == {
        (found.pseudonym,), (found.pseudonym, "10.0.0.1"), (),
    }  # fmt: skip
    days = await world.ledger.daily(UsageFilter(service_account=found.pseudonym), 10)
    assert [(day.date, day.usage) for day in days] == [(DATES[2], 12), (DATES[1], 11), (DATES[0], 10)]
    (erased,) = await world.audit.entries(AuditFilter(action="identity.erase"), 10)
    assert (erased.actor, erased.note, erased.subject) == (ACTOR, "request 4711", found.pseudonym)


async def test_a_client_ip_is_erased_of_all_accounts_of_the_tenant_and_of_no_other_tenant(world):
    await world.used(5, identity=who(account=JANE))
    await world.used(6, identity=who(account="sa2"))
    await world.used(7, identity=who(tenant="other"))
    found = await world.erase(NameKind.CLIENT_IP, "10.0.0.1")
    assert {(day.tenant, day.client_ip, day.usage) for day in await world.days()} == {
        ("acme", found.pseudonym, 5), ("acme", found.pseudonym, 6), ("other", "10.0.0.1", 7),
    }  # fmt: skip


async def test_dates_with_a_window_that_runs_stay_whole(world):
    await world.used(5, date=DATES[0])
    await world.used(6, date=DATES[1])
    runs = int(NOW.timestamp()) + 60
    await world.used(7, date=DATES[1], until=runs)
    found = await world.erase()
    assert found.dates == (DATES[0],)
    assert dict(found.running) == {DATES[1]: datetime.fromtimestamp(runs, UTC)}
    kept = await world.ledger.daily(UsageFilter(service_account=JANE), 10)
    assert [(day.date, day.usage) for day in kept] == [(DATES[1], 13)]


async def test_later_dates_are_not_touched(world):
    later = (OLD + timedelta(days=3)).date().isoformat()
    await world.used(5, date=later)
    assert (await world.erase()).changed == 0
    assert len(await world.ledger.daily(UsageFilter(service_account=JANE), 10)) == 1


async def test_a_dry_run_changes_nothing(world):
    await world.used(5)
    before = await world.everything()
    found = await world.erase(change=replace(CHANGE, dry_run=True))
    assert (found.sums.charge, found.changed, found.dry_run) == (5, 0, True)
    assert await world.everything() == before


class KilledError(Exception):
    pass


async def erased_until(world, monkeypatch, step, **options):
    """Erase until the write of a number, after which the process is killed. Return whether it came so far."""
    left = [step]
    collection = world.mongo.collection
    writes = ("update_one", "update_many", "bulk_write", "delete_one", "insert_one", "find_one_and_update")

    class Counting:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            found = getattr(self._inner, name)
            if name not in writes:
                return found

            async def write(*args, **options):
                done = await found(*args, **options)
                left[0] -= 1
                if left[0] == 0:
                    raise KilledError
                return done

            return write

    with monkeypatch.context() as patch:
        patch.setattr(world.mongo, "collection", lambda name: Counting(collection(name)))
        try:
            await world.erase(**options)
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("step", sampled(range(1, 9), quick=3))
async def test_killed_at_any_step_it_goes_on_with_the_same_pseudonym_and_no_sum_changes(world, monkeypatch, step):
    """After each write it may end: the next call finds what is left."""
    for day in DATES:
        await world.used(10, date=day)
    await world.audit.append(AuditEntry("a1", OLD, ACTOR, "limit.add", "acme", JANE))
    before = await world.totals()
    killed = await erased_until(world, monkeypatch, step)
    assert await world.totals() == before
    found = await world.erase()
    assert await world.totals() == before
    text = str(await world.everything())
    assert JANE not in text
    assert len({each.identity.service_account for each in await world.ledger.entries(UsageFilter(), 10)}) == 1
    if killed and found.changed:
        assert found.resumed


async def test_a_row_whose_new_name_is_taken_is_added_to_it(world, monkeypatch):
    """Entries came late, in between: their row has the old name again."""
    await world.used(10)

    async def stop(*_):
        raise StoreError("away", transient=True)

    with monkeypatch.context() as patch:
        patch.setattr(world.audit, "append", stop)
        with pytest.raises(StoreError):
            await world.erase()
    await world.used(5)
    await world.erase()
    (day,) = await world.days()
    assert (day.usage, day.requests, day.service_account.startswith("erased-")) == (15, 2, True)
    (row,) = (await world.everything())["sa_ip_usage_daily"]
    assert row["models"] == {"m": 15}
    assert "merged_from" not in row


MONTH = DATES[0][:7]
CLOSED_ROWS = [
    UsageRow(MONTH, "acme", None, Sums(usage=12)),
    UsageRow(MONTH, JANE, "acme", Sums(usage=5)),
    UsageRow(MONTH, JANE, "other", Sums(usage=1)),
    UsageRow(MONTH, "sa2", "acme", Sums(usage=7)),
]
# The month is over by then, and so are its dates.
AFTER_MONTH = (date.fromisoformat(f"{MONTH}-01") + timedelta(days=32)).replace(day=1).isoformat()


async def closed_month(world, digest):
    fields = {"note": None, "currency": "EUR", "rows": 4, "total": Sums(usage=12)}
    closed = ClosedMonth(MONTH, NOW, ACTOR, checksum=digest, **fields)
    assert await world.months.add(closed, CLOSED_ROWS)
    return closed


async def test_a_closed_month_loses_the_name_and_notes_how_its_checksum_changed(world):
    closed = await closed_month(world, checksum(MONTH, "EUR", CLOSED_ROWS))
    assert (await world.erase(before=f"{MONTH}-28")).closed_months == ()
    found = await world.erase(before=AFTER_MONTH)
    assert (found.closed_months, found.changed) == ((MONTH,), 1)
    rows, now = await world.months.rows(MONTH, 10), await world.months.find(MONTH)
    assert {(row.name, row.tenant, row.sums.usage) for row in rows} == {
        ("acme", None, 12), (found.pseudonym, "acme", 5), (JANE, "other", 1), ("sa2", "acme", 7),
    }  # fmt: skip
    assert (now.checksum, now.checksum_now) == (closed.checksum, checksum(MONTH, "EUR", rows))
    (erased,) = await world.audit.entries(AuditFilter(action="identity.erase"), 10)
    noted = {"checksum_before": closed.checksum, "checksum_after": now.checksum_now}
    assert erased.after["closed_months"] == {MONTH: noted}
    assert (await world.erase(before=AFTER_MONTH)).closed_months == ()


@pytest.mark.parametrize("step", sampled(range(1, 12), quick=4))
async def test_killed_at_any_step_a_closed_month_is_changed_and_noted_once(world, monkeypatch, step):
    """With a day of use as well: the month comes between its documents and the audit entry."""
    closed = await closed_month(world, checksum(MONTH, "EUR", CLOSED_ROWS))
    await world.used(10)
    await erased_until(world, monkeypatch, step, before=AFTER_MONTH)
    await world.erase(before=AFTER_MONTH)
    rows, now = await world.months.rows(MONTH, 10), await world.months.find(MONTH)
    ((name,),) = [{row.name for row in rows if row.sums.usage == 5}]
    assert name.startswith("erased-")
    assert sorted((row.tenant or "", row.sums.usage) for row in rows) == sorted(
        (row.tenant or "", row.sums.usage) for row in CLOSED_ROWS
    )
    (noted,) = now.erasures
    assert (noted.pseudonym, noted.before, noted.after) == (name, closed.checksum, checksum(MONTH, "EUR", rows))
    assert len(await world.audit.entries(AuditFilter(action="identity.erase"), 10)) == 1
    assert JANE not in str(await world.everything())


async def test_an_erasure_does_not_make_a_changed_month_right(world):
    await closed_month(world, "of other rows")
    found = await world.erase(before=AFTER_MONTH)
    now = await world.months.find(MONTH)
    assert (now.checksum_now, now.erasures[0].pseudonym) == ("of other rows", found.pseudonym)
    assert await world.months.months_of("acme", [JANE]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"before": "yesterday"}, "'before' must be a date"),
        ({"before": NOW.date().isoformat()}, "at the latest: windows of later days may still run"),
        ({"name": "erased-1"}, "is erased already"),
        ({"name": ""}, "the service account must be"),
        ({"name": "nowhere", "kind": NameKind.CLIENT_IP}, "is no IP address"),
        ({"tenant": ""}, "the tenant must be"),
    ],
)
async def test_what_can_not_be_is_refused(world, arguments, message):
    with pytest.raises(AdminError, match=message):
        await world.erase(**arguments)


async def test_before_daily_usage_is_kept_by_tenant_nothing_is_erased(world):
    await world.used(5)
    await world.mongo.collection("token_migrations").delete_many({})
    with pytest.raises(AdminError, match="not yet kept by tenant"):
        await world.erase()
