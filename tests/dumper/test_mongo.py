"""Messages as documents, on the repository's real MongoDB-wire store."""

import os
import signal
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from extproc.dumper.mongo import MongoSink, MongoSinkOptions
from extproc.local.ports import free_ports

from .conftest_stores import run_mongo
from .running import Dumper, dumper_in, until

LARGE = 8 * 1024 * 1024


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def started(mongo_url, tmp_path_factory):
    settings = {"mongo_url": mongo_url, "mongo_database": "shared", "max_body_bytes": LARGE}
    async with dumper_in(tmp_path_factory.mktemp("mongo-dumper"), "--sink", "mongo", **settings) as dumper:
        yield dumper


@pytest_asyncio.fixture
async def shared(started, mongo_url):
    """One dumper and the collection that it writes to, which is empty."""
    dumper = Dumper(started.child, started.url)
    client = AsyncMongoClient(mongo_url, tz_aware=True)
    await client["shared"]["messages"].delete_many({})
    yield dumper, client["shared"]["messages"]
    await client.close()
    await dumper.http.aclose()


async def test_messages_are_documents_and_a_repeat_adds_none(shared):
    dumper, messages = shared
    stored, repeated = await dumper.count("stored"), await dumper.count("repeated")
    for number in range(20):
        await dumper.post(f"body {number}".encode(), name=str(number), ce_annotations='{"a.b/c": "$d"}')
    await dumper.post(b"again", name="7")
    await dumper.post(b"the answer", name="7", kind="response")
    await dumper.post(b"another model's", name="7", ce_inferenceservicename="other")
    await dumper.until("repeated", repeated + 1)
    await dumper.until("stored", stored + 22)
    assert await messages.count_documents({}) == 22
    document = await messages.find_one({"id": "7", "type": "request", "inference_service": "iris"})
    assert document["_id"] == "models/iris/7-request"
    assert document["body"] == "body 7"
    assert document["annotations"] == {"a.b/c": "$d"}
    assert document["time"] == datetime(2026, 11, 22, 10, 20, 30, 123000, UTC)
    assert datetime.now(UTC) - document["received_at"] < timedelta(minutes=1)


async def test_messages_expire_after_thirty_days(shared):
    _, messages = shared
    expiry = (await messages.index_information())["expires"]
    assert (expiry["key"], expiry["expireAfterSeconds"]) == ([("received_at", 1)], 30 * 86_400)


async def test_the_time_after_which_messages_expire_can_be_changed(mongo_url, messages):
    for days, seconds in ((30, 2_592_000), (0.5, 43_200), (0, None)):
        sink = MongoSink(MongoSinkOptions(mongo_url, messages.database.name, messages.name, ttl_days=days))
        await sink.prepare()
        await sink.aclose()
        expiry = (await messages.index_information()).get("expires", {})
        assert expiry.get("expireAfterSeconds") == seconds


async def test_a_message_that_the_store_never_takes_holds_up_no_other(shared):
    dumper, messages = shared
    stored = await dumper.count("stored")
    await dumper.post(name="a")
    await dumper.post(name="b", ce_annotations='{"a\\u0000": "1"}')  # no name that BSON has
    await dumper.post(name="c")
    await dumper.until("stored", stored + 2)
    assert await dumper.count("refused") == 1
    assert dumper.lines()[-1]["message_id"] == "models/iris/b-request"
    assert {document["id"] async for document in messages.find()} == {"a", "c"}


async def test_a_large_binary_body_fits_into_a_document(shared):
    dumper, messages = shared
    stored, body = await dumper.count("stored"), bytes(range(256)) * (LARGE // 256)
    assert (await dumper.post(body)).status_code == 202
    await dumper.until("stored", stored + 1)
    document = await messages.find_one({})
    assert (document["body_bytes"], document["body_encoding"]) == (len(body), "base64")


@pytest.mark.thorough
async def test_a_killed_store_loses_nothing_that_was_accepted(dump, tmp_path):
    (port,) = free_ports(1)
    folder = tmp_path / "mongo"
    async with run_mongo(folder, port) as part, dump("--sink", "mongo", mongo_url=part.url, timeout_s=1) as dumper:
        for number in range(10):
            await dumper.post(name=str(number))
        await dumper.until("stored", 10)
        os.killpg(part.process.pid, signal.SIGKILL)
        await part.process.wait()
        for number in range(5, 15):  # half of them were stored already
            assert (await dumper.post(name=str(number))).status_code == 202

        async def tried():
            return await dumper.metric("tokenweir_dumper_write_failures_total") > 0

        await until(tried)
        async with run_mongo(folder, port):
            await dumper.until("stored", 15)
            assert await dumper.count("repeated") == 5
            client = AsyncMongoClient(part.url)
            assert await client["modelMessages"]["messages"].count_documents({}) == 15
            await client.close()
