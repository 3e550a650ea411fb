"""Edits of documents that others edit too, and whole documents."""

from collections import UserDict
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from extproc.admin.applying import Verdict
from extproc.admin.change import Change
from extproc.admin.edits import SETTABLE, Selector
from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.admin.service import Admin
from extproc.admin.views import LimitFilter
from extproc.core.quota.limits import Scope, Unit, Window
from extproc.core.quota.policies import Defaults, limits_from, policy_from
from extproc.ports.audit import Actor, ActorKind
from extproc.ports.documents import BOOKKEEPING, FIELDS, plain
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.tenants import MemoryTenants

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHANGE = Change(Actor("ann", ActorKind.OS_USER, "desk"))
DEFAULTS = Defaults(limits_from({"sa_limit": 1000}), ZoneInfo("UTC"))
MONTHLY = Selector(Scope.TENANT, Window.MONTH)


class Busy(MemoryTenants):
    """Somebody else edits a tenant between each read and write, so many times."""

    def __init__(self, times, **fields):
        super().__init__()
        self._times = times
        self._fields = fields

    async def document(self, tenant):
        read = await super().document(tenant)
        if self._times:
            self._times -= 1
            await super().update(tenant, self._fields)
        return read


def admin_of(tenants):
    return Admin(tenants, MemoryLedger(), MemoryCounters(), DEFAULTS, lambda: NOW, audit=tenants.audit)


async def stored(tenants):
    (document,) = await MemoryTenants.documents(tenants)
    return {name: value for name, value in document.items() if name not in BOOKKEEPING}


async def test_an_edit_is_made_again_on_what_somebody_else_wrote_meanwhile():
    tenants = Busy(2, limits=[{"scope": "tenant", "window": "day", "amount": 1}])
    await admin_of(tenants).limits.add_limit("acme", MONTHLY, 9, {}, account=None, change=CHANGE)
    assert (await stored(tenants))["limits"] == [
        {"scope": "tenant", "window": "day", "amount": 1},
        {"scope": "tenant", "window": "month", "amount": 9},
    ]


async def test_an_edit_gives_up_where_others_never_end():
    tenants = Busy(10**6, sa_limit=1)
    with pytest.raises(AdminError, match="is being changed by others all the time"):
        await admin_of(tenants).limits.set("acme", {"sa_limit": 5}, CHANGE)
    assert await stored(tenants) == {"sa_limit": 1}


async def test_what_is_removed_meanwhile_is_not_found():
    tenants = MemoryTenants()
    with pytest.raises(NotFoundError):
        await admin_of(tenants).limits.remove_limit("acme", MONTHLY, None, CHANGE)
    await tenants.update("acme", {"sa_limit": 1})
    with pytest.raises(NotFoundError, match="there is no such limit"):
        await admin_of(tenants).limits.remove_limit("acme", MONTHLY, None, CHANGE)


async def test_applying_on_what_changed_meanwhile_is_refused_and_says_what_was_written(monkeypatch):
    monkeypatch.setattr("extproc.stores.memory.tenants.TOGETHER", 1)
    tenants = MemoryTenants()
    await tenants.update("b", {"sa_limit": 1})
    write = tenants.write

    async def overtaken(writes, wrote):
        await tenants.update("b", {"sa_limit": 2})
        await write(writes, wrote)

    monkeypatch.setattr(tenants, "write", overtaken)
    documents = [{"tenant_id": "a", "sa_limit": 5}, {"tenant_id": "b", "sa_limit": 5}]
    message = "tenant 'b' was changed meanwhile: apply again; written before: 1 of 2 tenants"
    with pytest.raises(StaleVersionError, match=message):
        await admin_of(tenants).apply(documents, CHANGE)
    monkeypatch.setattr(tenants, "write", write)
    await admin_of(tenants).apply(documents, CHANGE)
    assert {d["tenant_id"]: d["sa_limit"] for d in await tenants.documents()} == {"a": 5, "b": 5}


async def test_a_list_that_somebody_broke_is_told_of_before_it_is_edited():
    tenants = MemoryTenants()
    for broken in (5, "x", [5], {"a": 1}):
        await tenants.update("acme", {"sa_limit": 1, "service_accounts": broken})
        with pytest.raises(AdminError, match="the stored 'service_accounts' can't be used"):
            await admin_of(tenants).limits.suspend("acme", "why", "sa", CHANGE)
        await tenants.update("acme", {"service_accounts": None, "limits": broken})
        with pytest.raises(AdminError, match="the stored 'limits' can't be used"):
            await admin_of(tenants).limits.add_limit("acme", MONTHLY, 1, {}, account=None, change=CHANGE)
        await tenants.update("acme", {"limits": None})


