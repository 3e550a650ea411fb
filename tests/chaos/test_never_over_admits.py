"""R1: however many clients ask however many replicas at once, no more is admitted than the limit allows."""

import pytest

from .books import holds_exactly
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .sizes import CLIENTS, REPLICAS, REQUESTS, ROUNDS, draw

pytestmark = [*CHAOS, on("sound")]

COST = 100
PROBES = 1  # `prompt_cost` asks once
MODES = ["reserve", "strict"]


@pytest.mark.parametrize("mode", MODES)
async def test_requests_of_equal_cost_use_up_a_limit_to_the_token(plant, rng, figure, mode):
    limit = REQUESTS // 4 * COST
    caller = await plant.tenant(limit, mode=mode)
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller), think_s=0.02)
    await crowd.ask(REQUESTS, lambda _: COST)
    await plant.books.nothing_held(caller)
    await crowd.until_denied(COST)
    await plant.books.nothing_held(caller)
    recorded = await plant.books.count(caller, crowd.decided + PROBES)
    balance = await plant.books.balance(caller, crowd.upstream)
    admitted = crowd.outcomes["admitted"]
    figure(
        "R1",
        f"{admitted:,} of {limit // COST:,} admitted (limit {limit:,}, {mode}, {crowd.decided:,} requests of {COST} "
        f"tokens, {REPLICAS} replicas x {CLIENTS} clients, {crowd.outcomes['unavailable']} asked again); {balance}",
    )
    assert admitted == limit // COST
    assert recorded == crowd.decided + PROBES
    holds_exactly(balance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_requests_of_random_costs_never_exceed_a_limit_and_use_it_up(plant, figure, mode, number):
    rng = draw("random costs", mode, number)
    largest = rng.randrange(200, 2_000)
    limit = REQUESTS // 4 * largest // 2 + rng.randrange(largest)
    caller = await plant.tenant(limit, mode=mode)
    prompt = await plant.prompt_cost(caller)
    # The least that a strict request can be lowered to is held for any request.
    least = prompt + 16
    crowd = Crowd(plant.doors, caller, rng, prompt, think_s=0.02)
    await crowd.ask(REQUESTS, lambda rng: rng.randint(least, largest))
    await plant.books.nothing_held(caller)
    await crowd.until_denied(largest)
    await plant.books.nothing_held(caller)
    recorded = await plant.books.count(caller, crowd.decided + PROBES)
    balance = await plant.books.balance(caller, crowd.upstream)
    left = limit - crowd.upstream.total
    figure(
        "R1",
        f"{crowd.upstream.total:,} of {limit:,} tokens used, {left:,} left (random costs up to {largest:,}, {mode}, "
        f"{crowd.decided:,} requests, {REPLICAS} replicas x {CLIENTS} clients); {balance}",
    )
    assert 0 <= left < largest
    assert recorded == crowd.decided + PROBES
    holds_exactly(balance)
