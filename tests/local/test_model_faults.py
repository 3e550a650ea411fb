"""Each fault does to an answer what its name says, and what was generated is counted all the same."""

import asyncio
import gzip
import json
import math
import zlib

import httpx
import pytest

from extproc.local.model import FAULT_HEADER, Fault, SampleModel, running

CHAT = "/v1/chat/completions"
PLAIN = {"model": "tokenweir-sample", "messages": [{"role": "user", "content": "1 + 1 =?"}]}
STREAM = {**PLAIN, "stream": True, "stream_options": {"include_usage": True}}
# Role, eight tokens and usage.
STREAM_CHUNKS = 10


@pytest.fixture
def app():
    return SampleModel()


@pytest.fixture
async def client(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model") as open_client:
        yield open_client


@pytest.fixture
async def wire(app):
    async with running(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as open_client:
        yield open_client


async def ask(client, fault, request):
    return await client.post(CHAT, json=request, headers={FAULT_HEADER: fault})


def chunks_of(body):
    events = body.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def usages(client, fault):
    """The usage of a plain answer and that of a stream."""
    plain = (await ask(client, fault, PLAIN)).json()["usage"]
    return plain, chunks_of((await ask(client, fault, STREAM)).text)[-1]["usage"]


async def test_no_usage_leaves_it_out(client):
    assert "usage" not in (await ask(client, Fault.NO_USAGE, PLAIN)).json()
    chunks = chunks_of((await ask(client, Fault.NO_USAGE, STREAM)).text)
    assert len(chunks) == STREAM_CHUNKS - 1
    continuous = {"include_usage": True, "continuous_usage_stats": True}
    chunks += chunks_of((await ask(client, Fault.NO_USAGE, {**STREAM, "stream_options": continuous})).text)
    assert not [chunk for chunk in chunks if "usage" in chunk]


@pytest.mark.parametrize(
    ("fault", "spoilt"),
    [
        (Fault.NEGATIVE_USAGE, (-9, -8, -17)),
        (Fault.FLOAT_USAGE, (9.5, 8.5, 17.5)),
        (Fault.HUGE_USAGE, (2**63, 2**63, 2**63)),
        (Fault.STRING_USAGE, ("9", "8", "17")),
    ],
)
async def test_counts_are_spoilt(client, fault, spoilt):
    for usage in await usages(client, fault):
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == spoilt


async def test_nan_usage_is_not_json_but_written_as_some_do(client):
    for usage in await usages(client, Fault.NAN_USAGE):
        assert math.isnan(usage["total_tokens"])


async def test_usage_twice_is_there_twice(client):
    assert (await ask(client, Fault.USAGE_TWICE, PLAIN)).text.count('"usage":{"prompt_tokens":9,') == 2
    chunks = chunks_of((await ask(client, Fault.USAGE_TWICE, STREAM)).text)
    assert len(chunks) == STREAM_CHUNKS + 1
    assert chunks[-1] == chunks[-2]


async def test_truncated_json_ends_properly_but_too_early(wire):
    plain = await ask(wire, Fault.TRUNCATED_JSON, PLAIN)
    assert len(plain.content) == int(plain.headers["content-length"])
    with pytest.raises(ValueError):
        plain.json()
    events = (await ask(wire, Fault.TRUNCATED_JSON, STREAM)).text.split("\n\n")
    assert len(events) == 3
    with pytest.raises(ValueError):
        json.loads(events[2].removeprefix("data: "))


async def test_truncated_json_cuts_a_short_stream_before_its_end(client):
    short = {**PLAIN, "stream": True, "max_tokens": 1}
    events = (await ask(client, Fault.TRUNCATED_JSON, short)).text.split("\n\n")
    assert len(events) == 2
    with pytest.raises(ValueError):
        json.loads(events[1].removeprefix("data: "))


@pytest.mark.parametrize(
    ("fault", "status", "requests"),
    [
        (Fault.ERROR_200, 200, [PLAIN, STREAM]),
        (Fault.ERROR_500, 500, [PLAIN, STREAM]),
        (Fault.ERROR_IN_STREAM, 500, [PLAIN]),
    ],
)
async def test_errors_take_the_place_of_an_answer(app, client, fault, status, requests):
    for request in requests:
        response = await ask(client, fault, request)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] == 500
    assert app.ledger.report()["requests"] == 0


async def test_an_error_in_a_stream_comes_after_three_chunks(app, client):
    chunks = chunks_of((await ask(client, Fault.ERROR_IN_STREAM, STREAM)).text)
    assert ["error" in chunk for chunk in chunks] == [False, False, False, True]
    told = app.ledger.report()
    assert (told["completion_tokens"], told["aborted"]) == (2, 1)


async def read_into(seen, client, fault):
    async with client.stream("POST", CHAT, json=STREAM, headers={FAULT_HEADER: fault}) as answer:
        async for text in answer.aiter_text():
            seen.append(text)


async def test_a_reset_breaks_a_stream_after_three_chunks(app, wire):
    seen = []
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await read_into(seen, wire, Fault.RESET_MID_STREAM)
    assert "".join(seen).count("\n\n") == 3
    told = app.ledger.report()
    assert (told["completion_tokens"], told["aborted"]) == (2, 1)
    # The server goes on serving.
    assert (await wire.post(CHAT, json=PLAIN)).status_code == 200


async def test_a_reset_breaks_a_plain_answer_in_its_middle(wire):
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await ask(wire, Fault.RESET_MID_STREAM, PLAIN)


async def test_in_process_a_reset_is_an_error(client):
    with pytest.raises(ConnectionResetError):
        await ask(client, Fault.RESET_MID_STREAM, STREAM)


async def test_a_hanging_answer_lasts_until_the_client_leaves(app, wire):
    with pytest.raises(httpx.ReadTimeout):
        await wire.post(CHAT, json=PLAIN, headers={FAULT_HEADER: Fault.HANG}, timeout=0.05)
    assert app.ledger.report()["requests"] == 0


async def test_gzip_encodes_plain_answers_and_streams(client):
    for request in (PLAIN, STREAM):
        clear = await client.post(CHAT, json=request, headers={"x-request-id": "same"})
        async with client.stream(
            "POST", CHAT, json=request, headers={FAULT_HEADER: Fault.GZIP, "x-request-id": "same"}
        ) as packed:
            assert packed.headers["content-encoding"] == "gzip"
            unpacked = gzip.decompress(b"".join([part async for part in packed.aiter_raw()])).decode()
        assert len(unpacked) == len(clear.text)
        assert unpacked.count("chatcmpl-same") == clear.text.count("chatcmpl-same")


async def sent_parts(app, request, fault):
    """The parts in which an answer's body is sent."""
    sent = []

    async def send(message):
        if message["type"] == "http.response.body" and message["body"]:
            sent.append(message["body"])

    messages = [{"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    headers = [(b"content-type", b"application/json"), (FAULT_HEADER.encode(), fault.encode())]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent


async def test_each_gzipped_event_can_be_read_as_it_comes(app):
    first, second, *_ = await sent_parts(app, STREAM, Fault.GZIP)
    inflate = zlib.decompressobj(wbits=31)
    assert inflate.decompress(first).endswith(b"}\n\n")
    assert inflate.decompress(second).endswith(b"}\n\n")


@pytest.mark.parametrize("request_body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_one_byte_chunks_are_sent_one_by_one(app, request_body):
    sent = await sent_parts(app, request_body, Fault.ONE_BYTE_CHUNKS)
    assert {len(part) for part in sent} == {1}
    whole = b"".join(sent).decode()
    if request_body is PLAIN:
        assert json.loads(whole)["usage"]["total_tokens"] == 17
    else:
        assert len(chunks_of(whole)) == STREAM_CHUNKS


async def test_a_misspelt_fault_is_refused(client):
    response = await ask(client, "no-usgae", PLAIN)
    assert response.status_code == 400
    assert "no-usage" in response.json()["error"]["message"]


async def test_spoilt_answers_are_counted_as_generated(app, client):
    await ask(client, Fault.HUGE_USAGE, PLAIN)
    await ask(client, Fault.NO_USAGE, STREAM)
    told = app.ledger.report()
    assert (told["requests"], told["total_tokens"], told["aborted"]) == (2, 34, 0)
