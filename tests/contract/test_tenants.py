"""What every implementation of `ports.TenantStore` must do."""

import asyncio
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from bson import decode, encode
from bson.datetime_ms import DatetimeMS
from pymongo.errors import DuplicateKeyError

from extproc.core.quota.binding import Policy
from extproc.core.quota.policies import Defaults, limits_from, policy_from
from extproc.ports.base import ConflictError, StoreError
from extproc.stores.mongo.client import TENANTS
from extproc.stores.mongo.tenants import MongoTenants

from .reservations import HOSTILE, short

DEFAULTS = Defaults(limits_from({"sa_limit": 1}), ZoneInfo("UTC"))


def fields(document):
    """Without what a store keeps for itself."""
    return {name: value for name, value in document.items() if name not in ("version", "updated_at")}


def limits(document):
    return {name: document[name] for name in ("tenant_id", "sa_limit", "ip_limit") if name in document}


async def test_what_was_put_can_be_read_back(tenants):
    assert await tenants.update("a", short(100, 50)) is True
    assert limits(await tenants.document("a")) == {"tenant_id": "a", "sa_limit": 100, "ip_limit": 50}
    assert await tenants.document("b") is None


async def test_putting_again_replaces_the_limits_and_is_no_new_tenant(tenants):
    await tenants.update("a", short(100, 50))
    assert await tenants.update("a", short(70, None)) is False
    assert limits(await tenants.document("a")) == {"tenant_id": "a", "sa_limit": 70}
    assert len(await tenants.documents()) == 1


async def test_updating_keeps_all_other_fields_and_takes_away_those_that_are_none(tenants):
    await tenants.update("a", {"sa_limit": 100, "timezone": "Asia/Tokyo", "mode": "strict", "note": "ours"})
    assert await tenants.update("a", {"sa_limit": 200, "mode": None, "unheard_of": None}) is False
    assert fields(await tenants.document("a")) == {
        "tenant_id": "a", "sa_limit": 200, "timezone": "Asia/Tokyo", "note": "ours",
    }  # fmt: skip
    await tenants.update("a", {"timezone": None, "note": None, "sa_limit": None})
    assert fields(await tenants.document("a")) == {"tenant_id": "a"}


async def test_an_update_touches_no_other_tenant(tenants):
    for tenant in ("a", "b"):
        await tenants.update(tenant, short(100, 50))
    await tenants.update("a", short(None, 7))
    assert fields(await tenants.document("b")) == {"tenant_id": "b", "sa_limit": 100, "ip_limit": 50}


async def test_two_that_update_different_fields_at_once_lose_none(tenants):
    await tenants.update("a", {"note": "old"})
    names = [f"field_{n}" for n in range(12)]
    await asyncio.gather(*(tenants.update("a", {name: name, "note": name}) for name in names))
    document = fields(await tenants.document("a"))
    assert {name: document.get(name) for name in names} == {name: name for name in names}
    assert document["note"] in names
    assert len(await tenants.documents()) == 1


async def test_many_that_make_a_tenant_at_once_make_one_document_with_what_all_of_them_wrote(tenants):
    names = [f"field_{n}" for n in range(12)]
    made = await asyncio.gather(*(tenants.update("a", {name: name}) for name in names))
    assert sorted(made) == [False] * 11 + [True]
    assert [fields(document) for document in await tenants.documents()] == [
        {"tenant_id": "a"} | {name: name for name in names}
    ]


@pytest.mark.parametrize("made", [False, True])
async def test_of_many_that_update_one_version_at_once_one_is_let_through(tenants, made):
    if made:
        await tenants.update("a", {"note": "first"})
    writes = (tenants.update("a", {f"field_{n}": n}, int(made)) for n in range(8))
    ends = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(end, ConflictError) for end in ends) == 7
    assert [end for end in ends if not isinstance(end, ConflictError)] == [not made]
    (document,) = await tenants.documents()
    assert len([name for name in document if name.startswith("field_")]) == 1
    assert document["version"] == 1 + made


async def test_what_is_nested_comes_back_and_means_the_same_policy(tenants):
    until = datetime(2026, 4, 1, 12, 30, 15, 250_000, tzinfo=ZoneInfo("Europe/Berlin"))
    written = {
        "mode": "reserve",
        "timezone": "Europe/Berlin",
        "limits": [
            {"scope": "tenant", "window": "month", "amount": 10**12, "note": "all of us"},
            {"scope": "model", "window": "day", "amount": 500, "unit": "output_tokens", "model": "llama-*"},
            {"scope": "client_ip", "window": "minute", "amount": 60, "unit": "requests", "mode": "shadow"},
            {"scope": "service_account", "window": "day", "amount": 9000, "mode": "strict"},
        ],
        "service_accounts": [
            {"name": "batch@a", "limits": [{"scope": "service_account", "window": "day", "amount": 7}]},
            {"name": "ops.$x@a", "unlimited": True},
            {"name": "bad@a", "suspended": "asked too much"},
        ],
        "unknown_service_accounts": {"sa_limit": 10},
        "top_ups": [{"amount": 300, "until": until, "service_account": "batch@a"}],
        "weights": {"input": 0.25, "cached_input": 0.025},
        "models": [{"model": "big.*", "weights": {"output": 4}}],
        "min_output_tokens": 32,
    }
    policy = policy_from({"tenant_id": "a"} | written, DEFAULTS)
    assert isinstance(policy, Policy), policy
    assert len(policy.limits) == 4
    assert [top_up.until for top_up in policy.top_ups] == [until.timestamp()]
    await tenants.update("a", written)
    assert policy_from(await tenants.document("a"), DEFAULTS) == policy
    assert [policy_from(document, DEFAULTS) for document in await tenants.documents()] == [policy]
    await tenants.update("a", {"limits": written["limits"][:1], "top_ups": None})
    changed = policy_from(await tenants.document("a"), DEFAULTS)
    assert changed.limits[0] == policy.limits[0]
    assert (changed.top_ups, changed.accounts) == ((), policy.accounts)


