"""R2: Redis dies and comes back, with all that it knew, with less, or with nothing: no limit is exceeded for it."""

import asyncio
import time

import pytest

from tests.system.waiting import until

from .books import Count, holds_exactly
from .clients import BrokenError, chat
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .processes import REDIS, VALKEY
from .sizes import CLIENTS, FULL, REPLICAS, REQUESTS, RESTARTS, SLACK, draw, size
from .upstream import make_answer

pytestmark = [*CHAOS, on("fragile")]

COST = 100
SERVING_WITHIN_S = 2.0
OPEN = size("OPEN_HOLDS", full=60, short=9)
OTHERS = ["aof", "aof everysec", "flushall", "script flush"]
LOSSES = ["nothing kept", "stale snapshot", *OTHERS]
BOTH = [(loss, flavour) for loss in LOSSES for flavour in (VALKEY, REDIS)]
# In the short form two of them, and another one with each seed.
ONCE = [(loss, VALKEY) for loss in ("nothing kept", "stale snapshot", *draw("losses").sample(OTHERS, 1))]
KEEPS = {"aof": "aof", "aof everysec": "aof everysec", "stale snapshot": "snapshot"}


@pytest.mark.parametrize(("loss", "flavour"), BOTH if FULL else ONCE, ids=lambda name: name.replace(" ", "-"))
async def test_a_limit_holds_through_the_loss_of_redis(plant, rng, figure, loss, flavour):
    await plant.redis.anew(flavour=flavour, keeps=KEEPS.get(loss, "nothing"))
    limit = REQUESTS // 3 * COST
    caller = await plant.tenant(limit)
    await plant.serving(caller)
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller), think_s=0.02)
    held = await asyncio.gather(*(_hold(crowd, n) for n in range(OPEN)))
    async with asyncio.TaskGroup() as run:
        losing = run.create_task(_lose(plant, crowd, rng, loss))
        run.create_task(crowd.ask(REQUESTS // 2, lambda _: COST, clients=max(2, CLIENTS // 4)))
    back = losing.result()
    await plant.books.recorded(caller, crowd.upstream.generated)
    # What the replicas rebuilt, all at once: what is in the ledger is used, what is open is held.
    rebuilt = set(await plant.books.towards(caller, OPEN * COST))
    written = sum(entry["charge"] for entry in await plant.books.entries(caller))
    for exchange in held:
        crowd.upstream.generated[exchange.id] += COST
        await exchange.answer(make_answer(rng, crowd.prompt, COST - crowd.prompt, "json"))
    await plant.books.towards(caller, 0)
    await crowd.until_denied(COST)
    await plant.books.towards(caller, 0)
    balance = await plant.books.balance(caller, crowd.upstream)
    figure(
        "R2",
        f"{loss} ({flavour}), {len(back)} times in mid-run: {crowd.upstream.total:,} of {limit:,} tokens admitted; "
        f"serving again on {REPLICAS} replicas {max(back):.2f} s after Redis at the latest; rebuilt {_told(rebuilt)}, "
        f"ledger {written:,} + {OPEN} open holds of {COST}; {balance}",
    )
    assert crowd.upstream.total <= limit
    assert rebuilt == {Count(written, OPEN * COST)}
    assert max(back) <= SERVING_WITHIN_S * SLACK
    holds_exactly(balance)
    assert limit - crowd.upstream.total < COST


def _told(counts):
    return " / ".join(f"{count.used:,} used + {count.held:,} held" if count else "nothing" for count in counts)


async def _hold(crowd, number):
    """An exchange that stays open through all of it."""
    door = crowd.doors[number % len(crowd.doors)]
    exchange = await door.admitted(crowd.caller, chat(COST - crowd.prompt))
    crowd.outcomes["admitted"] += 1
    return exchange


async def _lose(plant, crowd, rng, loss):
    """At random moments of the run. Returns after how many seconds all replicas served again."""
    back = []
    moments = sorted(rng.sample(range(REQUESTS // 20, REQUESTS // 2 - REQUESTS // 20), RESTARTS))
    for moment in moments:
        await _reached(crowd, moment - REQUESTS // 40)
        if loss == "stale snapshot":
            await plant.redis.ask("SAVE")
        await _reached(crowd, moment)
        match loss:
            case "flushall" | "script flush":
                await plant.redis.ask(*loss.upper().split())
            case _:
                await plant.redis.kill()
                await asyncio.sleep(rng.uniform(0, 0.5))
                await plant.redis.start()
        started = time.monotonic()
        await asyncio.gather(*(_decides(door, crowd) for door in plant.doors))
        back.append(time.monotonic() - started)
    return back


async def _reached(crowd, moment):
    await until(lambda: crowd.decided >= moment, "the run goes on", poll_s=0.01)


async def _decides(door, crowd):
    """Returns when a replica has admitted or denied: what it tells of counters may come sooner."""

    async def told():
        try:
            return await crowd.one(door, COST)
        except BrokenError:
            return False

    await until(told, "a replica decides again", poll_s=0.02)
