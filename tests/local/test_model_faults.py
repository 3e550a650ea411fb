"""Every endpoint of the sample model, plain and streamed, with every fault: each fault does what its name says.

The tests run in the process of the model and in virtual time. What needs a connection is in
test_model_connections.py.
"""

import asyncio
import gzip
import itertools
import json
import math
import zlib
from dataclasses import dataclass, field
from importlib.util import find_spec

import httpx
import pytest

from extproc.local.model import FAULT_HEADER, Fault, SampleModel
from extproc.local.model.faults import BEYOND_BOUND
from extproc.local.model.sending import HANG_S, LATE_S
from tests.missing import missing

from .model_calls import CALLS, STREAMS, Call, events_of, payload, transcription

VIRTUAL_TIME = True

# The answers that tell their usage when they are asked plainly.
TELLING = set(CALLS) - {"audio_speech", "predict", "infer", "tokenize"}
HAVE_DONE = {"chat_completions", "completions", "audio_transcriptions"}
BOUNDS = {
    "chat_completions": "max_completion_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
    "audio_transcriptions": "max_completion_tokens",
}
# Events before the fault strikes, beside the third: those that open a stream.
OPENING = {"responses": 3, "messages": 1}
LAST_EVENT = {"responses": b"", "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n'}


@dataclass
class Sent:
    """What the app sends in answer to one request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def body(self):
        return b"".join(self.parts)

    @property
    def text(self):
        return self.body.decode()

    async def take(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        elif message.get("body"):
            self.parts.append(message["body"])
            self.at.append(asyncio.get_running_loop().time())
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.ended = True


@dataclass
class Cell:
    """One endpoint in one form, and the app that answers."""

    name: str
    streamed: bool
    app: SampleModel = field(default_factory=SampleModel)

    async def ask(self, fault="", **fields):
        """Send the request, with other fields, and return what is sent."""
        call = Call(self.name, CALLS[self.name].path, CALLS[self.name].body | fields, CALLS[self.name].stream)
        return await send(self.app, call.streamed() if self.streamed else call, fault)

    def documents(self, sent):
        """The documents of an answer: one, or one of each event."""
        assert sent.status == 200, sent.text
        if not self.streamed:
            return [json.loads(sent.body)]
        return [document for _, document in events_of(sent.text, done=self.name in HAVE_DONE)]

    @property
    def told(self):
        return self.app.ledger.report()


async def send(app, call, fault="", request_id="same"):
    headers = {FAULT_HEADER: fault, "accept-encoding": "identity", "x-request-id": request_id}
    request = httpx.Request("POST", f"http://model{call.path}", headers=headers, **payload(call))
    messages = [{"type": "http.request", "body": request.read(), "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    raw = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "path": call.path, "headers": raw, "query_string": b""}
    sent = Sent()
    await app(scope, receive, sent.take)
    return sent


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


def errors(document):
    """The message of an error in whatever shape, and whether it is Anthropic's."""
    error = document["error"]
    return (error if isinstance(error, str) else error["message"]), document.get("type") == "error"


# ---------------------------------------------------------------- what each fault does

SPOILT = {
    Fault.ZERO_USAGE: lambda count: count == 0,
    Fault.NEGATIVE_USAGE: lambda count: count < 0,
    Fault.FLOAT_USAGE: lambda count: isinstance(count, float) and count % 1 == 0.5,
    Fault.NAN_USAGE: math.isnan,
    Fault.HUGE_USAGE: lambda count: count == 2**63,
    Fault.STRING_USAGE: lambda count: isinstance(count, str) and count.isdigit(),
}


async def counts_are_spoilt_wherever_they_are_told(cell, fault):
    told = usages(cell.documents(await cell.ask(fault)))
    assert told
    assert all(counts(usage) and all(map(SPOILT[fault], counts(usage))) for usage in told), told
    # Spoilt answers are counted as they were generated.
    assert (cell.told["requests"], cell.told["aborted"]) == (1, 0)
    assert cell.told["prompt_tokens"] > 0


async def no_usage_is_told(cell, fault):
    before, after = cell.documents(await cell.ask()), cell.documents(await cell.ask(fault))
    assert usages(before)
    assert not usages(after)
    if cell.streamed:
        # A chunk that is there for its usage only is not there at all.
        assert len(after) == len(before) - (cell.name in HAVE_DONE)
    else:
        assert list(after[0]) == [key for key in before[0] if key != "usage"]


async def usage_is_told_twice(cell, fault):
    once, twice = await cell.ask(), await cell.ask(fault)
    told = once.text.count('"usage":{')
    assert told
    assert twice.text.count('"usage":{') == 2 * told


async def an_error_takes_the_place_of_the_answer(cell, fault):
    sent = await cell.ask(fault)
    assert sent.status == (200 if fault is Fault.ERROR_200 else 500)
    assert sent.headers["content-type"] == "application/json"
    assert errors(json.loads(sent.body)) == (f"Injected fault: {fault}", cell.name == "messages")
    assert cell.told["requests"] == 0


async def a_stream_errs_in_its_own_words_after_two_tokens(cell, fault):
    if not cell.streamed:
        await an_error_takes_the_place_of_the_answer(cell, fault)
        return
    events = events_of((await cell.ask(fault)).text, done=cell.name in HAVE_DONE)
    event_name, last = events[-1]
    message = last["message"] if cell.name == "responses" else last["error"]["message"]
    assert message == "Injected fault: error-in-stream"
    assert event_name == ("error" if cell.name in OPENING else None)
    told = cell.told["by_endpoint"][cell.name]
    assert told["completion_tokens"] in {2, 3}
    assert told["aborted"] == 1
    assert not [usage for usage in usages([document for _, document in events]) if usage.get("output_tokens")]


async def an_answer_is_cut_in_its_middle(cell, fault):
    whole, cut = await cell.ask(), await cell.ask(fault)
    assert cut.ended
    if not cell.streamed:
        assert 0 < len(cut.body) <= len(whole.body) / 2 + 9
        assert len(cut.body) == int(cut.headers["content-length"])
        return
    *events, rest = cut.text.split("\n\n")
    assert len(events) == 2 + OPENING.get(cell.name, 0)
    with pytest.raises(ValueError):
        json.loads(rest.partition("data: ")[2])


async def a_reset_is_an_error_in_the_same_process(cell, fault):
    with pytest.raises(ConnectionResetError):
        await cell.ask(fault)


async def an_answer_hangs_longer_than_any_client_waits(cell, fault):
    started = asyncio.get_running_loop().time()
    await an_error_takes_the_place_of_the_answer(cell, fault)
    assert asyncio.get_running_loop().time() - started == HANG_S


async def only_the_end_comes_late(cell, fault):
    prompt, late = await cell.ask(), await cell.ask(fault)
    assert late.ended
    assert len(late.body) == len(prompt.body)
    # With a length the client would know that it has got all.
    assert "content-length" not in late.headers or cell.name == "audio_speech"


async def a_bound_is_ignored_and_that_is_told(cell, fault):
    bound = 4
    last = usages(cell.documents(await cell.ask(fault, **{BOUNDS[cell.name]: bound})))
    assert cell.told["completion_tokens"] == BEYOND_BOUND * bound
    if last and last[-1].get("type") != "duration":
        assert last[-1].get("completion_tokens", last[-1].get("output_tokens")) == BEYOND_BOUND * bound


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


async def an_answer_is_compressed_for_a_client_that_wants_none(cell, fault):
    installed(fault)
    clear, packed = await cell.ask(), await cell.ask(fault)
    assert packed.headers["content-encoding"] == fault
    assert packed.headers["content-type"] == clear.headers["content-type"]
    assert len(unpack(fault, packed.body)) == len(clear.body)
    if "content-length" in packed.headers:
        assert int(packed.headers["content-length"]) == len(packed.body)


async def an_answer_comes_byte_by_byte(cell, fault):
    clear, bytewise = await cell.ask(), await cell.ask(fault)
    assert {len(part) for part in bytewise.parts} == {1}
    assert len(bytewise.body) == len(clear.body)
    if cell.name in STREAMS:
        cell.documents(bytewise)


CHECKS = {
    **dict.fromkeys(SPOILT, counts_are_spoilt_wherever_they_are_told),
    Fault.NO_USAGE: no_usage_is_told,
    Fault.USAGE_TWICE: usage_is_told_twice,
    Fault.LATE_USAGE: only_the_end_comes_late,
    Fault.IGNORE_BOUND: a_bound_is_ignored_and_that_is_told,
    Fault.TRUNCATED_JSON: an_answer_is_cut_in_its_middle,
    Fault.ERROR_200: an_error_takes_the_place_of_the_answer,
    Fault.ERROR_500: an_error_takes_the_place_of_the_answer,
    Fault.ERROR_IN_STREAM: a_stream_errs_in_its_own_words_after_two_tokens,
    Fault.RESET_MID_STREAM: a_reset_is_an_error_in_the_same_process,
    Fault.HANG: an_answer_hangs_longer_than_any_client_waits,
    Fault.GZIP: an_answer_is_compressed_for_a_client_that_wants_none,
    Fault.DEFLATE: an_answer_is_compressed_for_a_client_that_wants_none,
    Fault.BR: an_answer_is_compressed_for_a_client_that_wants_none,
    Fault.ZSTD: an_answer_is_compressed_for_a_client_that_wants_none,
    Fault.ONE_BYTE_CHUNKS: an_answer_comes_byte_by_byte,
}
OF_USAGE = {*SPOILT, Fault.NO_USAGE, Fault.USAGE_TWICE}


def applies(fault, name):
    if fault in OF_USAGE:
        return name in TELLING
    return name in BOUNDS if fault is Fault.IGNORE_BOUND else True


MATRIX = [
    pytest.param(fault, name, form == "streamed", id=f"{fault}-{name}-{form}")
    for name, call in CALLS.items()
    for form in (("plain", "streamed") if call.stream else ("plain",))
    for fault in CHECKS
    if applies(fault, name)
]


def test_the_matrix_has_every_fault_and_every_endpoint():
    assert set(CHECKS) == set(Fault)
    assert {case.values[1] for case in MATRIX} == set(CALLS)


@pytest.mark.parametrize(("fault", "name", "streamed"), MATRIX)
async def test_a_fault_does_what_its_name_says(fault, name, streamed):
    await CHECKS[fault](Cell(name, streamed), fault)


# ---------------------------------------------------------------- what single faults do beside that


@pytest.fixture
def app():
    return SampleModel()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fault", "spoilt"),
    [
        (Fault.NEGATIVE_USAGE, [-9, -8, -17]),
        (Fault.FLOAT_USAGE, [9.5, 8.5, 17.5]),
        (Fault.HUGE_USAGE, [2**63] * 3),
        (Fault.STRING_USAGE, ["9", "8", "17"]),
    ],
)
async def test_spoilt_counts_are_made_of_the_right_ones(fault, spoilt, streamed):
    cell = Cell("chat_completions", streamed)
    usage = usages(cell.documents(await cell.ask(fault)))[-1]
    assert [usage[f"{key}_tokens"] for key in ("prompt", "completion", "total")] == spoilt