async def test_an_edit_that_is_wrong_in_itself_is_refused_also_beside_what_was_unusable_before():
    tenants = MemoryTenants()
    await tenants.update("acme", {"sa_limit": 1, "top_ups": "none", "timezone": "Mars/Olympus"})
    with pytest.raises(AdminError, match=r"'limits\[0\].amount' must be a whole number"):
        await admin_of(tenants).limits.add_limit("acme", MONTHLY, 10**13, {}, account=None, change=CHANGE)
    view = (await admin_of(tenants).limits.add_limit("acme", MONTHLY, 10, {}, account=None, change=CHANGE)).view
    assert view.problem is not None
    assert (await stored(tenants))["timezone"] == "Mars/Olympus"


async def test_a_note_of_a_limit_stays_when_its_amount_changes():
    tenants = MemoryTenants()
    await tenants.update(
        "acme", {"limits": [{"scope": "tenant", "window": "month", "amount": 1, "note": "by contract"}]}
    )
    await admin_of(tenants).limits.add_limit("acme", MONTHLY, 2, {}, account=None, change=CHANGE)
    assert (await stored(tenants))["limits"] == [
        {"scope": "tenant", "window": "month", "amount": 2, "note": "by contract"}
    ]


class Recorded(UserDict):
    """Remembers which fields were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)


def test_the_fields_that_apply_knows_are_the_ones_that_limits_are_read_from():
    document = Recorded({"tenant_id": "acme", "sa_limit": 1})
    policy_from(document, DEFAULTS)
    assert document.asked - BOOKKEEPING == FIELDS - {"note", "labels", "managed_by"}
    assert set(SETTABLE) < FIELDS


def test_whatever_a_document_has_is_plain_as_json():
    class Odd:
        def __str__(self):
            return "odd"

    berlin = datetime(2026, 3, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert plain({"a": [1, 1.0, 1.5, True, None, "x", (2,)], 5: Odd()}) == {
        "a": [1, 1, 1.5, True, None, "x", [2]],
        "5": "odd",
    }
    assert plain(berlin) == "2026-03-01T00:00:00Z"
    assert plain(datetime(2026, 3, 1, tzinfo=UTC).replace(tzinfo=None)) == "2026-03-01T00:00:00Z"
    assert plain(berlin.date()) == "2026-03-01"


async def test_a_top_up_counts_from_now_on_and_not_before():
    tenants = MemoryTenants()
    await tenants.update("acme", {"sa_limit": 1})
    limits = admin_of(tenants).limits
    item = {"scope": "service_account", "window": "day", "amount": 5}
    with pytest.raises(AdminError, match="in the future"):
        await limits.top_up("acme", item | {"until": NOW}, CHANGE)
    await limits.top_up("acme", item | {"until": NOW + timedelta(seconds=1)}, CHANGE)
    assert len((await stored(tenants))["top_ups"]) == 1


async def test_documents_with_versions_of_any_kind_can_be_edited():
    for version in (3.0, 2**40):
        tenants = MemoryTenants()
        tenants._documents["acme"] = {"tenant_id": "acme", "sa_limit": 1, "version": version}
        await admin_of(tenants).limits.set("acme", {"sa_limit": 2}, CHANGE)
        assert (await stored(tenants)) == {"sa_limit": 2}


SCOPES = {
    "tenant_id": "acme",
    "sa_limit": 5,
    "limits": [{"scope": "client_ip+service_account", "window": "hour", "amount": 9}],
    "top_ups": [
        {"scope": "client_ip service_account", "window": "hour", "amount": 1, "until": "2026-03-02T00:00:00Z"}
    ],
    "service_accounts": [{"name": "a", "limits": [{"scope": "model + client_ip", "window": "day", "amount": 3}]}],
    "unknown_service_accounts": {"limits": [{"scope": "endpoint+client_ip", "window": "day", "amount": 2}]},
}


async def test_a_document_is_stored_with_its_scopes_in_one_order_and_changes_nothing_when_it_comes_again():
    tenants = MemoryTenants()
    admin = admin_of(tenants)
    await admin.apply([SCOPES], CHANGE)
    document = await stored(tenants)
    assert document["limits"][0]["scope"] == document["top_ups"][0]["scope"] == "service_account+client_ip"
    assert document["service_accounts"][0]["limits"][0]["scope"] == "client_ip+model"
    assert document["unknown_service_accounts"]["limits"][0]["scope"] == "client_ip+endpoint"
    (again,) = await admin.apply([SCOPES], CHANGE)
    assert (again.verdict, again.changes) == (Verdict.UNCHANGED, ())


async def test_a_stored_scope_in_another_order_binds_and_is_put_in_order_by_the_next_apply():
    tenants = MemoryTenants()
    admin = admin_of(tenants)
    await tenants.update("acme", {name: value for name, value in SCOPES.items() if name != "tenant_id"})
    detail = await admin.limits.detail("acme")
    assert Scope.SERVICE_ACCOUNT_IP in [each.limit.scope for each in detail.limits]
    assert detail.view.problem is None
    (planned,) = await admin.apply([SCOPES], CHANGE)
    assert planned.verdict is Verdict.CHANGED
    assert (await stored(tenants))["limits"][0]["scope"] == "service_account+client_ip"


async def test_scopes_that_can_not_be_used_stay_as_they_were_given():
    with pytest.raises(AdminError, match=r"'limits\[0\].scope' must be one of"):
        await admin_of(MemoryTenants()).apply(
            [SCOPES | {"limits": [{"scope": "planet", "window": "day"}]}], CHANGE
        )
    for bad in ([5], "x", [{"scope": 5}]):
        with pytest.raises(AdminError, match="'limits"):
            await admin_of(MemoryTenants()).apply([SCOPES | {"limits": bad}], CHANGE)


# ---------------------------------------------------------------- lists of limits


async def many(tenants):
    """Three tenants: of two limits, of one beside a default, and of four; and one that has none."""
    two = [
        {"scope": "tenant", "window": "day", "amount": n} | more
        for n, more in ((1, {}), (2, {"unit": "requests"}))
    ]
    await tenants.update("b", {"limits": two})
    await tenants.update("a", {"ratelimitIPPerMinute": 60})
    await tenants.update("c", {**{name: value for name, value in SCOPES.items() if name != "tenant_id"}})
    await tenants.update("d", {"unlimited": True})
    return admin_of(tenants).limits


@pytest.mark.parametrize("at_most", [1, 2, 3, 5, 1000])
async def test_pages_of_limits_have_each_limit_once_by_tenant(at_most):
    limits = await many(MemoryTenants())
    rows, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await limits.listed(at_most=at_most, cursor=cursor)
        assert len(page.rows) <= at_most
        rows, cursor, pages = [*rows, *page.rows], page.cursor, pages + 1
    found = [(each.tenant, each.source.field) for each in rows]
    assert found == [
        ("a", "ratelimitIPPerMinute"), ("a", None), ("b", "limits[0]"), ("b", "limits[1]"), ("c", "sa_limit"),
        ("c", "limits[0]"), ("c", "service_accounts[0].limits[0]"), ("c", "unknown_service_accounts.limits[0]"),
    ]  # fmt: skip
    assert pages == max(1, -(-len(rows) // at_most))


async def test_limits_are_listed_of_the_tenants_that_are_asked_for_alone():
    limits = await many(MemoryTenants())
    first = await limits.listed(("d", "b", "a", "nobody"), at_most=3)
    assert [each.tenant for each in first.rows] == ["a", "a", "b"]
    second = await limits.listed(("d", "b", "a", "nobody"), at_most=3, cursor=first.cursor)
    assert ([each.source.field for each in second.rows], second.cursor) == (["limits[1]"], None)


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        (LimitFilter(scope=Scope.TENANT), ["limits[0]", "limits[1]"]),
        (LimitFilter(scope=Scope.TENANT, unit=Unit.REQUESTS), ["limits[1]"]),
        (LimitFilter(window=Window.HOUR), ["limits[0]"]),
        (LimitFilter(service_account="a"), ["service_accounts[0].limits[0]"]),
        (LimitFilter(service_account="(others)"), ["unknown_service_accounts.limits[0]"]),
        (LimitFilter(scope=Scope.SERVICE_ACCOUNT, own=True), ["sa_limit"]),
        (LimitFilter(scope=Scope.SERVICE_ACCOUNT), [None, "sa_limit"]),
        (LimitFilter(scope=Scope.ENDPOINT), []),
    ],
)
async def test_limits_are_selected_by_what_they_are(wanted, fields):
    limits = await many(MemoryTenants())
    assert [each.source.field for each in (await limits.listed(wanted=wanted)).rows] == fields


async def test_a_tenant_that_is_gone_between_two_pages_is_passed_over():
    tenants = MemoryTenants()
    limits = await many(tenants)
    first = await limits.listed(at_most=3)
    await limits.delete("b", CHANGE)
    rest = await limits.listed(at_most=3, cursor=first.cursor)
    assert {each.tenant for each in rest.rows} == {"c"}


@pytest.mark.parametrize("cursor", ["x", "WyJhIl0", "NQ"])
async def test_a_cursor_of_another_list_is_refused(cursor):
    with pytest.raises(AdminError, match="the cursor can't be read"):
        await admin_of(MemoryTenants()).limits.listed(cursor=cursor)


async def test_the_number_of_limits_is_bounded():
    with pytest.raises(AdminError, match="the number of rows must be from 1 to"):
        await admin_of(MemoryTenants()).limits.listed(at_most=0)
