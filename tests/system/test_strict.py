"""Strict mode: used <= limit, at every moment, whatever clients ask for and whatever the upstream does."""

import asyncio
import contextlib
import json
import random

import httpx
import pytest

from tests.plaintext import plaintext_client
from tests.sizes import sized

from .callers import CHAT, chat
from .marks import SYSTEM
from .test_denied import error_of
from .test_endpoints import completion, message, response
from .test_passing_through import EVENTS, streams

pytestmark = SYSTEM

CLIENTS = 32
LIMIT = sized(6_000, 12_000)
LEAST = 16  # cost.min_output_tokens
BOUND_FIELDS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}


def relay_to(stack):
    """An upstream that remembers what reached it, and has the stack's sample model answer."""

    async def script(received, reply):
        headers = {name: value for name, value in received.headers if name not in ("host", "transfer-encoding")}
        async with (
            plaintext_client(base_url=stack.upstream) as client,
            client.stream(received.method, received.path, content=received.body, headers=headers) as answer,
        ):
            kept = {"content_encoding": name} if (name := answer.headers.get("content-encoding")) else {}
            await reply.head(answer.status_code, answer.headers["content-type"], **kept)
            async for chunk in answer.aiter_raw():
                await reply.send(chunk)
            await reply.end()

    return script


def bound_of(received):
    """The output bound that reached the upstream: the largest, of all the names that it may have."""
    bounds = [received.json[name] for name in BOUND_FIELDS[received.path] if name in received.json]
    return max(bounds, default=None)


@pytest.fixture
async def strict_caller(scripted_caller, upstream, stack):
    """A caller of the sample model, behind an upstream that remembers the requests."""
    upstream.script = relay_to(stack)
    return scripted_caller


@contextlib.asynccontextmanager
async def watched(caller, limit):
    """Looks at the counters all the time: nothing may ever be used, or promised, beyond the limit."""
    looks = []
    over = asyncio.Event()  # not a cancellation, which a driver on Python 3.11 may swallow

    async def watch():
        while not over.is_set():
            counts = await caller.counts()
            looks.append(counts["service_account"])
            await asyncio.sleep(0.02)  # what it looks at needs the machine too

    watching = asyncio.create_task(watch())
    try:
        yield looks
    finally:
        over.set()
        await watching
    beyond = [count for count in looks if count.used + count.held > limit]
    assert not beyond, (len(beyond), len(looks), beyond[:3])


async def ask_until_denied(caller, client, draw):
    """Random bounds or none, plain and streamed, some of them to an upstream that ignores its bound."""
    while True:
        bound = draw.randint(1, 60) if draw.random() < 0.8 else None
        fields = {"stream": draw.random() < 0.5, "ignore_eos": bound is not None}
        headers = {"x-asked-for": str(bound or 1024)}
        if bound is not None:
            fields[draw.choice(["max_tokens", "max_completion_tokens"])] = bound
        if draw.random() < (0.3 if bound is not None else 0.05):
            headers["x-sample-fault"] = "ignore-bound"
        answer = await client.post(CHAT, json=chat("Tell me of weirs.", **fields), headers=headers)
        if answer.status_code != 200:
            error_of(answer, 429)
            return


async def test_many_clients_with_and_without_bounds_never_get_beyond_the_limit(strict_caller, upstream):
    caller = strict_caller
    await caller.bind(mode="strict", sa_limit=LIMIT)
    async with caller.http() as client:
        async with watched(caller, LIMIT) as looks:
            await asyncio.gather(
                *(ask_until_denied(caller, client, random.Random(seed)) for seed in range(CLIENTS))
            )
        await caller.settled()
        # With nothing in flight any more, what is left is used up.
        await ask_until_denied(caller, client, random.Random(CLIENTS))
    assert any(count.held for count in looks)
    used = await caller.settled()
    answered = len(upstream.received)
    entries = await caller.entries(answered + CLIENTS + 1)
    admitted = [entry for entry in entries if entry["state"] != "denied"]
    assert len(admitted) == answered > CLIENTS / 2
    assert sum(entry["charge"] for entry in admitted) == used <= LIMIT
    assert used > LIMIT - 200
    assert {entry["reason"] for entry in admitted} == {"usage", "overran"}
    held = {entry["request_id"]: entry["held"] for entry in admitted}
    beside = set()
    for received in upstream.received:
        assert 1 <= bound_of(received) <= int(received.header("x-asked-for")[0])
        beside.add((received.json["ignore_eos"], held[received.header("x-request-id")[0]] - bound_of(received)))
    # What was written into each body is what was held for it, beside the same prompt (bodies differ in this field).
    assert len(beside) == 2