async def test_continuous_usage_is_left_out_too():
    cell = Cell("chat_completions", streamed=False)
    options = {"include_usage": True, "continuous_usage_stats": True}
    sent = await cell.ask(Fault.NO_USAGE, stream=True, stream_options=options)
    assert "usage" not in sent.text


@pytest.mark.parametrize("streamed", [False, True])
async def test_usage_that_is_there_twice_is_the_same_twice(streamed):
    cell = Cell("chat_completions", streamed)
    sent = await cell.ask(Fault.USAGE_TWICE)
    assert sent.text.count('"usage":{"prompt_tokens":9,') == 2
    if streamed:
        *_, one, other = cell.documents(sent)
        assert one == other


@pytest.mark.parametrize(
    "call",
    [
        Call("chat_completions", "/v1/chat/completions", CALLS["chat_completions"].body | {"stream": True, "max_tokens": 1}),
        Call("completions", "/v1/completions", CALLS["completions"].body | {"stream": True, "max_tokens": 1}),
        transcription(stream="true", max_completion_tokens="1"),
    ],
    ids=lambda call: call.endpoint,
)  # fmt: skip
async def test_a_short_stream_is_truncated_before_its_end(app, call):
    *_, cut = (await send(app, call, Fault.TRUNCATED_JSON)).text.split("\n\n")
    assert cut.startswith("data: {")
    with pytest.raises(ValueError):
        json.loads(cut.removeprefix("data: "))


