"""Envoy is restarted and upstreams reset under streams: each has one record, and the books agree."""

import asyncio
from collections import Counter

import httpx
import pytest

from tests.system.waiting import until

from .books import derived_from_the_ledger
from .clients import CHAT, Caller, chat
from .marks import CHAOS
from .plants import on
from .sizes import size

pytestmark = [*CHAOS, on("mended")]

STREAMS = size("GATEWAY_STREAMS", full=300, short=40)
PROMPT, OUTPUT = 9, 40
_JSON = {"content-type": "application/json"}


async def _caller(plant):
    caller = await plant.tenant(10**9)
    return Caller(caller.tenant, caller.account, "127.0.0.1")


async def _stream(client, seen, rng):
    await asyncio.sleep(rng.uniform(0, 0.5))
    try:
        async with client.stream("POST", CHAT, content=chat(OUTPUT, stream=True), headers=_JSON) as answer:
            await answer.aread()
        seen[answer.status_code] += 1
    except httpx.HTTPError:
        seen["broken"] += 1


async def _one_record_each(plant, caller, gateway, *, figure, what, seen):
    made = {i: n for i, n in gateway.upstream.generated.items() if n}
    lost = await plant.books.recorded(caller, made)
    await plant.books.towards(caller, 0)
    entries = await plant.books.entries(caller)
    records = Counter(entry["request_id"] for entry in entries)
    balance = await plant.books.balance(caller, gateway.upstream, exact=False)
    above = [e for e in entries if e["charge"] > e["held"]]
    figure(
        "faults",
        f"{what}: {dict(seen)}, {len(records)} records of {len(made)} requests that reached the upstream, {len(lost)} "
        f"lost, {len(balance.double)} double; ledger {balance.ledger:,}, counters {balance.counters[0].used:,}",
    )
    assert not lost
    assert not balance.double
    assert not above
    # Whoever reached the upstream is charged at least for the prompt.
    assert not [entry for entry in entries if entry["request_id"] in made and not entry["charge"]]
    derived_from_the_ledger(balance)


async def test_a_restarted_envoy_leaves_one_record_for_each_stream(plant, gateway, rng, figure):
    gateway.upstream.generated.clear()
    gateway.generates(prompt=PROMPT, output=OUTPUT, stream_s=1.0)
    caller, seen = await _caller(plant), Counter()
    async with gateway.client(caller) as client, asyncio.TaskGroup() as clients:
        for _ in range(STREAMS):
            clients.create_task(_stream(client, seen, rng))
        await until(lambda: len(gateway.upstream.generated) > STREAMS // 4, "streams are open")
        await asyncio.sleep(rng.uniform(0, 0.5))
        await gateway.envoy.restart()
    assert seen["broken"]
    await _one_record_each(plant, caller, gateway, figure=figure, what="Envoy killed under streams", seen=seen)


@pytest.mark.parametrize("after", ["head", "content"])
async def test_an_upstream_that_resets_leaves_one_record_for_each_stream(plant, gateway, rng, figure, after):
    gateway.upstream.generated.clear()
    gateway.generates(prompt=PROMPT, output=OUTPUT)
    answers = gateway.behind.script

    async def resets(received, reply):
        if rng.random() < 0.5:
            await answers(received, reply)
            return
        gateway.upstream.generated[received.header("x-request-id")[0]] += PROMPT
        await reply.head()
        if after == "content":
            await reply.send(b'data: {"choices": [{"index": 0, "delta": {"content": "w"}}]}\n\n')
            await asyncio.sleep(rng.uniform(0, 0.05))
        reply.cut()

    gateway.behind.script = resets
    caller, seen = await _caller(plant), Counter()
    async with gateway.client(caller) as client:
        await asyncio.gather(*(_stream(client, seen, rng) for _ in range(STREAMS)))
    await _one_record_each(
        plant, caller, gateway, figure=figure, what=f"upstream reset after its {after}", seen=seen
    )
