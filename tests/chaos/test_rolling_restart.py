"""R7: replicas are restarted one by one behind Envoy, under long streams: no client notices, nothing is lost."""

import asyncio
import contextlib
import json
from collections import Counter

import httpx

from tests.system.waiting import until

from .books import holds_exactly
from .clients import CHAT, Caller, chat
from .marks import CHAOS
from .plants import on
from .sizes import REPLICAS, STREAM_S, size

pytestmark = [*CHAOS, on("mended")]

LONG = size("LONG_STREAMS", full=60, short=6)  # open at any moment
SHORT = size("SHORT_CLIENTS", full=4, short=2)  # that ask again and again
PROMPT, OUTPUT = 9, 40


async def test_a_rolling_restart_is_seen_by_no_client_and_loses_no_record(plant, gateway, rng, figure):
    caller = await plant.tenant(10**9)
    caller = Caller(caller.tenant, caller.account, "127.0.0.1")
    gateway.upstream.generated.clear()
    gateway.generates(prompt=PROMPT, output=OUTPUT, stream_s=STREAM_S)
    seen = Counter()
    over = asyncio.Event()
    async with gateway.client(caller) as client, asyncio.TaskGroup() as clients:
        for _ in range(LONG):
            clients.create_task(_streams(client, seen, over, rng))
        for _ in range(SHORT):
            clients.create_task(_short(client, seen, over, rng))
        await until(lambda: len(gateway.upstream.generated) > LONG, "streams are open")
        statuses = []
        for replica in plant.replicas:
            statuses.append(await replica.stop())
            await replica.start()
        over.set()
    await plant.books.nothing_held(caller)
    balance = await plant.books.balance(caller, gateway.upstream)
    errors = sum(seen.values()) - seen["stream"] - seen["short"]
    figure(
        "R7",
        f"{REPLICAS} replicas restarted one by one behind Envoy, {seen['stream']} streams of {STREAM_S:g} s and "
        f"{seen['short']} short requests: {errors} client errors {dict(seen) if errors else ''}; {balance}",
    )
    assert not errors, seen
    assert statuses == [0] * REPLICAS
    assert seen["stream"] >= LONG
    holds_exactly(balance)


async def _streams(client, seen, over, rng):
    while not over.is_set():
        await asyncio.sleep(rng.uniform(0, STREAM_S / 4))
        try:
            async with client.stream("POST", CHAT, content=chat(OUTPUT, stream=True), headers=_JSON) as answer:
                got = await answer.aread()
            whole = answer.status_code == 200 and got.rstrip().endswith(b"[DONE]")
            seen["stream" if whole else f"stream {answer.status_code}"] += 1
        except httpx.HTTPError as error:
            seen[repr(error)] += 1


async def _short(client, seen, over, rng):
    while not over.is_set():
        await asyncio.sleep(rng.uniform(0, 0.3))
        with contextlib.suppress(json.JSONDecodeError):
            try:
                answer = await client.post(CHAT, content=chat(OUTPUT), headers=_JSON)
                whole = answer.status_code == 200 and "usage" in answer.json()
                seen["short" if whole else f"short {answer.status_code}"] += 1
            except httpx.HTTPError as error:
                seen[repr(error)] += 1


_JSON = {"content-type": "application/json"}