def decompressor(encoding):
    if encoding == "br":
        import brotli

        return brotli.Decompressor().process
    if encoding == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress
    return zlib.decompressobj(wbits=31 if encoding == "gzip" else 15).decompress


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_each_compressed_event_can_be_read_as_it_comes(app, encoding):
    installed(encoding)
    sent = await send(app, STREAMS["chat_completions"].streamed(), encoding)
    decompress = decompressor(encoding)
    read = [decompress(part) for part in sent.parts]
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in read if event)
    assert len([event for event in read if event]) == 11


async def test_an_encoding_whose_package_is_missing_is_refused(app, monkeypatch):
    monkeypatch.setattr("extproc.local.model.encodings.find_spec", lambda _: None)
    for encoding in ("br", "zstd"):
        sent = await send(app, CALLS["completions"], encoding)
        assert sent.status == 400
        assert "not installed" in errors(json.loads(sent.body))[0]


@pytest.mark.parametrize("name", ["chat_completions", "completions"])
async def test_stop_strings_and_each_choice_outgrow_the_bound_too(name):
    sent = await Cell(name, streamed=False).ask(Fault.IGNORE_BOUND, max_tokens=4, n=2, stop=["1", " "])
    whole = json.loads(sent.body)
    assert whole["usage"]["completion_tokens"] == 2 * BEYOND_BOUND * 4
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}


