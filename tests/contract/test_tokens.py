"""What every implementation of `ports.TokenStore` must do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from extproc.ports.audit import Actor, ActorKind, AuditEntry, AuditFilter
from extproc.ports.base import StoreError
from extproc.ports.tokens import AdminToken, TokenPlace
from extproc.stores.memory.tenants import MemoryAudit
from extproc.stores.memory.tokens import MemoryTokens
from extproc.stores.mongo.audit import MongoAudit
from extproc.stores.mongo.client import AUDIT, TOKENS
from extproc.stores.mongo.tokens import MongoTokens

from .conftest import new_database

NOW = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
TOKEN = AdminToken("a" * 16, "ci", "0" * 64, "team-lead", ("$where", "b"), NOW, "ada", NOW + timedelta(days=1))


def entry(name, at=NOW):
    return AuditEntry(name, at, Actor("ada", ActorKind.OS_USER, "host"), "token.issue", None, subject="a")


@pytest_asyncio.fixture
async def both(ledger_url):
    """A store of tokens, and the audit log that it writes to."""
    if ledger_url is None:
        audit = MemoryAudit()
        yield MemoryTokens(audit), audit
        return
    async with new_database(ledger_url) as mongo:
        store = MongoTokens(mongo)
        await store.create_indexes()
        yield store, MongoAudit(mongo)


async def test_a_token_is_read_back_as_it_was_with_its_audit_entry(both):
    store, audit = both
    for token in (TOKEN, replace(TOKEN, id="b" * 16, tenants=None)):
        await store.add(token, entry(token.id))
        assert await store.token(token.id) == token
        assert (await audit.entry(token.id)).subject == "a"
    assert await store.token("unheard-of") is None


async def test_a_token_is_revoked_once(both):
    store, audit = both
    await store.add(TOKEN, entry("e1"))
    assert await store.revoke(TOKEN.id, NOW, entry("e2")) is True
    assert (await store.token(TOKEN.id)).revoked_at == NOW
    later = NOW + timedelta(hours=1)
    assert await store.revoke(TOKEN.id, later, entry("e3", later)) is False
    assert await store.revoke("unheard-of", later, entry("e4", later)) is False
    assert (await store.token(TOKEN.id)).revoked_at == NOW
    assert {each.id for each in await audit.entries(AuditFilter(), 10)} == {"e1", "e2"}


async def test_the_last_use_is_noted_and_makes_no_token(both):
    store, _ = both
    await store.add(TOKEN, entry("e1"))
    await store.note_use(TOKEN.id, NOW)
    await store.note_use("unheard-of", NOW)
    assert await store.token(TOKEN.id) == replace(TOKEN, used_at=NOW)
    assert await store.tokens(10) == [replace(TOKEN, used_at=NOW)]


async def test_tokens_are_listed_from_the_newest_behind_a_place(both):
    store, _ = both
    ids = ["a", "b", "c", "d"]
    for number, name in enumerate(ids):
        at = NOW + timedelta(seconds=number // 2)
        await store.add(replace(TOKEN, id=name, issued_at=at), entry(name))
    found = await store.tokens(3)
    assert [each.id for each in found] == ["d", "c", "b"]
    rest = await store.tokens(3, TokenPlace(found[-1].issued_at, found[-1].id))
    assert [each.id for each in rest] == ["a"]


async def test_a_change_and_its_entry_are_one_transaction(mongo_replica_set):
    async with new_database(mongo_replica_set) as mongo:
        store = MongoTokens(mongo)
        await mongo.collection(AUDIT).insert_one({"_id": "taken"})
        with pytest.raises(StoreError):
            await store.add(TOKEN, entry("taken"))
        assert await store.token(TOKEN.id) is None
        await store.add(TOKEN, entry("free"))
        with pytest.raises(StoreError):
            await store.revoke(TOKEN.id, NOW, entry("taken"))
        assert (await store.token(TOKEN.id)).revoked_at is None


@pytest.mark.parametrize("broken", [{"role": None, "digest": None}, {"issued_at": "yesterday"}, {"tenants": 5}])
async def test_a_document_that_is_no_token_is_an_error_and_no_caller(mongo_replica_set, broken):
    async with new_database(mongo_replica_set) as mongo:
        store = MongoTokens(mongo)
        await store.add(TOKEN, entry("e"))
        await mongo.collection(TOKENS).update_one({}, {"$set": broken})
        with pytest.raises(StoreError, match="is no token"):
            await store.token(TOKEN.id)
