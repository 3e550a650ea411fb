"""R7: replicas are restarted one by one behind Envoy, under long streams: no client notices, nothing is lost."""

import asyncio
from collections import Counter

from tests.system.waiting import until

from .asking import client_errors, shorts, streams
from .books import holds_exactly
from .clients import Caller, chat
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
            clients.create_task(streams(client, seen, over, rng, chat(OUTPUT, stream=True)))
        for _ in range(SHORT):
            clients.create_task(shorts(client, seen, over, rng, chat(OUTPUT)))
        await until(lambda: len(gateway.upstream.generated) > LONG, "streams are open")
        statuses = []
        for replica in plant.replicas:
            statuses.append(await replica.stop())
            await replica.start()
        over.set()
    await plant.books.nothing_held(caller)
    balance = await plant.books.balance(caller, gateway.upstream)
    errors = client_errors(seen)
    figure(
        "R7",
        f"{REPLICAS} replicas restarted one by one behind Envoy, {seen['stream']} streams of {STREAM_S:g} s and "
        f"{seen['short']} short requests: {errors} client errors {dict(seen) if errors else ''}; {balance}",
    )
    assert not errors, seen
    assert statuses == [0] * REPLICAS
    assert seen["stream"] >= LONG
    holds_exactly(balance)
