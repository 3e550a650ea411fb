"""Faults on all endpoints: each does what its name says in the words of each, and what was served is counted."""

import asyncio
import gzip
import itertools
import json
import zlib
from importlib.util import find_spec

import httpx
import pytest

from extproc.local.model import Fault, SampleModel, running, sending
from tests.missing import missing

from .model_calls import (
    CALLS,
    MODEL,
    STREAMS,
    TURNS,
    Call,
    answer,
    calling,
    events_of,
    post,
    stream,
    transcription,
)

# What tells its usage when asked plainly.
TELLING = {
    name: call for name, call in CALLS.items() if name not in {"audio_speech", "predict", "infer", "tokenize"}
}
HAVE_DONE = {"chat_completions", "completions", "audio_transcriptions"}
SPOILT = {
    Fault.ZERO_USAGE: lambda count: count == 0,
    Fault.NEGATIVE_USAGE: lambda count: count < 0,
    Fault.FLOAT_USAGE: lambda count: isinstance(count, float) and count % 1 == 0.5,
    Fault.NAN_USAGE: lambda count: count != count,  # noqa: PLR0124
    Fault.HUGE_USAGE: lambda count: count == 2**63,
    Fault.STRING_USAGE: lambda count: isinstance(count, str) and count.isdigit(),
}
BOUNDS = {
    "chat_completions": "max_completion_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
    "audio_transcriptions": "max_completion_tokens",
}


@pytest.fixture
def app():
    return SampleModel()


@pytest.fixture
async def client(app):
    async with calling(app) as open_client:
        yield open_client


def usages(value):
    """All usage objects in a document, however deep."""
    if isinstance(value, list):
        return [usage for item in value for usage in usages(item)]
    if not isinstance(value, dict):
        return []
    own = [value["usage"]] if value.get("usage") else []
    return own + [usage for key, item in value.items() if key != "usage" for usage in usages(item)]


def counts(usage):
    return [count for key, count in usage.items() if key == "seconds" or key.endswith("_tokens")]


async def streamed(client, name, **options):
    return [document for _, document in await stream(client, STREAMS[name], done=name in HAVE_DONE, **options)]


@pytest.mark.parametrize("fault", SPOILT)
@pytest.mark.parametrize("name", TELLING)
async def test_counts_are_spoilt_wherever_they_are_told(client, name, fault):
    told = usages(await answer(client, TELLING[name], fault=fault))
    if name in STREAMS:
        told += usages(await streamed(client, name, fault=fault))
    assert told
    assert all(counts(usage) and all(map(SPOILT[fault], counts(usage))) for usage in told), told


@pytest.mark.parametrize("name", TELLING)
async def test_no_usage_leaves_it_out(client, name):
    whole = await answer(client, TELLING[name])
    without = await answer(client, TELLING[name], fault=Fault.NO_USAGE)
    assert list(without) == [key for key in whole if key != "usage"]
    if name in STREAMS:
        before, after = await streamed(client, name), await streamed(client, name, fault=Fault.NO_USAGE)
        assert usages(before)
        assert not usages(after)
        # A chunk that is there for its usage only is not there at all.
        gone = 1 if name in HAVE_DONE else 0
        assert len(after) == len(before) - gone


@pytest.mark.parametrize("name", TELLING)
async def test_usage_is_there_twice(client, name):
    response = await post(client, TELLING[name], fault=Fault.USAGE_TWICE)
    assert response.text.count('"usage":{') == 2
    if name in STREAMS:
        call = STREAMS[name].streamed()
        once, twice = [(await post(client, call, fault=fault)).text for fault in (None, Fault.USAGE_TWICE)]
        assert twice.count('"usage":{') == 2 * once.count('"usage":{')