@pytest.mark.parametrize("name", ["chat_completions", "completions", "responses"])
async def test_without_a_bound_there_is_none_to_ignore(name):
    cell = Cell(name, streamed=False)
    plain, ignoring = [usages(cell.documents(await cell.ask(fault))) for fault in ("", Fault.IGNORE_BOUND)]
    assert plain == ignoring


@pytest.mark.parametrize("name", ["chat_completions", "completions", "responses", "messages"])
async def test_only_the_end_of_a_stream_comes_after_the_pause(name):
    sent = await Cell(name, streamed=True).ask(Fault.LATE_USAGE)
    gaps = [after - before for before, after in itertools.pairwise(sent.at)]
    paused = gaps.index(max(gaps)) + 1 if LAST_EVENT.get(name, b"[DONE]") else len(sent.parts)
    before, after = b"".join(sent.parts[:paused]), b"".join(sent.parts[paused:])
    assert usages([document for _, document in events_of(before.decode())])
    assert after == LAST_EVENT.get(name, b"data: [DONE]\n\n")
    assert asyncio.get_running_loop().time() >= LATE_S


async def test_a_late_plain_answer_is_all_there_but_its_end(app):
    sent = await send(app, CALLS["embeddings"], Fault.LATE_USAGE)
    (at,) = sent.at
    assert asyncio.get_running_loop().time() - at == LATE_S
    assert json.loads(sent.body)["usage"]["total_tokens"]


async def test_a_stream_that_tells_no_usage_is_late_before_its_end(app):
    call = Call(
        "chat_completions", CALLS["chat_completions"].path, CALLS["chat_completions"].body | {"stream": True}
    )
    sent = await send(app, call, Fault.LATE_USAGE)
    assert asyncio.get_running_loop().time() >= LATE_S
    assert sent.text.endswith("data: [DONE]\n\n")


async def test_a_misspelt_fault_is_refused(app):
    sent = await send(app, CALLS["chat_completions"], "no-usgae")
    assert sent.status == 400
    assert "no-usage" in errors(json.loads(sent.body))[0]