async def test_a_clients_own_bound_is_kept_where_it_fits(strict_caller, upstream):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    for fields in ({"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": 7, "n": 3}):
        assert (await strict_caller.post(**fields, ignore_eos=True)).status_code == 200
    assert [bound_of(received) for received in upstream.received] == [7, 7, 7]
    one, other, threefold = await strict_caller.entries(3)
    assert one["held"] == other["held"] == threefold["held"] - 14
    assert [entry["usage"]["output"] for entry in (one, other, threefold)] == [7, 7, 21]
    # Servers disagree which of two counts: one of them goes upstream, with the larger value, which is held.
    await strict_caller.post(max_tokens=5, max_completion_tokens=9)
    sent = upstream.received[-1].json
    assert (sent["max_tokens"], "max_completion_tokens" in sent) == (9, False)
    assert (await strict_caller.entries(4))[-1]["cost"]["output"] == 9


async def test_a_request_without_a_bound_gets_one(strict_caller, upstream):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    assert (await strict_caller.post()).status_code == 200
    assert bound_of(upstream.received[0]) == 1024


@pytest.mark.parametrize("stream", [False, True])
async def test_where_little_is_left_the_bound_is_lowered_and_the_answer_says_so(strict_caller, upstream, stream):
    await strict_caller.bind(mode="strict", sa_limit=200)
    async with strict_caller.openai() as client:
        answer = await client.chat.completions.create(
            model=strict_caller.model,
            messages=chat()["messages"],
            max_tokens=500,
            stream=stream,
            extra_body={"ignore_eos": True},
        )
        last = [chunk async for chunk in answer][-1] if stream else answer
    assert last.choices[0].finish_reason == "length"
    entry = await strict_caller.entry()
    (received,) = upstream.received
    assert LEAST <= bound_of(received) < 500
    assert entry["held"] == 200  # all that there was
    assert entry["usage"]["output"] == bound_of(received)
    assert await strict_caller.settled() == entry["charge"] < 200


async def test_under_the_least_output_a_request_is_denied(strict_caller, upstream):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    assert (await strict_caller.post(max_tokens=LEAST)).status_code == 200
    entry = await strict_caller.entry()
    await strict_caller.bind(mode="strict", sa_limit=entry["charge"] + entry["held"])
    # One more than the least does not fit, so it is the least that is granted ...
    assert (await strict_caller.post(max_tokens=LEAST + 1)).status_code == 200
    assert bound_of(upstream.received[-1]) == LEAST
    used = await strict_caller.settled()
    await strict_caller.bind(mode="strict", sa_limit=used + entry["held"] - 1)
    # ... and where that does not fit either, nothing is.
    error_of(await strict_caller.post(max_tokens=LEAST + 1), 429)
    assert len(upstream.received) == 2
    # Who asks for less than the least gets it.
    assert (await strict_caller.post(max_tokens=LEAST - 1)).status_code == 200
    assert bound_of(upstream.received[-1]) == LEAST - 1


async def test_the_tenant_says_what_the_least_is(strict_caller, upstream):
    await strict_caller.bind(mode="strict", sa_limit=300, min_output_tokens=280)
    error_of(await strict_caller.post(max_tokens=500), 429)
    await strict_caller.bind(mode="strict", sa_limit=300, min_output_tokens=1)
    assert (await strict_caller.post(max_tokens=500)).status_code == 200
    assert len(upstream.received) == 1