@pytest.mark.parametrize("name", CALLS)
async def test_errors_take_the_place_of_any_answer(app, client, name):
    calls = [CALLS[name], STREAMS[name].streamed()] if name in STREAMS else [CALLS[name]]
    for call in calls:
        for fault, status in ((Fault.ERROR_200, 200), (Fault.ERROR_500, 500)):
            response = await post(client, call, fault=fault)
            assert response.status_code == status
            error = response.json()["error"]
            message = error if isinstance(error, str) else error["message"]
            assert message == f"Injected fault: {fault}"
            assert (response.json().get("type") == "error") == (name == "messages")
    assert app.ledger.report()["requests"] == 0


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_errs_in_its_own_words_after_two_tokens(app, client, name):
    events = await stream(client, STREAMS[name], done=name in HAVE_DONE, fault=Fault.ERROR_IN_STREAM)
    event_name, last = events[-1]
    message = last["message"] if name == "responses" else last["error"]["message"]
    assert message == "Injected fault: error-in-stream"
    assert event_name == ("error" if name in {"responses", "messages"} else None)
    told = app.ledger.report()["by_endpoint"][name]
    assert told["completion_tokens"] in {2, 3}
    assert told["aborted"] == 1
    assert not [usage for usage in usages([document for _, document in events]) if usage.get("output_tokens")]


