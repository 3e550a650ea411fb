"""What other gateways got wrong, each as a test through the real Envoy."""

import asyncio
import json

import httpx
import pytest

from tests.sizes import sized

from .callers import CHAT, chat
from .marks import SYSTEM
from .test_clients_leaving import send
from .test_denied import error_of
from .test_endpoints import posted
from .test_modes import Gate
from .test_passing_through import EVENTS, SHOWN, streams
from .upstreams import ANSWER
from .waiting import NEVER_S
from .wires import connection

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]
ASKED = {"stream": True, "stream_options": {"include_usage": True}}
TOKENS = {"prompt_tokens": 1234, "completion_tokens": 5678, "total_tokens": 6912}


class Splits:
    """Sends each answer in two pieces, the second one when the client has the first: never both at once."""

    def __init__(self, body, content_type):
        self._body = body
        self._content_type = content_type
        self._got = {}

    async def script(self, received, reply):
        place = int(received.header("x-split")[0])
        self._got[place] = asyncio.Event()
        await reply.head(content_type=self._content_type)
        await reply.send(self._body[:place])
        async with asyncio.timeout(NEVER_S):
            await self._got[place].wait()
        await reply.send(self._body[place:])
        await reply.end()

    async def ask(self, caller, client, place, **fields):
        """The answer, as the client got it."""
        headers = {"x-split": str(place)}
        async with client.stream("POST", CHAT, json=chat(**fields), headers=headers) as answer:
            got = b""
            async for chunk in answer.aiter_raw():
                got += chunk
                if len(got) >= place:
                    self._got[place].set()
        return got


SPLIT = {
    "plain": (json.dumps(ANSWER | {"usage": TOKENS}).encode(), "application/json", {}),
    "stream": (
        b"".join(EVENTS[1:3])
        + b"data: "
        + json.dumps({"id": "c\u00e9", "choices": [], "usage": TOKENS}, ensure_ascii=False).encode()
        + b"\n\ndata: [DONE]\n\n",
        "text/event-stream",
        ASKED,
    ),
}


@pytest.mark.parametrize("kind", SPLIT)
async def test_usage_that_is_split_at_any_byte_is_charged_the_same(scripted_caller, upstream, kind):
    body, content_type, fields = SPLIT[kind]
    await scripted_caller.bind(sa_limit=100_000_000)
    splits = Splits(body, content_type)
    upstream.script = splits.script
    # tests/core tries every byte; here some of them, spread over the body, show that Envoy cuts nothing otherwise.
    chosen = range(1, len(body), sized(11, 1))
    places, count = iter(chosen), len(chosen)

    async def work(client):
        for place in places:
            assert await splits.ask(scripted_caller, client, place, **fields) == body

    async with scripted_caller.http() as client:
        await asyncio.gather(*(work(client) for _ in range(8)))
    entries = await scripted_caller.entries(count)
    assert {(entry["state"], entry["charge"]) for entry in entries} == {("settled", 6912)}
    assert await scripted_caller.settled() == 6912 * count