async def test_a_stream_that_ignores_its_bound_is_cut_off_and_well_formed(strict_caller):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    async with strict_caller.openai() as client:
        stream = await client.chat.completions.create(
            model=strict_caller.model,
            messages=chat()["messages"],
            max_tokens=20,
            stream=True,
            extra_headers={"x-sample-fault": "ignore-bound"},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    shown = sum(bool(chunk.choices[0].delta.content) for chunk in chunks)
    assert 20 <= shown < 40
    raw = await strict_caller.post(
        stream=True, max_tokens=20, ignore_eos=True, headers={"x-sample-fault": "ignore-bound"}
    )
    assert raw.text.endswith("data: [DONE]\n\n")
    assert "usage" not in raw.text
    for entry in await strict_caller.entries(2):
        assert (entry["state"], entry["reason"]) == ("settled", "overran")
        assert entry["usage"]["output"] == 60  # the truth is on record
        assert 60 < entry["charge"] <= entry["held"]


async def test_a_plain_answer_that_ignores_its_bound_passes_and_is_not_charged_beyond_the_hold(strict_caller):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    answer = await strict_caller.post(max_tokens=200, headers={"x-sample-fault": "ignore-bound"})
    assert answer.json()["usage"]["completion_tokens"] == 600
    entry = await strict_caller.entry()
    assert (entry["state"], entry["reason"]) == ("settled", "overran")
    assert entry["usage"]["output"] == 600
    assert entry["charge"] == entry["held"] < 600
    assert await strict_caller.settled() == entry["charge"]


ASKS = {"completions": completion, "responses": response, "messages": message}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("kind", ASKS)
async def test_every_api_that_generates_has_its_bound_written(strict_caller, upstream, kind, stream):
    # Less than any of them asks for, or gets by default.
    await strict_caller.bind(mode="strict", sa_limit=190, min_output_tokens=1)
    await ASKS[kind](strict_caller, **({"stream": True} if stream else {}))
    entry = await strict_caller.entry()
    (received,) = upstream.received
    assert 1 <= bound_of(received) <= 190
    assert entry["usage"]["output"] <= bound_of(received) * (2 if kind == "completions" else 1)
    assert entry["charge"] <= entry["held"] <= 190
    assert await strict_caller.settled() == entry["charge"]


async def test_a_client_that_leaves_does_not_break_the_bound(strict_caller, upstream):
    """What is used afterwards is at most what was held."""
    upstream.script = streams([*EVENTS[:2], EVENTS[1] * 300])
    await strict_caller.bind(mode="strict", sa_limit=300)
    await strict_caller.post(stream=True, max_tokens=5)
    entry = await strict_caller.entry()
    assert entry["charge"] <= entry["held"] <= 300
    assert entry["state"] == "estimated"
    assert await strict_caller.settled() == entry["charge"]


@pytest.mark.thorough
async def test_two_processors_share_one_strict_limit(pair_caller, upstream, stack):
    upstream.script = relay_to(stack)
    await pair_caller.bind(mode="strict", sa_limit=2000)
    async with pair_caller.http() as client, watched(pair_caller, 2000):
        await asyncio.gather(*(ask_until_denied(pair_caller, client, random.Random(seed)) for seed in range(24)))
    used = await pair_caller.settled()
    entries = await pair_caller.entries(len(upstream.received) + 24)
    assert sum(entry["charge"] for entry in entries) == used <= 2000


APIS_THAT_PASS = {
    "/v1/responses": {"input": "Tell me of weirs.", "max_output_tokens": 150},
    "/v1/messages": {"messages": chat()["messages"], "max_tokens": 150},
}


@pytest.mark.parametrize("path", APIS_THAT_PASS)
async def test_a_stream_of_another_shape_that_ignores_its_bound_passes_whole_and_is_flagged(strict_caller, path):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    body = {"model": strict_caller.model, "stream": True, **APIS_THAT_PASS[path]}
    answer = await strict_caller.post(body, path=path, headers={"x-sample-fault": "ignore-bound"})
    assert answer.text.count("delta") >= 400
    assert answer.text.rstrip().endswith("}")
    entry = await strict_caller.entry()
    assert (entry["state"], entry["reason"], entry["usage"]["output"]) == ("settled", "overran", 450)
    assert entry["charge"] == entry["held"] < 450
    assert await strict_caller.settled() == entry["charge"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_that_compresses_all_the_same_is_held_to_what_was_held(strict_caller, upstream, stream):
    """Such a stream can't be cut off. It is read, and never charged beyond its hold."""
    await strict_caller.bind(mode="strict", sa_limit=200)
    headers = {"x-sample-fault": "gzip"}
    answer = await strict_caller.post(stream=stream, max_tokens=500, ignore_eos=True, headers=headers)
    assert answer.status_code == 200
    entry = await strict_caller.entry()
    assert (entry["state"], entry["usage"]["output"]) == ("settled", bound_of(upstream.received[0]))
    assert entry["charge"] <= entry["held"] <= 200


async def test_all_that_is_generated_for_one_best_answer_is_held(strict_caller, upstream):
    await strict_caller.bind(mode="strict", sa_limit=LIMIT)
    body = {
        "model": strict_caller.model,
        "prompt": ["One", "Two"],
        "max_tokens": 5,
        "best_of": 3,
        "ignore_eos": True,
    }
    answer = await strict_caller.post(body, path="/v1/completions")
    assert answer.json()["usage"]["completion_tokens"] == 2 * 3 * 5
    entry = await strict_caller.entry()
    assert (entry["reason"], entry["cost"]["output"]) == ("usage", 2 * 3 * 5)
    assert entry["charge"] == answer.json()["usage"]["total_tokens"] <= entry["held"]


TEXTS = [
    "a" * 3000,
    "\U0001f9d1\U0001f3fd\u200d\U0001f680" * 60,
    "\u0e01\u0e33\u0e25\u0e31\u0e07" * 80,
    "\x01\x02\x03" * 200,
    "\u2028\\\"'" * 150,
    "".join(chr(0x4E00 + 37 * i % 20_000) for i in range(700)),
    " \n\t" * 400,
    "<s>[INST]</s>" * 100,
    "".join(chr(code) for code in range(0x10000, 0x10400)),
]


async def test_no_prompt_counts_more_tokens_than_are_held_for_it(strict_caller):
    await strict_caller.bind(mode="strict", sa_limit=1_000_000)
    for text in TEXTS:
        for ascii_only in (True, False):
            body = json.dumps(chat(text, max_tokens=1), ensure_ascii=ascii_only).encode()
            assert (await strict_caller.post(body)).status_code == 200
    for entry in await strict_caller.entries(2 * len(TEXTS)):
        assert (entry["state"], entry["reason"]) == ("settled", "usage")
        assert 0 < entry["usage"]["input"] <= entry["held"] - 1


async def test_a_strict_limit_on_output_alone_is_never_exceeded(strict_caller, upstream):
    output = {
        "scope": "service_account",
        "window": "day",
        "amount": 100,
        "unit": "output_tokens",
        "mode": "strict",
    }
    await strict_caller.bind(output, sa_limit=9000)
    answer = await strict_caller.post(max_tokens=500, headers={"x-sample-fault": "ignore-bound"})
    assert bound_of(upstream.received[0]) == 100
    assert answer.json()["usage"]["completion_tokens"] == 300
    entry = await strict_caller.entry()
    assert (entry["reason"], entry["usage"]["output"]) == ("overran", 300)
    rows = await strict_caller.settled_all()
    assert {row["unit"]: row["used"] for row in rows} == {"output_tokens": 100, "tokens": entry["charge"]}
    error_of(await strict_caller.post(max_tokens=1), 429)


@pytest.mark.parametrize("fault", ["ignore-bound", "no-usage", "reset-mid-stream", "error-500", None])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_others_are_charged_what_the_ledger_says_beside_a_strict_limit(strict_caller, fault, stream):
    per = {"scope": "service_account"}
    limits = [
        per | {"window": "hour", "amount": 3000, "mode": "strict"},
        per | {"window": "day", "amount": 4000, "mode": "soft"},
        per | {"window": "week", "amount": 5000},
        {"scope": "tenant", "window": "month", "amount": 1, "mode": "shadow", "shadows": "strict"},
    ]
    await strict_caller.bind(*limits)
    headers = {"x-sample-fault": fault} if fault else {}
    with contextlib.suppress(httpx.RemoteProtocolError):
        await strict_caller.post(max_tokens=300, ignore_eos=True, stream=stream, headers=headers)
    entry = await strict_caller.entry()
    assert (entry["charge"] > 0) is (fault != "error-500")
    rows = await strict_caller.settled_all()
    strict, *others = [row["used"] for row in rows]
    assert others == [entry["charge"]] * 2
    # What an upstream uses beyond its bound is no business of the strict limit: it was promised to hold.
    assert strict == min(entry["charge"], entry["held"])
    assert (strict < entry["charge"]) is (fault == "ignore-bound")
