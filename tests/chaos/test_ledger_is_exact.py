"""R3: what the ledger says was used is what the upstream generated, though MongoDB dies and answers get lost."""

import asyncio
import re

import pytest

from tests.system.waiting import until

from .books import holds_exactly
from .clients import chat
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .proxy import Loss
from .sizes import EXCHANGES
from .upstream import KINDS

pytestmark = [*CHAOS, on("wired")]

# What a request to Redis has in it when it ends reservations, and one to MongoDB when it writes to the ledger.
ENDING = re.compile(rb"settled|estimated|released|expired")
WRITING = re.compile(rb"insert.*token_ledger|token_ledger.*insert", re.DOTALL)
CLIENTS = 16
SAME = "the same for all"


async def test_the_ledger_is_what_the_upstream_counted(plant, rng, figure):
    caller = await plant.tenant(10**9)
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller), kinds=KINDS)
    with (
        plant.redis_wire.suffering(loss=Loss(ENDING)) as redis,
        plant.mongo_wire.suffering(loss=Loss(WRITING)) as mongo,
    ):
        async with asyncio.TaskGroup() as run:
            killings = run.create_task(_kill_mongo(plant, crowd, rng))
            run.create_task(crowd.ask(EXCHANGES, lambda rng: crowd.prompt + rng.randint(1, 400), clients=CLIENTS))
        killed = killings.result()
        balance = await plant.books.balance(caller, crowd.upstream)
    await plant.books.nothing_held(caller)
    balance = await plant.books.balance(caller, crowd.upstream)
    kinds = len(redis.loss.seen)
    figure(
        "R3",
        f"{crowd.outcomes['admitted']:,} exchanges (JSON, SSE, gzip, random pieces), MongoDB killed {killed} "
        f"times, {kinds:,} ends and {len(mongo.loss.seen):,} ledger entries sent twice; {balance}",
    )
    assert crowd.outcomes["admitted"] == EXCHANGES
    # The wire's patterns are still those of the product: every end was repeated.
    assert len(redis.loss.seen) >= EXCHANGES
    assert len(mongo.loss.seen) >= EXCHANGES
    holds_exactly(balance)


async def _kill_mongo(plant, crowd, rng):
    """Twice, at random moments of the run; it comes back in the middle of it."""
    moments = sorted(rng.sample(range(EXCHANGES // 10, EXCHANGES * 9 // 10), 2))
    for moment in moments:
        await until(lambda moment=moment: crowd.decided >= moment, "the run goes on", within_s=600, poll_s=0.05)
        await plant.mongo.kill()
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        await plant.mongo.start()
    return len(moments)


@pytest.mark.parametrize("kind", KINDS)
async def test_equal_request_ids_of_clients_are_requests_of_their_own(plant, rng, kind, figure):
    """A client writes `x-request-id` as it likes: the ledger's key is ours."""
    caller = await plant.tenant(10**9)
    prompt = await plant.prompt_cost(caller)
    crowd = Crowd(plant.doors, caller, rng, prompt)
    count = 30

    async def one(door):
        exchange = await door.admitted(caller, chat(20), SAME)
        await exchange.answer(crowd.upstream.answer(exchange, rng, prompt=prompt, output=20, kind=kind))

    await asyncio.gather(*(one(plant.doors[n % len(plant.doors)]) for n in range(count)))
    await plant.books.nothing_held(caller)

    async def all_there():
        entries = await plant.books.entries(caller)
        return sum(entry["request_id"] == SAME for entry in entries) == count

    await until(all_there, "each has its entry", poll_s=0.1)
    balance = await plant.books.balance(caller, crowd.upstream, exact=False)
    figure(
        "R3",
        f"{count} requests of one x-request-id ({kind}): ledger {balance.ledger:,} = upstream {balance.upstream:,}",
    )
    assert balance.ledger == balance.upstream == balance.daily