async def test_output_larger_than_what_is_left_is_passed_on_whole_and_charged_in_full(scripted_caller, upstream):
    pieces = [EVENTS[1]] * 300
    tokens = {"prompt_tokens": 5, "completion_tokens": 300, "total_tokens": 305}
    usage = b"data: " + json.dumps({"choices": [], "usage": tokens}).encode() + b"\n\n"
    upstream.script = streams([EVENTS[0], *pieces, EVENTS[2], usage, EVENTS[4]])
    await scripted_caller.bind(sa_limit=100)
    answer = await scripted_caller.post(max_tokens=20, **ASKED)
    assert answer.content.count(b'"content":"One"') == 300
    assert answer.content.endswith(usage + EVENTS[4])
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", 305)
    assert await scripted_caller.settled() == 305


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_that_crosses_the_limit_is_charged_in_full_and_the_next_is_denied(
    scripted_caller, upstream, stream
):
    tokens = {"prompt_tokens": 5, "completion_tokens": 900, "total_tokens": 905}
    if stream:
        usage = b"data: " + json.dumps({"choices": [], "usage": tokens}).encode() + b"\n\n"
        upstream.script = streams([*EVENTS[:3], usage, EVENTS[4]])
    else:

        async def script(_received, reply):
            await reply.whole(json.dumps(ANSWER | {"usage": tokens}).encode())

        upstream.script = script
    await scripted_caller.bind(sa_limit=100)
    answer = await scripted_caller.post(stream=stream, max_tokens=20)
    assert answer.status_code == 200
    assert await scripted_caller.settled() == 905
    denied = await scripted_caller.post(max_tokens=1)
    assert "Limit 100 tokens per day: 905 used" in error_of(denied, 429)["message"]
    assert denied.headers["x-ratelimit-remaining-tokens"] == "0"
    assert len(upstream.received) == 1
    row = await scripted_caller.row()
    assert (row["used"], row["remaining"]) == (905, 0)


async def test_include_usage_false_is_no_way_to_use_tokens_for_free(scripted_caller, upstream):
    upstream.script = streams(EVENTS)
    answer = await scripted_caller.post(stream=True, stream_options={"include_usage": False})
    assert answer.content == SHOWN
    assert upstream.received[0].json["stream_options"] == {"include_usage": True}
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["charge"]) == ("settled", USED)


