"""What all writes and reads share: actors, versions, dry runs, entries, pages; and whole sets of documents."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.admin.applying import Verdict
from extproc.admin.change import Change
from extproc.admin.edits import Selector
from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.admin.paging import MAX_PAGE, cursor_of, key_of
from extproc.admin.service import Admin
from extproc.admin.views import TenantFilter
from extproc.core.quota.limits import Scope, Window
from extproc.core.quota.policies import Defaults, limits_from
from extproc.ports.audit import Actor, ActorKind, AuditFilter
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.tenants import MemoryTenants

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ANN = Actor("ann", ActorKind.JWT, "10.0.0.1")
CHANGE = Change(ANN, "why")
DRY = Change(ANN, dry_run=True)
DEFAULTS = Defaults(limits_from({"sa_limit": 1000}), ZoneInfo("UTC"))
MONTHLY = Selector(Scope.TENANT, Window.MONTH)
TOP_UP = {"amount": 5, "until": LATER, "id": "sale"}


@pytest.fixture
def tenants():
    return MemoryTenants()


@pytest.fixture
def admin(tenants):
    return Admin(tenants, MemoryLedger(), MemoryCounters(), DEFAULTS, lambda: NOW, audit=tenants.audit)


# Each write, as a call that takes the change.
WRITES = {
    "tenant.set": lambda limits, change: limits.set("acme", {"sa_limit": 5}, change),
    "tenant.suspend": lambda limits, change: limits.suspend("acme", "unpaid", None, change),
    "tenant.resume": lambda limits, change: limits.resume("acme", "off", change),
    "tenant.top_up": lambda limits, change: limits.top_up("acme", TOP_UP, change),
    "tenant.cancel_top_up": lambda limits, change: limits.cancel_top_up("acme", "old", change),
    "limit.add": lambda limits, change: limits.add_limit("acme", MONTHLY, 5, {}, account=None, change=change),
    "limit.remove": lambda limits, change: limits.remove_limit(
        "acme", Selector(Scope.TENANT, Window.DAY), None, change
    ),
    "tenant.delete": lambda limits, change: limits.delete("acme", change),
}


async def _there(tenants):
    """A tenant that each write changes."""
    fields = {
        "sa_limit": 1,
        "limits": [{"scope": "tenant", "window": "day", "amount": 9}],
        "service_accounts": [{"name": "off", "suspended": "before"}],
        "top_ups": [{"amount": 1, "until": LATER, "id": "old"}],
    }
    await tenants.update("acme", fields)


@pytest.mark.parametrize("action", WRITES)
async def test_every_write_leaves_one_entry_with_who_why_and_the_document_before_and_after(tenants, admin, action):
    await _there(tenants)
    before = await tenants.document("acme")
    done = await WRITES[action](admin.limits, CHANGE)
    after = await tenants.document("acme")
    (entry,) = (await admin.history.entries(AuditFilter())).rows
    assert (entry.action, entry.actor, entry.note, entry.at, entry.tenant) == (action, ANN, "why", NOW, "acme")
    if after is not None:  # beside what the entry says itself
        assert after.pop("updated_by") == ANN.name
    assert (entry.before, entry.after) == (before, after)
    assert entry.version == done.version == (2 if after is not None else None)
    assert done.changes
    assert (done.view is None) is (after is None)
    assert await admin.history.entry(entry.id) == entry


@pytest.mark.parametrize("action", WRITES)
async def test_a_dry_run_of_every_write_tells_the_change_and_writes_nothing(tenants, admin, action):
    await _there(tenants)
    before = await tenants.document("acme")
    done = await WRITES[action](admin.limits, DRY)
    assert (done.dry_run, bool(done.changes)) == (True, True)
    assert await tenants.document("acme") == before
    assert (await admin.history.entries(AuditFilter())).rows == ()
    made = await WRITES[action](admin.limits, CHANGE)
    assert (made.changes, made.version, made.view) == (done.changes, done.version, done.view)


@pytest.mark.parametrize("action", WRITES)
async def test_every_write_on_another_version_is_refused(tenants, admin, action):
    await _there(tenants)
    for version in (0, 2):
        with pytest.raises(StaleVersionError, match=f"its version is 1, not {version}"):
            await WRITES[action](admin.limits, Change(ANN, if_version=version))
    assert (await WRITES[action](admin.limits, Change(ANN, if_version=1))).changes


async def test_a_repeated_top_up_is_refused_and_one_that_is_cancelled_is_gone(tenants, admin):
    await _there(tenants)
    await admin.limits.top_up("acme", TOP_UP, CHANGE)
    with pytest.raises(AdminError, match="there is a top-up 'sale' already: nothing was added"):
        await admin.limits.top_up("acme", TOP_UP, CHANGE)
    assert (await admin.limits.detail("acme")).view.top_ups == 2
    await admin.limits.cancel_top_up("acme", "sale", CHANGE)
    assert [each.id for each in (await admin.limits.detail("acme")).top_ups] == ["old"]
    with pytest.raises(NotFoundError, match="there is no top-up 'sale'"):
        await admin.limits.cancel_top_up("acme", "sale", CHANGE)
    # Without an id, as version 0.1 wrote them, each call adds one.
    for _ in range(2):
        await admin.limits.top_up("acme", {"amount": 5, "until": LATER}, CHANGE)
    assert (await admin.limits.detail("acme")).view.top_ups == 3


async def test_notes_of_top_ups_are_shown_beside_them(tenants, admin):
    items = [{"amount": 1, "until": LATER, "note": "sale"}, {"amount": 2, "until": LATER}]
    await tenants.update("acme", {"sa_limit": 1, "top_ups": items})
    assert (await admin.limits.detail("acme")).top_up_notes == ("sale", None)


@pytest.mark.parametrize("note", ["", "  ", "a\nb", "x" * 1001])
def test_a_note_must_be_text(note):
    with pytest.raises(AdminError, match="the note must be printable text"):
        Change(ANN, note)


def test_a_version_is_no_negative_number():
    with pytest.raises(AdminError, match="0 or more"):
        Change(ANN, if_version=-1)


# Reads.


async def test_tenants_come_in_pages_and_a_filter_counts_rows_that_fit(tenants, admin):
    for number in range(7):
        await tenants.update(f"t{number}", {"sa_limit": number, "mode": "strict" if number % 2 else None})
    seen, cursor = [], None
    while True:
        page = await admin.limits.views(TenantFilter(mode="strict"), 2, cursor)
        seen.append([view.tenant for view in page.rows])
        if (cursor := page.cursor) is None:
            break
    assert seen == [["t1", "t3"], ["t5"]]
    whole = await admin.limits.views(at_most=7)
    assert (len(whole.rows), whole.cursor) == (7, None)


@pytest.mark.parametrize("at_most", [0, -1, MAX_PAGE + 1])
async def test_a_page_has_a_bound(admin, at_most):
    for read in (admin.limits.views(at_most=at_most), admin.history.entries(AuditFilter(), at_most)):
        with pytest.raises(AdminError, match="the number of rows must be from 1 to 10000"):
            await read


@pytest.mark.parametrize("cursor", ["", "x", "ä", "=" * 9, "A" * 5000, cursor_of(5), cursor_of(["a"])])
async def test_what_is_no_cursor_is_refused(admin, cursor):
    for read in (admin.limits.views(cursor=cursor), admin.history.entries(AuditFilter(), cursor=cursor)):
        with pytest.raises(AdminError, match="the cursor can't be read"):
            await read


def test_a_cursor_comes_back_as_it_was():
    for key in ("ä" * 256, "", "a=b"):
        assert key_of(cursor_of(key), str) == key
    assert key_of(cursor_of([NOW, "t:1"]), tuple[datetime, str]) == (NOW, "t:1")


async def test_the_log_comes_in_pages(tenants, admin):
    for number in range(5):
        await admin.limits.set(f"t{number}", {"sa_limit": 1}, CHANGE)
    first = await admin.history.entries(AuditFilter(), 3)
    second = await admin.history.entries(AuditFilter(), 3, first.cursor)
    assert [entry.id for entry in first.rows + second.rows] == ["t4:1", "t3:1", "t2:1", "t1:1", "t0:1"]
    assert second.cursor is None
    with pytest.raises(AdminError, match="'since' must be before 'until'"):
        await admin.history.entries(AuditFilter(since=NOW, until=NOW))
    with pytest.raises(NotFoundError):
        await admin.history.entry("nothing")


# Whole sets of documents.


async def test_pruning_marks_what_it_writes_and_deletes_only_that(tenants, admin):
    await tenants.update("mine", {"sa_limit": 1})
    await tenants.update("theirs", {"sa_limit": 1, "managed_by": "b"})
    documents = [{"tenant_id": name, "sa_limit": 1} for name in ("x", "y", "mine")]
    await admin.apply(documents, CHANGE, prune="a")
    planned = await admin.apply(documents[:1], CHANGE, prune="a")
    assert [(each.tenant, each.verdict) for each in planned] == [
        ("x", Verdict.UNCHANGED), ("mine", Verdict.DELETED), ("y", Verdict.DELETED),
    ]  # fmt: skip
    assert {d["tenant_id"]: d.get("managed_by") for d in await tenants.documents()} == {"x": "a", "theirs": "b"}
    for wrong in ({"tenant_id": "theirs", "sa_limit": 2}, {"tenant_id": "new", "sa_limit": 1, "managed_by": "b"}):
        with pytest.raises(AdminError, match="is managed by 'b', not by 'a'"):
            await admin.apply([wrong], CHANGE, prune="a")
    with pytest.raises(AdminError, match="there is no document in it"):
        await admin.apply([], CHANGE, prune="a")
    await admin.apply([{"tenant_id": "theirs", "sa_limit": 2}], CHANGE)
    assert (await tenants.document("theirs"))["managed_by"] == "b"


async def test_a_document_as_it_is_stored_is_unchanged_whatever_it_has(tenants, admin):
    await tenants.update("odd", {"sa_limit": -1, "labels": "none", "theirs": 1})
    (planned,) = await admin.apply([{"tenant_id": "odd", "sa_limit": -1, "labels": "none"}], CHANGE)
    assert planned.verdict is Verdict.UNCHANGED
    for changed, message in (({"sa_limit": -2}, "'sa_limit' must be"), ({"labels": "x"}, "'labels' must be")):
        with pytest.raises(AdminError, match=message):
            await admin.apply([{"tenant_id": "odd", "sa_limit": -1, "labels": {"a": "b"}, **changed}], CHANGE)


async def test_an_empty_document_of_a_new_tenant_is_made(tenants, admin):
    (planned,) = await admin.apply([{"tenant_id": "new"}], CHANGE)
    assert planned.verdict is Verdict.CREATED
    assert (await tenants.document("new"))["version"] == 1
    assert (await admin.apply([{"tenant_id": "new"}], CHANGE))[0].verdict is Verdict.UNCHANGED


async def test_many_tenants_are_told_of_as_they_are_compared_and_written(tenants, admin):
    told = []
    documents = [{"tenant_id": f"t{number}", "sa_limit": 1} for number in range(1001)]
    await admin.apply(documents, CHANGE, progress=lambda *how: told.append(how))
    assert [each for each in told if each[0] == "written"] == [
        ("written", 500, 1001), ("written", 1000, 1001), ("written", 1001, 1001),
    ]  # fmt: skip
    assert told[0] == ("compared", 100, 1001)
    assert len(await tenants.documents()) == len(await tenants.audit.entries(AuditFilter(), 2000)) == 1001


async def test_of_very_many_mistakes_the_first_ones_are_named(admin):
    documents = [{"tenant_id": f"t{number}", "sa_limit": -1} for number in range(60)]
    with pytest.raises(AdminError) as refused:
        await admin.apply(documents, CHANGE)
    lines = str(refused.value).splitlines()
    assert (len(lines), lines[-2:]) == (52, ["and 10 more", "nothing was written"])


async def test_an_export_has_the_fields_of_tokenweir_and_comes_back_unchanged(tenants, admin):
    until = datetime(2099, 1, 1, 1, 2, 3, 456_000, tzinfo=UTC)
    await tenants.update("acme", {"sa_limit": 5.0, "theirs": 1, "top_ups": [{"amount": 1, "until": until}]})
    tenants._documents["odd"] = {"tenant_id": 5, "sa_limit": 1}
    (exported,) = [each async for each in admin.export()]
    assert exported.document == {
        "tenant_id": "acme", "sa_limit": 5, "top_ups": [{"amount": 1, "until": "2099-01-01T01:02:03.456000Z"}],
    }  # fmt: skip
    (planned,) = await admin.apply([exported.document], CHANGE)
    assert planned.verdict is Verdict.UNCHANGED


async def test_the_history_of_a_tenant_tells_of_direct_changes(tenants, admin):
    await admin.limits.set("acme", {"sa_limit": 1}, CHANGE)
    tenants._documents["acme"]["sa_limit"] = 7
    assert [e.action for e in (await admin.history.of_tenant("acme")).rows] == ["tenant.set"]  # nothing began yet
    await admin.limits.set("acme", {"ip_limit": 2}, CHANGE)
    rows = (await admin.history.of_tenant("acme")).rows
    assert sorted((e.number, e.action) for e in rows) == [
        (1, "tenant.set"),
        (2, "tenant.direct"),
        (3, "tenant.set"),
    ]
