"""Messages as objects, on the S3 of moto (a real HTTP server with S3's own rules for conditional writes)."""

import json

import pytest

from extproc.local.ports import HOST, free_ports

from .conftest_stores import make_bucket, run_s3
from .running import until


@pytest.fixture
def s3(bucket, s3_port, dump):
    """Starts a dumper that writes to a bucket of its own."""
    client, name = bucket

    def start(**settings):
        return dump("--sink", "s3", s3_bucket=name, s3_endpoint=f"http://{HOST}:{s3_port}", **settings)

    return client, name, start


def keys(client, name):
    return [each["Key"] for each in client.list_objects_v2(Bucket=name).get("Contents", [])]


def stored(client, name, key):
    return json.loads(client.get_object(Bucket=name, Key=key)["Body"].read())


async def test_a_message_is_an_object_by_namespace_service_and_date(s3):
    client, name, start = s3
    async with start(s3_prefix="kserve/v1") as dumper:
        await dumper.post(b'{"instances": []}')
        await dumper.post(b'{"predictions": []}', kind="response")
        await dumper.until("stored", 2)
    key = "kserve/v1/models/iris/2026-11-22/1-{}.json"
    assert keys(client, name) == [key.format("request"), key.format("response")]
    record = stored(client, name, key.format("response"))
    assert (record["type"], record["body"]) == ("response", '{"predictions": []}')


async def test_a_repeat_adds_nothing_and_replaces_nothing(s3):
    # Clients may choose the id (the header Ce-Id): nobody must be able to replace what is stored.
    client, name, start = s3
    async with start() as dumper:
        await dumper.post(b"first")
        await dumper.until("stored", 1)
        await dumper.post(b"second")
        await dumper.until("repeated", 1)
    (key,) = keys(client, name)
    assert stored(client, name, key)["body"] == "first"


async def test_names_from_outside_can_not_leave_their_place(s3):
    client, name, start = s3
    ids = ("../../x", "a b/\u00e9\x7f", "x" * 1024)
    async with start() as dumper:
        for number, namespace in enumerate(("..", "", "models")):
            answer = await dumper.post(name=ids[number].encode(), ce_namespace=namespace)
            assert answer.status_code == 202
        await dumper.until("stored", 3)
    # S3 lists them in the order of their bytes.
    outside, none, long = keys(client, name)
    assert outside == "%2E%2E/iris/2026-11-22/..%2F..%2Fx-request.json"
    assert none == "_/iris/2026-11-22/a%20b%2F%C3%A9%7F-request.json"
    assert long.startswith("models/iris/2026-11-22/sha256=")
    assert len(long) < 200
    assert [stored(client, name, key)["id"] for key in (outside, none, long)] == list(ids)


async def test_what_was_accepted_while_the_store_was_down_is_stored_when_it_is_back(dump, tmp_path):
    (port,) = free_ports(1)
    endpoint = f"http://{HOST}:{port}"
    async with dump("--sink", "s3", ready=False, s3_bucket="messages", s3_endpoint=endpoint) as dumper:
        # Never seen its bucket yet: it takes what comes, but says that nobody should send.
        assert (await dumper.http.get("/readyz")).status_code == 503
        assert (await dumper.post(name="early")).status_code == 202
        async with run_s3(tmp_path / "first", port):
            client = make_bucket(port)
            await dumper.until("stored", 1)
            assert (await dumper.http.get("/readyz")).status_code == 200
        failures = await dumper.metric("tokenweir_dumper_write_failures_total")
        for number in range(5):
            assert (await dumper.post(name=str(number))).status_code == 202
        await failing(dumper, failures)
        async with run_s3(tmp_path / "second", port):
            make_bucket(port).close()
            await dumper.until("stored", 6)
            assert len(keys(client, "messages")) == 5
        client.close()
        assert await dumper.metric("tokenweir_dumper_queue_used_bytes") == 0


async def failing(dumper, before=0):
    """Waits until the sink has failed again."""

    async def failed():
        return await dumper.metric("tokenweir_dumper_write_failures_total") > before

    await until(failed)


async def test_sigterm_gives_up_after_its_time_and_says_what_is_lost(dump, tmp_path):
    (port,) = free_ports(1)
    settings = {"s3_bucket": "messages", "s3_endpoint": f"http://{HOST}:{port}", "drain_s": 0.5}
    async with run_s3(tmp_path / "s3", port) as store:
        make_bucket(port).close()
        async with dump("--sink", "s3", **settings) as dumper:
            await store.stop()
            await dumper.post(name="in hand")
            await failing(dumper)
            await dumper.post(name="waits")
            dumper.terminate()
            assert await dumper.child.wait() == 1
            assert dumper.lines()[-1]["messages_lost"] == 2


async def test_sigterm_waits_for_a_store_that_comes_back(dump, tmp_path):
    (port,) = free_ports(1)
    endpoint = f"http://{HOST}:{port}"
    async with dump("--sink", "s3", ready=False, s3_bucket="messages", s3_endpoint=endpoint) as dumper:
        await dumper.post()
        await failing(dumper)
        dumper.terminate()
        async with run_s3(tmp_path / "s3", port):
            client = make_bucket(port)
            assert await dumper.child.wait() == 0
            assert len(keys(client, "messages")) == 1
            client.close()
