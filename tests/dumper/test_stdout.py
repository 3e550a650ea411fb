"""The command itself: what it takes, what it prints, how it ends."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from extproc.local.ports import free_ports

from .running import event, until

STRUCTURED = {
    "specversion": "1.0",
    "id": "s1",
    "type": "org.kubeflow.serving.inference.response",
    "source": "http://localhost:9081/",
    "inferenceservicename": "iris",
    "namespace": "models",
}


async def structured(dumper, **more):
    body = json.dumps({**STRUCTURED, **more}).encode()
    return await dumper.http.post("/", content=body, headers={"content-type": "application/cloudevents+json"})


async def test_a_message_of_kserve_is_one_line_of_json(dump_once):
    body = b'{"instances": [[1,\n2]]}'
    more = {"ce_metadata": '{"X-Request-Id": ["r-1"]}', "ce_annotations": '{"owner": "zoë"}'.encode()}
    answer = await dump_once.post(body, name="one", **more)
    assert (answer.status_code, answer.content) == (202, b"")
    line = await dump_once.line("one")
    received = line.pop("received_at")
    assert line == {
        "id": "one",
        "type": "request",
        "namespace": "models",
        "inference_service": "iris",
        "component": "predictor",
        "endpoint": "default",
        "source": "http://localhost:9081/",
        "time": "2026-11-22T10:20:30.123000+00:00",
        "content_type": "application/json",
        "metadata": {"X-Request-Id": ["r-1"]},
        "annotations": {"owner": "zoë"},
        "body_bytes": len(body),
        "body_encoding": "text",
        "body_cut": False,
        "body": body.decode(),
    }
    assert received.endswith("+00:00")


async def test_any_path_takes_events_because_logger_url_may_have_one(dump_once):
    assert (await dump_once.post(path="/of/the/logger")).status_code == 202


async def test_a_body_that_is_no_text_is_base64(dump_once):
    body = bytes(range(256))
    await dump_once.post(body, name="binary", content_type="application/octet-stream")
    line = await dump_once.line("binary")
    assert (line["body_encoding"], base64.b64decode(line["body"])) == ("base64", body)


async def test_a_long_body_is_cut_where_it_is_printed_and_never_within_a_character(dump_little):
    await dump_little.post("añoñ".encode(), name="long")
    line = await dump_little.line("long")
    assert (line["body"], line["body_encoding"], line["body_cut"], line["body_bytes"]) == ("año", "text", True, 6)


async def test_structured_mode_is_taken_with_data_as_it_was_written(dump_once):
    answers = [
        await structured(dump_once, data={"big": 2**70, "x": [1.5]}),
        await structured(dump_once, id="s2", data_base64="/wA="),
        await structured(dump_once, id="s3", datacontenttype="text/plain", data="a\nb"),
        await structured(dump_once, id="s4"),
    ]
    assert {answer.status_code for answer in answers} == {202}
    whole, binary, text, empty = [await dump_once.line(f"s{n}") for n in range(1, 5)]
    assert whole["body"] == '{"big": 1180591620717411303424, "x": [1.5]}'
    assert [whole[name] for name in ("type", "inference_service")] == ["response", "iris"]
    assert whole["content_type"] == "application/json"
    assert (binary["body"], binary["body_encoding"], binary["body_bytes"]) == ("/wA=", "base64", 2)
    assert (text["body"], empty["body"]) == ("a\nb", "")


async def test_bodies_can_be_left_out(dump):
    async with dump("--bodies", "none") as dumper:
        await dumper.post(b"my name is Ada")
        await dumper.until("stored", 1)
        (line,) = dumper.printed()
        assert (line["body"], line["body_bytes"], line["body_cut"]) == (None, 14, False)
        assert "Ada" not in dumper.child.log_path.read_text()


async def test_credentials_among_the_metadata_go_nowhere(dump_once):
    names = ("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "apikey", "Api-Key")
    names += ("X-Goog-Iap-Jwt-Assertion", "X-Amz-Security-Token", "X-Vault-Token", "Client-Secret", "Key")
    metadata = {**{name: ["hush"] for name in names}, "Keyboard": ["de"], "Oc_sa": ["sa1"]}
    await dump_once.post(name="m1", ce_metadata=json.dumps(metadata), authorization="hush", cookie="hush")
    # Where no form can be read, nobody knows what is a credential.
    await dump_once.post(name="m2", ce_metadata='["Authorization: hush"]')
    assert (await dump_once.line("m1"))["metadata"] == {"Keyboard": ["de"], "Oc_sa": ["sa1"]}
    assert (await dump_once.line("m2"))["metadata"] == {}
    assert "hush" not in dump_once.child.log_path.read_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ce_id": ""}, "ce-id is missing"),
        ({"ce_source": ""}, "ce-source is missing"),
        ({"ce_specversion": ""}, "ce-specversion is missing"),
        ({"ce_specversion": "0.3"}, "ce-specversion '0.3' is not known"),
        ({"ce_type": "other"}, "ce-type 'other' is none of org.kubeflow.serving.inference.request"),
        ({"ce_time": "yesterday"}, "ce-time is no time"),
        ({"ce_time": "2026-11-22T10:20:30"}, "ce-time is no time"),
        ({"ce_time": "0001-01-01T00:00:00+23:00"}, "ce-time is no time"),
        ({"ce_id": "x" * 1025}, "ce-id has more than 1024 characters"),
    ],
)
async def test_what_is_no_message_is_refused_with_the_reason(dump_once, wrong, said):
    answer = await dump_once.post(**wrong)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data_base64": "*"}, "data_base64: not base64"),
        ({"data_base64": "", "data": 1}, "both data and data_base64"),
        ({"id": 7}, "$.id"),
        ({"id": None}, "$.id"),
        ({"specversion": "2.0"}, "ce-specversion '2.0' is not known"),
    ],
)
async def test_a_wrong_structured_event_is_refused_with_the_reason(dump_once, more, said):
    answer = await structured(dump_once, **more)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"data":' + b"[" * 100_000])
async def test_a_structured_event_that_is_no_json_object_is_refused(dump_once, body):
    headers = {"content-type": "application/cloudevents+json; charset=utf-8"}
    assert (await dump_once.http.post("/", content=body, headers=headers)).status_code == 400


async def test_batches_and_compressed_events_are_not_taken(dump_once):
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert (await dump_once.http.post("/", content=b"[]", headers=headers)).status_code == 415
    assert (await dump_once.post(content_encoding="gzip")).status_code == 415


async def test_a_refused_event_is_counted_and_never_logged_with_its_body(dump_once):
    before = await dump_once.count("invalid")
    await dump_once.http.post("/", content=b"my secret", headers={"ce-id": "1"})
    assert await dump_once.count("invalid") == before + 1
    assert "my secret" not in dump_once.child.log_path.read_text()


async def chunks(size, count):
    for _ in range(count):
        yield b"x" * size


async def test_an_event_that_is_too_large_is_refused_before_it_is_read(dump_little):
    dumper, stored = dump_little, await dump_little.count("stored")
    assert (await dumper.post(b"x" * 2048)).status_code == 202
    assert (await dumper.post(b"x" * 2049)).status_code == 413
    refused = await dumper.post(chunks(1024, 3))  # chunked: its size is not announced
    assert refused.status_code == 413
    assert refused.json() == {"error": "an event has 2048 bytes at most"}
    assert await dumper.count("too_large") == 2
    assert (await dumper.post(chunks(1024, 2))).status_code == 202
    # What was refused holds no room.
    await dumper.until("stored", stored + 2)
    await dumper.until_empty()


async def test_a_body_whose_announced_length_is_too_much_is_not_waited_for(dump_once):
    reader, writer = await asyncio.open_connection("127.0.0.1", dump_once.http.base_url.port)
    head = "".join(f"{name}: {value}\r\n" for name, value in event().items())
    writer.write(f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n{head}\r\n".encode())
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_client_that_leaves_in_the_middle_holds_no_room(dump_once):
    await dump_once.until_empty()
    stored = await dump_once.count("stored")
    _, writer = await asyncio.open_connection("127.0.0.1", dump_once.http.base_url.port)
    head = "".join(f"{name}: {value}\r\n" for name, value in event().items())
    writer.write(f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n{head}\r\nabc".encode())
    await writer.drain()

    async def held():
        return await dump_once.metric("tokenweir_dumper_queue_used_bytes") > 1000

    await until(held)
    writer.close()
    await dump_once.until_empty()
    assert await dump_once.count("stored") == stored


async def test_a_full_queue_answers_503_at_once_and_takes_again_when_there_is_room(dump):
    # Nobody reads its stdout: the pipe fills, then the queue.
    (port,) = free_ports(1)
    argv = [sys.executable, "-P", "-m", "extproc", "message-dumper", "serve", "--listen", f"127.0.0.1:{port}"]
    env = {**os.environ, "TOKENWEIR_DUMPER_QUEUE_BYTES": "300000", "TOKENWEIR_DUMPER_MAX_BODY_BYTES": "65536"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:  # noqa: ASYNC220 - asyncio would read the pipe
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
                transport = httpx.AsyncHTTPTransport(retries=20)
                async with httpx.AsyncClient(transport=transport) as first:
                    await first.get(f"http://127.0.0.1:{port}/healthz")
                statuses = []
                for number in range(30):
                    answer = await http.post("/", content=b"x" * 50_000, headers=event(name=str(number)))
                    statuses.append(answer.status_code)
                    if answer.status_code == 503:
                        assert answer.headers["retry-after"] == "1"
                accepted = statuses.count(202)
                assert 5 <= accepted < 15
                assert statuses[accepted:] == [503] * (30 - accepted)
                # Once somebody reads, all that was accepted comes, in order, and more is taken.
                loop = asyncio.get_running_loop()
                lines = [await loop.run_in_executor(None, process.stdout.readline) for _ in range(accepted)]
                assert [json.loads(line)["id"] for line in lines] == [str(n) for n in range(accepted)]
                answer = await http.post("/", content=b"x", headers=event(name="after"))
                assert answer.status_code == 202
                process.send_signal(signal.SIGTERM)
                last = await loop.run_in_executor(None, process.stdout.readline)
                assert json.loads(last)["id"] == "after"
                assert await loop.run_in_executor(None, process.wait) == 0
        finally:
            process.kill()


async def test_sigterm_writes_what_was_accepted_and_ends_with_0(dump):
    async with dump() as dumper:
        answers = await asyncio.gather(*(dumper.post(b"x" * 1000, name=str(n)) for n in range(200)))
        assert {answer.status_code for answer in answers} == {202}
        dumper.terminate()
        assert await dumper.child.wait() == 0
        assert sorted(int(line["id"]) for line in dumper.printed()) == list(range(200))
        assert dumper.lines()[-1]["messages_lost"] == 0


async def test_health_readiness_and_metrics_answer(dump_once):
    for path in ("/healthz", "/readyz"):
        assert (await dump_once.http.get(path)).status_code == 200
    answer = await dump_once.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'tokenweir_dumper_messages_total{outcome="full"} 0.0' in answer.text


@pytest.mark.thorough
def test_an_address_that_is_taken_is_one_line_and_exit_code_1():
    argv = [sys.executable, "-P", "-m", "extproc", "message-dumper", "serve", "--listen", "192.0.2.1:1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tokenweir: listen: can't listen on 192.0.2.1:1: ")
