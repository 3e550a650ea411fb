"""What every implementation of `ports.AuditLog` must do, and what changes of tenants leave in it."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio
from bson import Binary, Code, Decimal128, MinKey, ObjectId, Regex, Timestamp

from extproc.core.quota.policies import Defaults, limits_from
from extproc.metering.direct_changes import DirectChanges
from extproc.metering.limits_cache import LimitsCache, LimitsCacheOptions
from extproc.observe.metrics import Metrics
from extproc.ports.audit import (
    Actor,
    ActorKind,
    AuditEntry,
    AuditFilter,
    AuditPlace,
    EntryState,
    Found,
    direct_entry,
)
from extproc.ports.base import ConflictError, StoreError
from extproc.ports.documents import digest
from extproc.ports.tenants import TenantWrite
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.mongo.audit import MongoAudit, entry_document
from extproc.stores.mongo.client import AUDIT, TENANTS
from extproc.stores.mongo.tenants import MongoTenants

from .conftest import new_database

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANN = Actor("ann", ActorKind.OS_USER, "desk")
ANY = AuditFilter()


def entry(tenant, before, after, **fields):
    version = after["version"] if after is not None else None
    action = "tenant.set" if after is not None else "tenant.delete"
    return AuditEntry("?", NOW, ANN, action, tenant, before=before, after=after, version=version, **fields)


@pytest_asyncio.fixture
async def stores(ledger_url):
    """The tenants and the log of one database."""
    if ledger_url is None:
        tenants = MemoryTenants()
        yield tenants, tenants.audit
        return
    async with new_database(ledger_url) as mongo:
        audit = MongoAudit(mongo)
        yield MongoTenants(mongo, audit), audit


class Editor:
    """Changes a tenant as a use case does: on what is there."""

    def __init__(self, tenants):
        self._tenants = tenants

    async def put(self, tenant, **fields):
        before = await self._tenants.document(tenant)
        version = before["version"] if before is not None else 0
        kept = {**(before or {"tenant_id": tenant}), **fields, "version": version + 1}
        after = {name: value for name, value in kept.items() if value is not None}
        return await self._tenants.update(tenant, fields, version, entry(tenant, before, after))

    async def delete(self, tenant):
        before = await self._tenants.document(tenant)
        return await self._tenants.delete(tenant, before["version"], entry(tenant, before, None))


@pytest.fixture
def editor(stores):
    return Editor(stores[0])


async def test_each_change_has_its_entry_with_the_document_before_and_after(stores, editor):
    tenants, audit = stores
    assert await editor.put("acme", sa_limit=1) is True
    assert await editor.put("acme", sa_limit=2) is False
    assert await editor.delete("acme") is True
    assert await tenants.documents() == []
    found = sorted(await audit.entries(ANY, 10), key=lambda each: each.number)
    assert [(e.id, e.number, e.version, e.action, e.state) for e in found] == [
        ("acme:1", 1, 1, "tenant.set", EntryState.DONE),
        ("acme:2", 2, 2, "tenant.set", EntryState.DONE),
        ("acme:3", 3, None, "tenant.delete", EntryState.DONE),
    ]
    assert [e.actor for e in found] == [ANN] * 3
    amounts = [((e.before or {}).get("sa_limit"), (e.after or {}).get("sa_limit")) for e in found]
    assert amounts == [(None, 1), (1, 2), (2, None)]
    assert await audit.entry("acme:2") == found[1]
    assert await audit.entry("acme:4") is None
    (audited,) = (await audit.audited(["acme", "other"])).values()
    assert (audited.entry, audited.number, audited.digests) == ("acme:3", 3, (None,))


async def test_a_change_that_meets_another_version_leaves_no_done_entry(stores, editor):
    tenants, audit = stores
    await editor.put("acme", sa_limit=1)
    stale = await tenants.document("acme")
    await editor.put("acme", sa_limit=2)
    after = {**stale, "sa_limit": 9, "version": 2}
    with pytest.raises(ConflictError, match="acme"):
        await tenants.update("acme", {"sa_limit": 9}, 1, entry("acme", stale, after))
    with pytest.raises(ConflictError, match="acme"):
        await tenants.delete("acme", 1, entry("acme", stale, None))
    assert (await tenants.document("acme"))["sa_limit"] == 2
    assert [e.number for e in await audit.entries(ANY, 10) if e.state is EntryState.DONE] in ([2, 1], [1, 2])


async def test_of_many_that_change_a_tenant_at_once_each_version_has_one_entry(stores, editor):
    tenants, audit = stores

    async def repeatedly(number):
        while True:
            try:
                return await editor.put("acme", note=f"by {number}")
            except (ConflictError, StoreError):
                await asyncio.sleep(0.01)

    await asyncio.gather(*(repeatedly(number) for number in range(6)))
    done = [e for e in await audit.entries(ANY, 100) if e.state is EntryState.DONE]
    assert sorted(e.version for e in done) == [1, 2, 3, 4, 5, 6]
    chain = sorted(done, key=lambda each: each.version)
    assert [digest(e.before) for e in chain[1:]] == [digest(e.after) for e in chain[:-1]]
    assert digest(await tenants.document("acme")) == digest(chain[-1].after)


async def test_entries_come_newest_first_filtered_and_in_pages(stores):
    _, audit = stores
    for number in range(6):
        actor = Actor(("ann", "bob")[number % 2], ActorKind.TOKEN, "10.0.0.1")
        at = NOW + timedelta(seconds=number // 2)
        action = "token.issue" if number < 4 else "usage.close"
        await audit.append(AuditEntry(f"e{number}", at, actor, action, None, subject=f"s{number}", note="why"))
    await audit.append(AuditEntry("e0", NOW, ANN, "token.issue", None))

    async def ids(wanted=ANY, at_most=10, after=None):
        return [e.id for e in await audit.entries(wanted, at_most, after)]

    assert await ids() == ["e5", "e4", "e3", "e2", "e1", "e0"]
    assert await ids(at_most=2) == ["e5", "e4"]
    assert await ids(after=AuditPlace(NOW + timedelta(seconds=2), "e4"), at_most=3) == ["e3", "e2", "e1"]
    assert await ids(after=AuditPlace(NOW + timedelta(seconds=1), "e3")) == ["e2", "e1", "e0"]
    assert await ids(AuditFilter(actor="bob")) == ["e5", "e3", "e1"]
    assert await ids(AuditFilter(action="token")) == ["e3", "e2", "e1", "e0"]
    assert await ids(AuditFilter(action="usage.close")) == ["e5", "e4"]
    assert await ids(AuditFilter(action="usage.clos")) == []
    assert await ids(AuditFilter(action="tok")) == []
    assert await ids(AuditFilter(tenant="acme")) == []
    window = AuditFilter(since=NOW + timedelta(seconds=1), until=NOW + timedelta(seconds=2))
    assert await ids(window) == ["e3", "e2"]
    first = await audit.entry("e0")
    assert (first.actor.name, first.subject, first.note, first.tenant) == ("ann", "s0", "why", None)


async def test_what_was_found_is_noted_once_and_not_behind_a_newer_entry(stores, editor):
    _, audit = stores
    await editor.put("acme", sa_limit=1)
    before = (await audit.audited(["acme"]))["acme"]
    direct = Found(direct_entry("acme", {"sa_limit": 1}, {"sa_limit": 7}, NOW), before)
    new = Found(direct_entry("new", None, {"sa_limit": 7}, NOW), None)
    assert await audit.note([direct, new]) == 2
    assert await audit.note([direct, new]) == 0
    assert {e.id for e in await audit.entries(ANY, 10)} == {"acme:1", "acme:2", "new:1"}
    found = await audit.entry("acme:2")
    assert (found.actor.kind, found.action, found.after) == (ActorKind.DIRECT, "tenant.direct", {"sa_limit": 7})


async def test_a_direct_change_before_a_change_of_ours_gets_an_entry_of_its_own(stores, editor):
    tenants, audit = stores
    await editor.put("acme", sa_limit=1)
    await tenants.update("acme", {"sa_limit": 5})  # past the log
    await editor.put("acme", sa_limit=6)
    found = sorted(await audit.entries(ANY, 10), key=lambda each: each.number)
    assert [e.action for e in found] == ["tenant.set", "tenant.direct", "tenant.set"]
    assert [(e.before or {}).get("sa_limit") for e in found] == [None, 1, 5]
    assert [e.after["sa_limit"] for e in found] == [1, 5, 6]


async def test_many_changes_are_written_together(stores):
    tenants, audit = stores
    names = [f"t{number}" for number in range(20)]
    made = [
        TenantWrite(name, {"sa_limit": 1}, 0, entry(name, None, {"tenant_id": name, "sa_limit": 1, "version": 1}))
        for name in names
    ]
    await tenants.write(made)
    assert {d["tenant_id"]: (d["sa_limit"], d["version"]) for d in await tenants.documents()} == dict.fromkeys(
        names, (1, 1)
    )
    stored = {d["tenant_id"]: d for d in await tenants.documents()}
    mixed = [
        TenantWrite("t0", None, 1, entry("t0", stored["t0"], None)),
        TenantWrite(
            "t1", {"sa_limit": 2}, 1, entry("t1", stored["t1"], {**stored["t1"], "sa_limit": 2, "version": 2})
        ),
    ]
    await tenants.write(mixed)
    assert await tenants.document("t0") is None
    assert (await tenants.document("t1"))["sa_limit"] == 2
    assert {name: each.number for name, each in (await audit.audited(["t0", "t1", "t2"])).items()} == {
        "t0": 2, "t1": 2, "t2": 1,
    }  # fmt: skip
    assert len(await audit.audited()) == 20


async def test_tenants_are_scanned_by_name_from_any_place(stores, editor):
    tenants, _ = stores
    for name in ("b", "a", "ä", "c"):
        await editor.put(name, sa_limit=1)
    assert [d["tenant_id"] async for d in tenants.scan()] == ["a", "b", "c", "ä"]
    assert [d["tenant_id"] async for d in tenants.scan("b")] == ["c", "ä"]
    assert [d["tenant_id"] async for d in tenants.scan("zz")] == ["ä"]


async def test_digests_tell_contents_apart_and_nothing_else():
    until = datetime(2026, 4, 1, 12, 30, 15, 250_999, tzinfo=UTC)
    one = {"tenant_id": "a", "sa_limit": 12000, "top_ups": [{"until": until}], "version": 3}
    same = {
        "sa_limit": 12000.0,
        "top_ups": [{"until": until.replace(microsecond=250_000)}],
        "theirs": 1,
        "note": None,
    }
    assert digest(one) == digest(same)
    assert digest(None) is None
    assert len({digest(one), digest(one | {"sa_limit": 1}), digest(one | {"labels": {"a": "b"}}), digest({})}) == 4


# ---------------------------------------------------------------- MongoDB only


async def test_whatever_somebody_writes_is_noticed_and_stops_nothing(replica_set):
    tenants, audit = MongoTenants(replica_set), MongoAudit(replica_set)
    follower = DirectChanges(tenants, audit, lambda: NOW, "r")
    await follower.notice([])
    values = (
        1e300, float("nan"), float("inf"), 2**62, Decimal128("1.5"), ObjectId(), Regex("a"),
        Binary(b"\xff"), Timestamp(1, 2), MinKey(), Code("x"), Code("x", {"a": 1}), [[{"a": {"$b": None}}]], "\x00",
    )  # fmt: skip
    await replica_set.collection(TENANTS).insert_many(
        [{"tenant_id": f"t{number}", "sa_limit": value, "limits": [value]} for number, value in enumerate(values)]
        + [{"sa_limit": 1}, {"tenant_id": None}, {"tenant_id": 5}, {"tenant_id": "x" * 2000}]
    )
    documents = await tenants.documents()
    assert await follower.notice(documents) == len(values) + 1
    assert await DirectChanges(tenants, audit, lambda: NOW, "s").notice(await tenants.documents()) == 0
    assert {e.action for e in await audit.entries(ANY, 100)} == {"audit.began", "tenant.direct"}


async def test_a_replica_that_follows_limits_notes_a_direct_change(replica_set):
    tenants, audit = MongoTenants(replica_set), MongoAudit(replica_set)
    await Editor(tenants).put("acme", sa_limit=1)
    direct = DirectChanges(tenants, audit, lambda: NOW, "r")
    defaults = Defaults(limits_from({"sa_limit": 7}), ZoneInfo("UTC"))
    clock = SimpleNamespace(now=lambda: NOW)
    options = LimitsCacheOptions(poll_s=0.1, refresh_s=0.2, settle_s=0.0)
    cache = LimitsCache(tenants, defaults, clock, Metrics(), options, direct=direct)
    await cache.load()
    following = asyncio.ensure_future(cache.run())
    try:
        assert await _appears(audit, "audit-began") is not None
        await replica_set.collection(TENANTS).update_one({"tenant_id": "acme"}, {"$set": {"sa_limit": 5}})
        found = await _appears(audit, "acme:2")
    finally:
        following.cancel()
        await asyncio.wait({following})
    assert (found.action, found.after["sa_limit"]) == ("tenant.direct", 5)


async def _appears(audit, entry_id):
    """The entry as soon as it is there; None after 20 seconds."""
    for _ in range(400):
        if (found := await audit.entry(entry_id)) is not None:
            return found
        await asyncio.sleep(0.05)
    return None


async def test_a_direct_change_between_reading_and_writing_is_not_lost(replica_set):
    tenants = MongoTenants(replica_set)
    editor = Editor(tenants)
    await editor.put("acme", sa_limit=1)
    read = await tenants.document("acme")
    await replica_set.collection(TENANTS).update_one({"tenant_id": "acme"}, {"$set": {"ip_limit": 3}})
    with pytest.raises(ConflictError):
        await tenants.update(
            "acme", {"sa_limit": 2}, 1, entry("acme", read, {**read, "sa_limit": 2, "version": 2})
        )
    await editor.put("acme", sa_limit=2)
    assert [e.action for e in await MongoAudit(replica_set).entries(ANY, 9) if e.number == 2] == ["tenant.direct"]


async def test_scanning_tells_of_two_documents_for_a_tenant_the_one_that_counts(replica_set):
    await replica_set.collection(TENANTS).insert_many(
        [{"_id": 2, "tenant_id": "a", "sa_limit": 20}, {"_id": 1, "tenant_id": "a", "sa_limit": 10}]
    )
    tenants = MongoTenants(replica_set)
    assert [d["sa_limit"] async for d in tenants.scan()] == [20]
    await Editor(tenants)._tenants.update(
        "a", {"sa_limit": 5}, 0, entry("a", {"tenant_id": "a", "sa_limit": 20}, {"sa_limit": 5, "version": 1})
    )
    assert [d["sa_limit"] for d in await tenants.documents()] == [5, 5]


@pytest_asyncio.fixture
async def standalone(mongo_standalone):
    async with new_database(mongo_standalone) as mongo:
        yield mongo


async def test_a_pending_entry_is_done_once_its_change_can_be_seen(standalone):
    tenants, audit = MongoTenants(standalone), MongoAudit(standalone)
    await Editor(tenants).put("acme", sa_limit=1)
    log = standalone.collection(AUDIT)
    before = await tenants.document("acme")
    made = entry("acme", before, {**before, "sa_limit": 2, "version": 2}, number=2, state=EntryState.PENDING)
    await log.insert_one(entry_document(made) | {"_id": "acme:2"})
    assert (await audit.entry("acme:2")).state is EntryState.PENDING  # killed before the change
    known = (await audit.audited(["acme"]))["acme"]
    assert digest(before) in known.digests
    assert digest(made.after) in known.digests
    await tenants.update("acme", {"sa_limit": 2}, 1)  # killed after the change
    assert (await audit.entry("acme:2")).state is EntryState.DONE
    await Editor(tenants).put("acme", sa_limit=3)
    assert (await audit.entry("acme:2")).state is EntryState.DONE
    assert [e.action for e in await audit.entries(ANY, 9)] == ["tenant.set"] * 3


async def test_a_pending_entry_whose_change_was_never_made_stays_so(standalone):
    tenants, audit = MongoTenants(standalone), MongoAudit(standalone)
    made = entry(
        "acme", None, {"tenant_id": "acme", "sa_limit": 2, "version": 1}, number=1, state=EntryState.PENDING
    )
    await audit.create_indexes()
    await standalone.collection(AUDIT).insert_one(entry_document(made) | {"_id": "acme:1"})
    assert (await audit.entry("acme:1")).state is EntryState.PENDING
    assert (await audit.audited(["acme"]))["acme"].digests == (digest(made.after), None)
    await Editor(tenants).put("acme", sa_limit=3)
    states = {e.id: (e.action, e.state) for e in await audit.entries(ANY, 9)}
    assert states == {
        "acme:1": ("tenant.set", EntryState.PENDING), "acme:2": ("tenant.set", EntryState.DONE),
    }  # fmt: skip


async def test_a_document_that_is_no_entry_is_a_permanent_fault(replica_set):
    audit = MongoAudit(replica_set)
    await replica_set.collection(AUDIT).insert_one({"_id": "odd", "at": "yesterday"})
    with pytest.raises(StoreError, match="'odd' of the audit log is no entry") as fault:
        await audit.entry("odd")
    assert not fault.value.transient


async def test_names_never_share_an_id(stores, editor):
    _, audit = stores
    for name in ("a", "a:1", "a%3A1", "ä"):
        await editor.put(name, sa_limit=1)
    assert {e.id for e in await audit.entries(ANY, 9)} == {"a:1", "a%3A1:1", "a%253A1:1", "%C3%A4:1"}


async def test_of_several_replicas_that_notice_a_direct_change_one_notes_it(stores, editor):
    tenants, audit = stores
    replicas = [DirectChanges(tenants, audit, lambda: NOW, f"r{number}") for number in range(4)]
    for each in replicas:
        await each.notice(await tenants.documents())
    await editor.put("acme", sa_limit=1)
    for change in ({"sa_limit": 5}, {"sa_limit": 1}, None):
        if change is None:
            await tenants.delete("acme")
        else:
            await tenants.update("acme", change)
        documents = await tenants.documents()
        assert sum(await asyncio.gather(*(each.notice(documents) for each in replicas))) == 1
    found = await audit.entries(AuditFilter(tenant="acme"), 10)
    assert sorted((e.number, e.action, (e.after or {}).get("sa_limit")) for e in found) == [
        (1, "tenant.set", 1), (2, "tenant.direct", 5), (3, "tenant.direct", 1), (4, "tenant.direct", None),
    ]  # fmt: skip


async def test_following_while_others_change_tenants_notes_nothing(stores, editor):
    tenants, audit = stores
    replicas = [DirectChanges(tenants, audit, lambda: NOW, f"r{number}") for number in range(2)]
    for each in replicas:
        await each.notice(await tenants.documents())
    ended = asyncio.Event()

    async def follow(replica):
        while not ended.is_set():
            await replica.notice(await tenants.documents())

    async def change():
        for number in range(25):
            await editor.put(f"t{number % 3}", sa_limit=number)
            if number % 7 == 6:
                await editor.delete(f"t{number % 3}")
        ended.set()

    await asyncio.gather(change(), *(follow(each) for each in replicas))
    assert {e.action for e in await audit.entries(ANY, 1000)} == {"audit.began", "tenant.set", "tenant.delete"}


async def test_a_document_names_who_changed_it_last(stores):
    tenants, _ = stores
    await tenants.write([TenantWrite("t", {"sa_limit": 1}, 0, entry("t", None, {"sa_limit": 1, "version": 1}))])
    assert (await tenants.document("t"))["updated_by"] == "ann"
    await tenants.update("t", {"sa_limit": 2})  # nobody says who
    assert "updated_by" not in await tenants.document("t")