async def read_into(seen, response):
    async for part in response.aiter_raw():
        seen.append(part)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_cut_off_after_two_tokens(app, name):
    seen = []
    async with running(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        call = STREAMS[name].streamed()
        sent = {"json": call.body}
        if call.is_form:
            sent = {"data": call.body, "files": {"file": ("a.wav", b"abc")}}
        request = client.build_request("POST", call.path, headers={"x-sample-fault": "reset-mid-stream"}, **sent)
        response = await client.send(request, stream=True)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await read_into(seen, response)
        await response.aclose()
    assert b"".join(seen).count(b"\n\n") == {"responses": 6, "messages": 4}.get(name, 3)
    assert app.ledger.report()["by_endpoint"][name]["aborted"] == 1


@pytest.mark.parametrize("name", STREAMS)
async def test_a_truncated_stream_ends_within_an_event(client, name):
    text = (await post(client, STREAMS[name].streamed(), fault=Fault.TRUNCATED_JSON)).text
    *whole, cut = text.split("\n\n")
    assert cut
    assert len(whole) == {"responses": 5, "messages": 3}.get(name, 2)
    with pytest.raises(ValueError):
        json.loads(cut.partition("data: ")[2])


async def test_a_short_stream_without_done_is_truncated_too(client):
    call = transcription(stream="true", max_completion_tokens="1")
    text = (await post(client, call, fault=Fault.TRUNCATED_JSON, usage="tokens")).text
    *_, cut = text.split("\n\n")
    assert cut.startswith("data: {")
    with pytest.raises(ValueError):
        json.loads(cut.removeprefix("data: "))


@pytest.mark.parametrize("name", CALLS)
async def test_any_plain_answer_can_be_truncated(client, name):
    whole = await post(client, CALLS[name])
    cut = await post(client, CALLS[name], fault=Fault.TRUNCATED_JSON)
    assert 0 < len(cut.content) <= len(whole.content) / 2 + 9
    assert len(cut.content) == int(cut.headers["content-length"])


def unpack(encoding, body):
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    if encoding == "br":
        import brotli

        return brotli.decompress(body)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def installed(encoding):
    package = {"br": "brotli", "zstd": "zstandard"}.get(encoding)
    if package and find_spec(package) is None:
        missing(f"{package} is not installed")


async def raw(client, call, fault):
    sent = {"json": call.body} if not call.is_form else {"data": call.body, "files": {"file": ("a.wav", b"abc")}}
    headers = {"x-sample-fault": fault, "accept-encoding": "identity", "x-request-id": "same"}
    async with client.stream("POST", call.path, headers=headers, **sent) as response:
        return response.headers, [part async for part in response.aiter_raw()]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("name", CALLS)
async def test_answers_are_compressed_for_a_client_that_wants_none(client, name, encoding):
    installed(encoding)
    for call in [CALLS[name], STREAMS[name].streamed()] if name in STREAMS else [CALLS[name]]:
        clear_headers, clear = await raw(client, call, "")
        headers, packed = await raw(client, call, encoding)
        assert headers["content-encoding"] == encoding
        assert headers["content-type"] == clear_headers["content-type"]
        assert len(unpack(encoding, b"".join(packed))) == len(b"".join(clear))
        if "content-length" in headers:
            assert int(headers["content-length"]) == len(b"".join(packed))


async def sent_by(app, call, fault):
    """The messages that the app sends in answer to a call that is no form, and when."""
    sent = []

    async def send(message):
        sent.append(message | {"at": asyncio.get_running_loop().time()})

    messages = [{"type": "http.request", "body": json.dumps(call.body).encode(), "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    headers = [(b"content-type", b"application/json"), (b"x-sample-fault", fault.encode())]
    scope = {"type": "http", "method": "POST", "path": call.path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd"])
async def test_each_event_can_be_read_as_it_comes(app, encoding):
    installed(encoding)
    sent = await sent_by(app, STREAMS["chat_completions"].streamed(), encoding)
    parts = [message["body"] for message in sent if message.get("body")]
    if encoding == "br":
        import brotli

        decompress = brotli.Decompressor().process
    elif encoding == "zstd":
        import zstandard

        decompress = zstandard.ZstdDecompressor().decompressobj().decompress
    else:
        decompress = zlib.decompressobj().decompress
    read = [decompress(part) for part in parts]
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in read if event)
    assert len([event for event in read if event]) == 11


async def test_an_encoding_whose_package_is_missing_is_refused(client, monkeypatch):
    monkeypatch.setattr("extproc.local.model.encodings.find_spec", lambda _: None)
    for encoding in ("br", "zstd"):
        response = await post(client, CALLS["completions"], fault=encoding)
        assert response.status_code == 400
        assert "not installed" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", BOUNDS)
async def test_a_model_that_ignores_its_bound_is_honest_about_it(app, client, name):
    bounded = Call(name, CALLS[name].path, CALLS[name].body | {BOUNDS[name]: 4}, CALLS[name].stream)
    await answer(client, bounded, fault=Fault.IGNORE_BOUND)
    documents = [
        document for _, document in await stream(client, bounded, done=name in HAVE_DONE, fault=Fault.IGNORE_BOUND)
    ]
    assert app.ledger.report()["completion_tokens"] == 2 * 12
    last = usages(documents)[-1]
    assert last.get("completion_tokens", last.get("output_tokens")) == 12


@pytest.mark.parametrize("name", ["chat_completions", "completions"])
async def test_stop_strings_and_each_choice_outgrow_the_bound_too(client, name):
    call = CALLS[name]
    fields = {"max_tokens": 4, "n": 2, "stop": ["1", " "]}
    whole = await answer(client, Call(name, call.path, call.body | fields), fault=Fault.IGNORE_BOUND)
    assert whole["usage"]["completion_tokens"] == 24
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}


@pytest.mark.parametrize("name", ["chat_completions", "completions", "responses"])
async def test_without_a_bound_there_is_none_to_ignore(client, name):
    plain, ignoring = [usages(await answer(client, CALLS[name], fault=fault)) for fault in (None, "ignore-bound")]
    assert plain == ignoring


@pytest.mark.parametrize("name", STREAMS)
async def test_late_usage_is_sent_long_before_the_end(app, name):
    """A client that has seen the usage and leaves before the end of the body."""
    seen = b""
    async with running(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        call = STREAMS[name].streamed()
        sent = (
            {"json": call.body} if not call.is_form else {"data": call.body, "files": {"file": ("a.wav", b"abc")}}
        )
        async with client.stream("POST", call.path, headers={"x-sample-fault": "late-usage"}, **sent) as response:
            async for part in response.aiter_raw():
                seen += part
                documents = [document for _, document in events_of(seen.decode())]
                if usages(documents) and usages(documents)[-1].get("output_tokens", 1):
                    break
    told = app.ledger.report()["by_endpoint"][name]
    assert (told["requests"], told["aborted"]) == (1, 0)
    last = usages(documents)[-1]
    assert last.get("completion_tokens", last.get("output_tokens")) == told["completion_tokens"]
    assert b"[DONE]" not in seen
    assert b"message_stop" not in seen


@pytest.mark.parametrize("name", ["chat_completions", "completions", "responses", "messages"])
async def test_only_the_end_comes_after_the_pause(app, monkeypatch, name):
    monkeypatch.setattr(sending, "LATE_S", 0.2)
    sent = await sent_by(app, STREAMS[name].streamed(), Fault.LATE_USAGE)
    gaps = [after["at"] - before["at"] for before, after in itertools.pairwise(sent)]
    paused = gaps.index(max(gaps)) + 1
    before, after = (
        b"".join(message.get("body", b"") for message in part) for part in (sent[:paused], sent[paused:])
    )
    assert max(gaps) >= 0.2
    assert usages([document for _, document in events_of(before.decode())])
    ends = {"responses": b"", "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n'}
    assert after == ends.get(name, b"data: [DONE]\n\n")


async def test_a_late_plain_answer_is_all_there_but_its_end(app, monkeypatch):
    monkeypatch.setattr(sending, "LATE_S", 0.05)
    started = asyncio.get_running_loop().time()
    head, body, *end = await sent_by(app, CALLS["embeddings"], Fault.LATE_USAGE)
    assert asyncio.get_running_loop().time() - started >= 0.05
    # With a length the client would know that it has got all.
    assert b"content-length" not in dict(head["headers"])
    assert json.loads(body["body"])["usage"]["total_tokens"]
    assert (body["more_body"], [part["body"] for part in end]) == (True, [b""])


@pytest.mark.parametrize("name", CALLS)
async def test_late_usage_ends_like_any_other_in_the_end(client, name, monkeypatch):
    monkeypatch.setattr(sending, "LATE_S", 0.01)
    calls = [CALLS[name], STREAMS[name].streamed()] if name in STREAMS else [CALLS[name]]
    for call in calls:
        late, prompt = [await post(client, call, fault=fault) for fault in ("late-usage", None)]
        assert len(late.content) == len(prompt.content)
        assert late.status_code == 200


async def test_a_stream_that_tells_no_usage_is_late_before_its_end(client, monkeypatch):
    monkeypatch.setattr(sending, "LATE_S", 0.05)
    call = Call("chat_completions", "/v1/chat/completions", {"model": MODEL, "messages": TURNS, "stream": True})
    started = asyncio.get_running_loop().time()
    response = await post(client, call, fault=Fault.LATE_USAGE)
    assert asyncio.get_running_loop().time() - started >= 0.05
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("name", CALLS)
async def test_any_answer_comes_byte_by_byte(client, name):
    for call in [CALLS[name], STREAMS[name].streamed()] if name in STREAMS else [CALLS[name]]:
        clear = await post(client, call)
        bytewise = await post(client, call, fault=Fault.ONE_BYTE_CHUNKS)
        assert len(bytewise.content) == len(clear.content)


async def test_a_client_that_leaves_before_a_ready_answer_is_counted_as_aborted():
    app = SampleModel(ttft_s=60)
    async with running(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/images/generations", json=CALLS["images"].body, timeout=0.1)
        async with asyncio.timeout(5):
            while not app.ledger.report()["aborted"]:  # noqa: ASYNC110  the server has no event for tests
                await asyncio.sleep(0.005)
    told = app.ledger.report()["by_endpoint"]["images"]
    assert (told["requests"], told["completion_tokens"]) == (1, 0)
    assert told["prompt_tokens"] > 0