@pytest.mark.parametrize("prompt", [0, 5])
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_of_zero_for_an_answer_with_content_is_estimated(scripted_caller, upstream, stream, prompt):
    zero = {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
    if stream:
        usage = b"data: " + json.dumps({"choices": [], "usage": zero}).encode() + b"\n\n"
        upstream.script = streams([*EVENTS[:3], usage, EVENTS[4]])
    else:

        async def script(_received, reply):
            await reply.whole(json.dumps(ANSWER | {"usage": zero}).encode())

        upstream.script = script
    assert (await scripted_caller.post(stream=stream, max_tokens=20)).status_code == 200
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"]) == ("estimated", "absurd")
    assert entry["usage"]["output"] > 0
    assert prompt < entry["charge"] <= entry["held"]
    assert await scripted_caller.settled() == entry["charge"]


async def test_leaving_after_the_last_chunk_but_before_the_end_is_charged_exactly(scripted_caller, upstream):
    async def script(_received, reply):
        await reply.head()
        for event in EVENTS:
            await reply.send(event)
        await reply.gone()

    upstream.script = script
    async with connection(scripted_caller.stack.gateway) as (reader, writer):
        await send(writer, scripted_caller, max_tokens=20, stream=True)
        await reader.readuntil(b"[DONE]\n\n")
    entry = await scripted_caller.entry()
    assert (entry["state"], entry["reason"], entry["charge"]) == ("settled", "cut_off", USED)
    assert await scripted_caller.settled() == USED


@pytest.mark.parametrize("unit", ["tokens", "requests"])
async def test_a_first_seen_account_can_not_race_past_its_limit(scripted_caller, upstream, unit):
    """Sixty-four requests at once of somebody whom no counter knows yet; none is answered before all are decided."""
    await scripted_caller.post(max_tokens=2)
    each = (await scripted_caller.entry())["held"] if unit == "tokens" else 1
    most = 5
    amount = most * each + (each - 1)
    limit = {"scope": "service_account", "window": "day", "amount": amount, "unit": unit}
    newcomer = scripted_caller.colleague(f"new@{scripted_caller.tenant}")
    await scripted_caller.bind(limit, sa_limit=None if unit == "tokens" else 9_000_000)
    upstream.received.clear()
    upstream.script = (gate := Gate()).script
    denied = asyncio.Semaphore(0)

    async def ask(client):
        answer = await client.post(CHAT, json=chat(max_tokens=2))
        if answer.status_code != 200:
            denied.release()
        return answer.status_code

    limits = httpx.Limits(max_connections=100)
    async with newcomer.http(limits=limits) as client:
        asked = [asyncio.create_task(ask(client)) for _ in range(64)]
        async with asyncio.timeout(NEVER_S):
            for _ in range(64 - most):
                await denied.acquire()
            for _ in range(most):
                await gate.arrived.acquire()
        row = await newcomer.row(unit=unit)
        assert (row["used"], row["held"]) == (0, most * each)
        gate.opened.set()
        statuses = await asyncio.gather(*asked)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == len(upstream.received) == most
    await newcomer.settled_all()
    row = await newcomer.row(unit=unit)
    assert row["used"] == (most * USED if unit == "tokens" else most)


async def test_a_limit_raised_in_mid_window_keeps_what_was_used_and_admits_again(scripted_caller):
    await scripted_caller.bind(sa_limit=60)
    while (await scripted_caller.post(max_tokens=8)).status_code == 200:
        await scripted_caller.settled()
    used = await scripted_caller.settled()
    assert used > 20
    await scripted_caller.bind(sa_limit=200)
    row = await scripted_caller.row()
    assert (row["limit"], row["used"]) == (200, used)
    assert (await scripted_caller.post(max_tokens=8)).status_code == 200
    assert await scripted_caller.settled() == used + USED


async def test_a_denied_call_consumes_nothing(scripted_caller, upstream):
    per_day = {"scope": "service_account", "window": "day"}
    requests = per_day | {"amount": 2, "unit": "requests"}
    output = per_day | {"amount": 100, "unit": "output_tokens"}
    ip = {"scope": "client_ip", "window": "day", "amount": 5000}
    await scripted_caller.bind(requests, output, ip, sa_limit=4000)

    async def used():
        rows = await scripted_caller.settled_all()
        return {(row["scope"], row["unit"]): row["used"] for row in rows}

    nothing = dict.fromkeys(await used(), 0)
    # By one limit each, which the others would have let pass.
    for fields in ({"max_tokens": 101}, {"content": "x" * 20_000, "max_tokens": 1}):
        error_of(await scripted_caller.post(**fields), 429)
        assert await used() == nothing
    for _ in range(2):
        assert (await scripted_caller.post(max_tokens=5)).status_code == 200
    before = await used()
    assert before["service_account", "requests"] == 2
    for _ in range(3):
        assert error_of(await scripted_caller.post(max_tokens=5), 429)["type"] == "requests"
    assert await used() == before
    assert len(upstream.received) == 2
    assert [entry["charge"] for entry in await scripted_caller.entries(7)] == [0, 0, USED, USED, 0, 0, 0]
    (day,) = await scripted_caller.records.daily(scripted_caller.account)
    assert (day["usage"], day["requests"], day["denied"]) == (2 * USED, 2, 5)


async def test_a_request_that_fails_upstream_gives_its_tokens_back_and_counts_as_a_request(
    scripted_caller, upstream
):
    async def script(_received, reply):
        await reply.whole(b'{"error": {"message": "mine"}}', status=500)

    upstream.script = script
    limit = {"scope": "service_account", "window": "day", "amount": 9, "unit": "requests"}
    await scripted_caller.bind(limit, sa_limit=4000)
    assert (await scripted_caller.post()).status_code == 500
    await scripted_caller.settled_all()
    assert (await scripted_caller.row(unit="tokens"))["used"] == 0
    assert (await scripted_caller.row(unit="requests"))["used"] == 1


async def test_a_batch_of_prompts_is_charged_for_all_of_them(caller):
    prompts = ["One weir.", "Two weirs.", "Three weirs."]
    answer = await posted(caller, "/v1/completions", prompt=prompts, max_tokens=4, n=2, ignore_eos=True)
    usage = answer.json()["usage"]
    assert usage["completion_tokens"] == 3 * 2 * 4
    entry = await caller.entry()
    assert entry["charge"] == usage["total_tokens"] <= entry["held"]
    assert entry["cost"]["output"] == 3 * 2 * 4