async def test_an_instant_comes_back_to_the_millisecond_and_in_utc_or_its_own_zone(tenants):
    until = datetime(2026, 4, 1, 12, 30, 15, 250_000, tzinfo=UTC)
    await tenants.update("a", {"top_ups": [{"until": until}]})
    ((top_up,),) = [document["top_ups"] for document in await tenants.documents()]
    assert top_up["until"] == until


async def test_a_deleted_tenant_is_gone(tenants):
    await tenants.update("a", short(100, 50))
    assert await tenants.delete("a") is True
    assert await tenants.delete("a") is False
    assert await tenants.documents() == []


async def test_hostile_names_never_share_a_document_and_come_back_unharmed(tenants):
    names = sorted({name for name, _, _ in HOSTILE} | {account for _, account, _ in HOSTILE})
    for number, name in enumerate(names):
        assert await tenants.update(name, short(number, None)) is True
    for number, name in enumerate(names):
        assert limits(await tenants.document(name)) == {"tenant_id": name, "sa_limit": number}
    assert await tenants.delete(names[0]) is True
    assert sorted(document["tenant_id"] for document in await tenants.documents()) == names[1:]


async def test_watching_tells_of_its_start_and_of_every_kind_of_change(tenants):
    changes = aiter(tenants.changes())
    async with asyncio.timeout(5):
        await anext(changes)
        for change in (
            tenants.update("a", short(1, None)),
            tenants.update("a", short(2, None)),
            tenants.delete("a"),
        ):
            await change
            await anext(changes)
    await changes.aclose()


async def test_nothing_is_told_where_nothing_changed(tenants):
    changes = aiter(tenants.changes())
    await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not done


# ---------------------------------------------------------------- MongoDB only


async def test_a_document_of_the_talk_is_a_whole_one_also_with_doubles(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_one({"tenant_id": "a", "sa_limit": 12000, "ip_limit": 600})
    await collection.insert_one({"tenant_id": "b", "sa_limit": 12000.0, "ip_limit": 600.0})
    policies = [policy_from(document, DEFAULTS) for document in await tenants.documents()]
    assert [policy.limits for policy in policies] == [limits_from({"sa_limit": 12000, "ip_limit": 600})] * 2
    assert [policy.tenant for policy in policies] == ["a", "b"]


async def test_putting_keeps_every_other_field(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_one(
        {"tenant_id": "a", "sa_limit": 1, "timezone": "Asia/Tokyo", "theirs": [1, {"x": 2}]}
    )
    await tenants.update("a", short(None, 5))
    document = await collection.find_one({}, {"_id": 0, "updated_at": 0})
    assert document == {
        "tenant_id": "a",
        "ip_limit": 5,
        "timezone": "Asia/Tokyo",
        "theirs": [1, {"x": 2}],
        "version": 1,
    }


async def test_the_server_itself_refuses_a_second_document_that_is_made_at_the_same_moment(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await tenants.update("a", short(1, None))
    assert (await collection.find_one({}))["_id"] == "a"
    with pytest.raises(DuplicateKeyError):
        await collection.insert_one({"_id": "a", "tenant_id": "a"})


async def test_who_is_refused_because_another_one_made_the_tenant_updates_it(replica_set, monkeypatch):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    plain = tenants._update

    async def overtaken(tenant, update):
        monkeypatch.setattr(tenants, "_update", plain)
        await collection.insert_one({"_id": tenant, "tenant_id": tenant, "ip_limit": 5})
        # As the server does it: the update found none, and the insert that follows meets the other one.
        await collection.insert_one({"_id": tenant, "tenant_id": tenant})

    monkeypatch.setattr(tenants, "_update", overtaken)
    assert await tenants.update("a", {"sa_limit": 7}) is False
    assert [fields(document) for document in await tenants.documents()] == [
        {"tenant_id": "a", "sa_limit": 7, "ip_limit": 5}
    ]


async def test_of_two_documents_for_a_tenant_the_one_that_binds_is_shown_and_changed(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_many(
        [{"_id": 2, "tenant_id": "a", "sa_limit": 20}, {"_id": 1, "tenant_id": "a", "sa_limit": 10}]
    )
    bound = {document["tenant_id"]: document["sa_limit"] for document in await tenants.documents()}
    assert bound["a"] == (await tenants.document("a"))["sa_limit"] == 20
    await tenants.update("a", short(30, None))
    assert [document["sa_limit"] for document in await tenants.documents()] == [30, 30]
    assert await tenants.delete("a") is True
    assert await tenants.documents() == []


async def test_dates_and_texts_that_python_has_not_do_not_make_a_document_unreadable(replica_set):
    text, year_10000 = b"\x02note\x00\x03\x00\x00\x00\xff\xfe\x00", DatetimeMS(253402300800000)
    body = encode({"tenant_id": "a", "until": year_10000})[4:-1] + text + b"\x00"
    data = (len(body) + 4).to_bytes(4, "little") + body
    assert decode(data, replica_set.collection(TENANTS).codec_options)["tenant_id"] == "a"


async def test_a_server_that_is_not_there_is_a_transient_fault(refusing_mongo):
    tenants = MongoTenants(refusing_mongo)
    calls = (
        tenants.documents(),
        tenants.update("a", short(1, 1)),
        _next_change(tenants),
    )
    for fault in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(fault, StoreError)
        assert fault.transient


async def _next_change(tenants):
    return await anext(aiter(tenants.changes()))
