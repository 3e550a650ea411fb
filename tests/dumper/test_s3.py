"""Messages as objects, on the S3 of moto (a real HTTP server with S3's own rules for conditional writes)."""

import json
import uuid

import pytest
import pytest_asyncio

from extproc.local.ports import HOST, free_ports

from .running import Door, Dumper, dumper_in, until

PREFIX = "kserve/v1"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def started(s3_port, s3_client, tmp_path_factory):
    make_bucket(s3_client, "shared")
    settings = {"s3_bucket": "shared", "s3_endpoint": f"http://{HOST}:{s3_port}", "s3_prefix": PREFIX}
    async with dumper_in(tmp_path_factory.mktemp("s3-dumper"), "--sink", "s3", **settings) as dumper:
        yield dumper


@pytest_asyncio.fixture
async def shared(started):
    """One dumper for the tests whose store is always there; each has a service of its own."""
    dumper = Dumper(started.child, started.url)
    yield dumper
    await dumper.http.aclose()


@pytest_asyncio.fixture
async def door(s3_port):
    """A port in front of the store, closed at first."""
    async with Door(*free_ports(1), s3_port) as door:
        yield door


@pytest.fixture
def behind(door, dump, s3_client):
    """A bucket of its own, and a function that starts a dumper which reaches the bucket through the door alone."""
    name = f"messages-{uuid.uuid4().hex[:8]}"
    make_bucket(s3_client, name)

    def start(*, ready=True, **settings):
        endpoint = f"http://{HOST}:{door.port}"
        return dump("--sink", "s3", ready=ready, s3_bucket=name, s3_endpoint=endpoint, **settings)

    return name, start


def make_bucket(client, name):
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})


def keys(client, name, prefix=""):
    return [each["Key"] for each in client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", [])]


def stored(client, name, key):
    return json.loads(client.get_object(Bucket=name, Key=key)["Body"].read())


async def test_a_message_is_an_object_by_namespace_service_and_date(shared, s3_client):
    before = await shared.count("stored")
    await shared.post(b'{"instances": []}')
    await shared.post(b'{"predictions": []}', kind="response")
    await shared.until("stored", before + 2)
    key = f"{PREFIX}/models/iris/2026-11-22/1-{{}}.json"
    assert keys(s3_client, "shared", f"{PREFIX}/models/iris/") == [key.format("request"), key.format("response")]
    record = stored(s3_client, "shared", key.format("response"))
    assert (record["type"], record["body"]) == ("response", '{"predictions": []}')


async def test_a_repeat_adds_nothing_and_replaces_nothing(shared, s3_client):
    # Clients may choose the id (the header Ce-Id): nobody must be able to replace what is stored.
    before, repeated = await shared.count("stored"), await shared.count("repeated")
    await shared.post(b"first", ce_inferenceservicename="again")
    await shared.until("stored", before + 1)
    await shared.post(b"second", ce_inferenceservicename="again")
    await shared.until("repeated", repeated + 1)
    (key,) = keys(s3_client, "shared", f"{PREFIX}/models/again/")
    assert stored(s3_client, "shared", key)["body"] == "first"


async def test_names_from_outside_can_not_leave_their_place(shared, s3_client):
    ids = ("../../x", "a b/\u00e9\x7f", "x" * 1024)
    before, all_before = await shared.count("stored"), set(keys(s3_client, "shared"))
    for number, namespace in enumerate(("..", "", "models")):
        more = {"ce_namespace": namespace, "ce_inferenceservicename": "outside"}
        assert (await shared.post(name=ids[number].encode(), **more)).status_code == 202
    await shared.until("stored", before + 3)
    # S3 lists them in the order of their bytes.
    outside, none, long = [each for each in keys(s3_client, "shared") if each not in all_before]
    assert outside == f"{PREFIX}/%2E%2E/outside/2026-11-22/..%2F..%2Fx-request.json"
    assert none == f"{PREFIX}/_/outside/2026-11-22/a%20b%2F%C3%A9%7F-request.json"
    assert long.startswith(f"{PREFIX}/models/outside/2026-11-22/sha256=")
    assert len(long) < 200
    assert [stored(s3_client, "shared", key)["id"] for key in (outside, none, long)] == list(ids)


async def test_what_was_accepted_while_the_store_was_down_is_stored_when_it_is_back(behind, door, s3_client):
    name, start = behind
    async with start(ready=False) as dumper:
        # Never seen its bucket yet: it takes what comes, but says that nobody should send.
        assert (await dumper.http.get("/readyz")).status_code == 503
        assert (await dumper.post(name="early")).status_code == 202
        await door.open()
        await dumper.until("stored", 1)
        assert (await dumper.http.get("/readyz")).status_code == 200
        await door.close()
        failures = await dumper.metric("tokenweir_dumper_write_failures_total")
        for number in range(5):
            assert (await dumper.post(name=str(number))).status_code == 202
        await failing(dumper, failures)
        await door.open()
        await dumper.until("stored", 6)
        assert len(keys(s3_client, name)) == 6
        await dumper.until_empty()


async def failing(dumper, before=0):
    """Waits until the sink has failed again."""

    async def failed():
        return await dumper.metric("tokenweir_dumper_write_failures_total") > before

    await until(failed)


@pytest.mark.thorough
async def test_sigterm_gives_up_after_its_time_and_says_what_is_lost(behind, door):
    _, start = behind
    await door.open()
    async with start(drain_s=0.5) as dumper:
        await door.close()
        await dumper.post(name="in hand")
        await failing(dumper)
        await dumper.post(name="waits")
        dumper.terminate()
        assert await dumper.child.wait() == 1
        assert dumper.lines()[-1]["messages_lost"] == 2


async def test_sigterm_waits_for_a_store_that_comes_back(behind, door, s3_client):
    name, start = behind
    async with start(ready=False) as dumper:
        await dumper.post()
        await failing(dumper)
        dumper.terminate()
        await door.open()
        assert await dumper.child.wait() == 0
    assert len(keys(s3_client, name)) == 1
