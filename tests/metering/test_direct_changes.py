"""Changes past Tokenweir get an entry in the audit log: one each, and none for changes of our own."""

from datetime import UTC, datetime

import pytest

from extproc.metering.direct_changes import BEGAN, DirectChanges
from extproc.ports.audit import Actor, ActorKind, AuditEntry, AuditFilter
from extproc.ports.base import StoreError
from extproc.stores.memory.tenants import MemoryTenants

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANN = Actor("ann", ActorKind.OS_USER, "desk")


class World:
    """A store, and replicas that follow it."""

    def __init__(self):
        self.tenants = MemoryTenants()
        self.log = self.tenants.audit

    def replica(self):
        return DirectChanges(self.tenants, self.log, lambda: NOW, "replica")

    async def notice(self, replica):
        return await replica.notice(await self.tenants.documents())

    async def ours(self, tenant, **fields):
        before = await self.tenants.document(tenant)
        version = (before or {}).get("version", 0)
        after = {"tenant_id": tenant, **(before or {}), **fields, "version": version + 1}
        entry = AuditEntry("", NOW, ANN, "tenant.set", tenant, before=before, after=after, version=version + 1)
        await self.tenants.update(tenant, fields, version, entry)

    def direct(self, tenant, **fields):
        if not fields:
            del self.tenants._documents[tenant]
            return
        known = self.tenants._documents.get(tenant, {"tenant_id": tenant})
        self.tenants._documents[tenant] = {**known, **fields}

    async def actions(self, tenant):
        entries = await self.log.entries(AuditFilter(tenant=tenant), 100)
        return [e.action for e in sorted(entries, key=lambda each: each.number)]

    async def newest(self, tenant):
        entries = await self.log.entries(AuditFilter(tenant=tenant), 100)
        return max(entries, key=lambda each: each.number)


@pytest.fixture
def world():
    return World()


async def begun(world):
    replica = world.replica()
    await world.notice(replica)
    return replica


async def test_what_is_there_before_auditing_begins_is_found_and_no_direct_change(world):
    world.direct("old", sa_limit=1)
    first, second = world.replica(), world.replica()
    assert await world.notice(first) == 1
    assert await world.notice(second) == 0
    assert await world.actions("old") == ["tenant.found"]
    assert "before auditing began" in (await world.newest("old")).note
    assert (await world.log.entry(BEGAN)).actor == Actor("tokenweir", ActorKind.TOKENWEIR, "replica")


async def test_a_direct_edit_and_then_a_delete_are_noticed_by_whoever_looks_first(world):
    replicas = [await begun(world), await begun(world)]
    await world.ours("acme", sa_limit=1)
    assert [await world.notice(each) for each in replicas] == [0, 0]
    world.direct("acme", sa_limit=5)
    assert [await world.notice(each) for each in replicas] == [1, 0]
    edited = await world.newest("acme")
    assert (edited.actor.kind, edited.before["sa_limit"], edited.after["sa_limit"]) == (ActorKind.DIRECT, 1, 5)
    world.direct("acme")
    assert [await world.notice(each) for each in replicas] == [1, 0]
    deleted = await world.newest("acme")
    assert (deleted.before["sa_limit"], deleted.after) == (5, None)
    assert await world.actions("acme") == ["tenant.set", "tenant.direct", "tenant.direct"]


async def test_a_document_that_is_made_directly_is_noticed(world):
    replica = await begun(world)
    world.direct("new", sa_limit=5)
    assert await world.notice(replica) == 1
    assert (await world.newest("new")).before is None


async def test_what_changed_while_nobody_looked_is_noticed_at_the_start(world):
    await begun(world)
    await world.ours("edited", sa_limit=1)
    await world.ours("deleted", sa_limit=1)
    await world.ours("ours", sa_limit=1)
    world.direct("edited", sa_limit=2)
    world.direct("deleted")
    world.direct("made", sa_limit=1)
    assert await world.notice(world.replica()) == 3
    assert await world.notice(world.replica()) == 0
    assert [await world.actions(name) for name in ("edited", "deleted", "made", "ours")] == [
        ["tenant.set", "tenant.direct"], ["tenant.set", "tenant.direct"], ["tenant.direct"], ["tenant.set"],
    ]  # fmt: skip


async def test_changes_of_our_own_are_never_taken_for_direct_ones(world):
    replica = await begun(world)
    await world.ours("acme", sa_limit=1)
    older = await world.tenants.documents()
    await world.ours("acme", sa_limit=2)
    assert await replica.notice(older) == 0  # read before the change, compared after it
    assert await world.notice(replica) == 0
    assert await world.actions("acme") == ["tenant.set", "tenant.set"]


async def test_fields_of_other_programs_and_the_type_of_a_number_are_no_change(world):
    replica = await begun(world)
    await world.ours("acme", sa_limit=12000)
    world.direct("acme", last_seen="today", sa_limit=12000.0)
    assert await world.notice(replica) == 0


async def test_going_back_and_forth_directly_is_noticed_each_time(world):
    replica = await begun(world)
    await world.ours("acme", sa_limit=1)
    for amount in (2, 1, 2, 1):
        world.direct("acme", sa_limit=amount)
        assert await world.notice(replica) == 1
    assert await world.actions("acme") == ["tenant.set", *["tenant.direct"] * 4]


async def test_where_nothing_changes_the_log_is_not_asked(world, monkeypatch):
    replica = await begun(world)
    await world.ours("acme", sa_limit=1)
    await world.notice(replica)

    async def asked(*_):
        raise AssertionError

    monkeypatch.setattr(world.log, "audited", asked)
    assert await world.notice(replica) == 0


async def test_after_a_fault_the_same_documents_are_compared_again(world, monkeypatch):
    replica = await begun(world)
    await world.ours("acme", sa_limit=1)
    await world.notice(replica)
    world.direct("acme", sa_limit=2)
    with monkeypatch.context() as broken:

        async def away(*_):
            raise StoreError("away", transient=True)

        broken.setattr(world.log, "audited", away)
        with pytest.raises(StoreError):
            await world.notice(replica)
    assert await world.notice(replica) == 1


async def test_a_document_that_keeps_changing_is_left_for_the_next_look(world, monkeypatch):
    replica = await begun(world)
    await world.ours("acme", sa_limit=1)
    world.direct("acme", sa_limit=2)
    read, tries = world.tenants.document, []

    async def overtaken(tenant):
        tries.append(tenant)
        monkeypatch.setattr(world.tenants, "document", read)
        await world.ours("acme", sa_limit=10 + len(tries))
        monkeypatch.setattr(world.tenants, "document", overtaken)
        return await read(tenant)

    documents = await world.tenants.documents()
    monkeypatch.setattr(world.tenants, "document", overtaken)
    assert await replica.notice(documents) == 0
    assert len(tries) == 5
    monkeypatch.setattr(world.tenants, "document", read)
    assert await replica.of("acme") == 0
    world.direct("acme", sa_limit=3)
    assert await replica.of("acme") == 1


async def test_one_tenant_is_not_compared_before_auditing_has_begun(world):
    world.direct("acme", sa_limit=2)
    assert await world.replica().of("acme") == 0
    assert await world.log.entries(AuditFilter(), 10) == []
