"""What every implementation of `ports.TenantStore` must do."""

import asyncio
from zoneinfo import ZoneInfo

import pytest
from bson import decode, encode
from bson.datetime_ms import DatetimeMS
from reservations import HOSTILE

from extproc.core.policies import Defaults, policy_from, short_limits
from extproc.ports import StoreError, TenantRecord
from extproc.stores.mongo.client import TENANTS
from extproc.stores.mongo.tenants import MongoTenants

DEFAULTS = Defaults(short_limits(1, None), ZoneInfo("UTC"))


def limits(document):
    return {name: document[name] for name in ("tenant_id", "sa_limit", "ip_limit") if name in document}


async def test_what_was_put_can_be_read_back(tenants):
    assert await tenants.put(TenantRecord("a", 100, 50)) is True
    assert limits(await tenants.document("a")) == {"tenant_id": "a", "sa_limit": 100, "ip_limit": 50}
    assert await tenants.document("b") is None


async def test_putting_again_replaces_the_limits_and_is_no_new_tenant(tenants):
    await tenants.put(TenantRecord("a", 100, 50))
    assert await tenants.put(TenantRecord("a", 70, None)) is False
    assert limits(await tenants.document("a")) == {"tenant_id": "a", "sa_limit": 70}
    assert len(await tenants.documents()) == 1


async def test_a_deleted_tenant_is_gone(tenants):
    await tenants.put(TenantRecord("a", 100, 50))
    assert await tenants.delete("a") is True
    assert await tenants.delete("a") is False
    assert await tenants.documents() == []


async def test_hostile_names_never_share_a_document_and_come_back_unharmed(tenants):
    names = sorted({name for name, _, _ in HOSTILE} | {account for _, account, _ in HOSTILE})
    for number, name in enumerate(names):
        assert await tenants.put(TenantRecord(name, number, None)) is True
    for number, name in enumerate(names):
        assert limits(await tenants.document(name)) == {"tenant_id": name, "sa_limit": number}
    assert await tenants.delete(names[0]) is True
    assert sorted(document["tenant_id"] for document in await tenants.documents()) == names[1:]


async def test_watching_tells_of_its_start_and_of_every_kind_of_change(tenants):
    changes = aiter(tenants.changes())
    async with asyncio.timeout(5):
        await anext(changes)
        for change in (
            tenants.put(TenantRecord("a", 1, None)),
            tenants.put(TenantRecord("a", 2, None)),
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
    assert [policy.limits for policy in policies] == [short_limits(12000, 600)] * 2
    assert [policy.tenant for policy in policies] == ["a", "b"]


async def test_putting_keeps_every_other_field(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_one(
        {"tenant_id": "a", "sa_limit": 1, "timezone": "Asia/Tokyo", "theirs": [1, {"x": 2}]}
    )
    await tenants.put(TenantRecord("a", None, 5))
    document = await collection.find_one({}, {"_id": 0, "updated_at": 0})
    assert document == {
        "tenant_id": "a",
        "ip_limit": 5,
        "timezone": "Asia/Tokyo",
        "theirs": [1, {"x": 2}],
        "version": 1,
    }


async def test_of_two_documents_for_a_tenant_the_one_that_binds_is_shown_and_changed(replica_set):
    collection, tenants = replica_set.collection(TENANTS), MongoTenants(replica_set)
    await collection.insert_many(
        [{"_id": 2, "tenant_id": "a", "sa_limit": 20}, {"_id": 1, "tenant_id": "a", "sa_limit": 10}]
    )
    bound = {document["tenant_id"]: document["sa_limit"] for document in await tenants.documents()}
    assert bound["a"] == (await tenants.document("a"))["sa_limit"] == 20
    await tenants.put(TenantRecord("a", 30, None))
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
    for call in (
        tenants.documents(),
        tenants.put(TenantRecord("a", 1, 1)),
        anext(aiter(tenants.changes())),
    ):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.transient
