"""Nobody lowers the holds of their own bursts, and nobody moves the holds of others: measured on one replica's metering.

A burst is a number of requests that are all admitted before the first of them ends.
"""

import json

import pytest

from extproc.core.quota.costs import Costing
from extproc.core.quota.drafting import Ask
from extproc.core.quota.learning import Learned
from extproc.core.quota.reservation import Admitted, Denied
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.body import read_request
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.identity import Identity
from tests.metering.world import World, ask

LIMIT = 10_000
BURST = 150
PROMPT, LONG = 10, 6_000
COSTING = Costing()
ATTACKER = Identity("mallory", "sa", "10.0.0.1")
VICTIM = Identity("acme", "sa", "10.0.0.2")


class Caller:
    """One identity's requests, and the charges of those that ended."""

    def __init__(self, world, identity, **facts):
        self.world, self.identity = world, identity
        self.facts = {"output_bound": None, "prompt_bytes": 3 * PROMPT, "model": "m"} | facts
        self.endpoint = self.facts.pop("endpoint", Endpoint.CHAT_COMPLETIONS)
        self.charged = 0

    async def asks(self, times=1, **facts):
        """Return the decisions on requests that are all in flight at once."""
        request = ask(identity=self.identity, endpoint=self.endpoint, **(self.facts | facts))
        return [await self.world.service.reserve(request) for _ in range(times)]

    async def sends(self, times, *, output, prompt=PROMPT, at_once=False, **facts):
        """Send requests, one by one or at once, that need this many tokens each. Return how many were refused."""
        refused = 0
        for size in [times] if at_once else [1] * times:
            decisions = await self.asks(size, **facts)
            for decision in decisions:
                refused += isinstance(decision, Denied)
                if isinstance(decision, Admitted):
                    self.ends(decision.reservation, Usage(prompt, output, total=prompt + output))
            await self.world.drained()
        return refused

    def ends(self, reservation, usage):
        self.charged += usage.total
        settlement = Settlement(Outcome.SETTLED, usage, usage.total, "usage", 200)
        self.world.service.close(reservation, settlement)


def attacks(limit=LIMIT, **facts):
    return Caller(World(limit=limit, costing=COSTING), ATTACKER, **facts)


def most(left, choices=1):
    """The bound of docs/guarantees.md: n x M, where n holds of f tokens fit into what is left."""
    prompt = 3 * PROMPT // COSTING.learned_bytes_per_token_max + COSTING.prompt_overhead_tokens
    least = prompt + COSTING.typical_output_tokens * choices
    return left // least * (PROMPT + LONG * choices)


# ---------------------------------------------------------------- a burst of one's own

SHAPES = [
    {},
    {"stream": True},
    {"choices": 4},
    {"model": "never asked before"},
    {"endpoint": Endpoint.COMPLETIONS},
    {"endpoint": Endpoint.RESPONSES},
    {"endpoint": Endpoint.MESSAGES, "stream": True},
]


@pytest.mark.parametrize("lessons", [0, 1, 13, 40, 200])
@pytest.mark.parametrize("facts", SHAPES, ids=str)
async def test_small_answers_make_a_burst_no_larger_than_one_without_them(lessons, facts):
    caller = attacks(**facts)
    choices = facts.get("choices", 1)
    assert await caller.sends(lessons, output=choices, prompt=PROMPT) == 0
    left = LIMIT - caller.charged
    caller.charged = 0
    await caller.sends(BURST, output=LONG * choices, at_once=True)
    assert 0 < caller.charged <= most(left, choices)
    assert (await caller.asks())[0].state.remaining == 0


@pytest.mark.parametrize("lesson", [1, LONG])
async def test_the_holds_of_a_burst_never_exceed_what_is_left(lesson):
    caller = attacks()
    await caller.sends(1, output=LONG)
    await caller.sends(40, output=lesson)
    left = LIMIT - caller.charged
    decisions = await caller.asks(BURST)
    held = [d.reservation.held for d in decisions if isinstance(d, Admitted)]
    assert sum(held) <= max(0, left)
    assert all(each >= COSTING.typical_output_tokens for each in held)


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.CHAT_COMPLETIONS, {"messages": MESSAGES, "n_predict": 1}),
        (Endpoint.CHAT_COMPLETIONS, {"messages": MESSAGES, "n_predict": 1, "max_tokens": None}),
        (Endpoint.COMPLETIONS, {"prompt": "hi", "n_predict": 1}),
        (Endpoint.IMAGES, {"prompt": "hi", "max_completion_tokens": 1}),
        (Endpoint.SPEECH, {"input": "hi", "max_completion_tokens": 1}),
    ],
)
async def test_a_bound_that_the_server_ignores_makes_a_burst_no_larger(endpoint, body):
    world = World(limit=LIMIT, costing=COSTING)
    facts = read_request(Target(endpoint, None), json.dumps({"model": "m"} | body).encode(), "application/json")
    decisions = [await world.service.reserve(Ask(ATTACKER, endpoint, facts, "q")) for _ in range(BURST)]
    admitted = sum(isinstance(decision, Admitted) for decision in decisions)
    assert 0 < admitted <= LIMIT // COSTING.typical_output_tokens


async def test_answers_that_other_accounts_of_the_tenant_get_lower_no_hold_either():
    world = World(limit=LIMIT, costing=COSTING)
    for number in range(5):
        await Caller(world, Identity("mallory", f"sa{number}", "10.0.0.1")).sends(40, output=1)
    caller = Caller(world, Identity("mallory", "burst", "10.0.0.1"))
    await caller.sends(BURST, output=LONG, at_once=True)
    assert caller.charged <= most(LIMIT)


@pytest.mark.parametrize("colluding", [1, 2])
async def test_few_tenants_of_many_do_not_lower_the_start_value_below_what_the_others_need(colluding):
    world = World(limit=10**9, costing=COSTING)
    for number in range(5):
        await Caller(world, Identity(f"honest{number}", "sa", "10.0.0.1")).sends(40, output=500 + number)
    for number in range(colluding):
        await Caller(world, Identity(f"mallory{number}", "sa", "10.0.0.1")).sends(200, output=1)
    for identity in (ATTACKER, Identity("mallory0", "sa", "10.0.0.1")):
        (decision,) = await Caller(world, identity).asks()
        assert decision.reservation.cost.output >= 500


@pytest.mark.parametrize("lessons", [0, 200])
async def test_prompts_of_few_tokens_lower_the_hold_of_a_dense_one_to_no_less_than_the_bound_says(lessons):
    caller = attacks(limit=10**9, prompt_bytes=60_000)
    await caller.sends(lessons, output=1, prompt=100)
    (decision,) = await caller.asks()
    assert decision.reservation.cost.prompt >= 60_000 // COSTING.learned_bytes_per_token_max


# ---------------------------------------------------------------- neighbours


async def in_use(world, before):
    """A model that others use, with answers of 40 tokens to small prompts."""
    if before:
        for name in ("acme", "umbrella", "initech"):
            await Caller(world, Identity(name, "sa", "10.0.0.2")).sends(before, output=40)


@pytest.mark.parametrize("before", [0, 3, 40])
@pytest.mark.parametrize("answers", [3, 13, 200])
@pytest.mark.parametrize("output", [600, 5_000, 300_000])
async def test_the_long_answers_of_one_tenant_have_no_small_request_of_another_refused(before, answers, output):
    world = World(limit=10**9, costing=COSTING)
    world.limits.documents["acme"] = {"sa_limit": 4_000}
    await in_use(world, before)
    first = (await Caller(world, VICTIM).asks())[0].reservation
    await Caller(world, ATTACKER).sends(answers, output=output)
    after = (await Caller(world, VICTIM).asks())[0]
    assert isinstance(after, Admitted)
    assert after.reservation.held == first.held
    assert await Caller(world, VICTIM).sends(20, output=20) == 0


@pytest.mark.parametrize("facts", [{"prompt_bytes": 60}, {"prompt_bytes": 60_000}], ids=str)
async def test_the_prompts_of_one_tenant_move_no_hold_of_another(facts):
    world = World(limit=10**9, costing=COSTING)
    await in_use(world, 40)
    first = [(await Caller(world, VICTIM).asks(prompt_bytes=size))[0].reservation.held for size in (60, 6_000)]
    for tokens in (1, facts["prompt_bytes"] * 2):
        await Caller(world, ATTACKER, **facts).sends(200, output=1, prompt=tokens)
        after = [(await Caller(world, VICTIM).asks(prompt_bytes=size))[0].reservation.held for size in (60, 6_000)]
        assert after == first


async def test_a_neighbours_flood_of_models_makes_nothing_that_was_learned_forgotten():
    world = World(limit=10**9, costing=COSTING)
    world.service._estimator._learned = Learned(20)  # as many profiles as a flood of seconds can fill
    await Caller(world, VICTIM).sends(40, output=900)
    flood = Caller(world, ATTACKER)
    for number in range(50):
        await flood.sends(33, output=1, at_once=True, model=f"made up {number}")
    for number in range(200):
        await flood.sends(1, output=1, model=f"made up too {number}")
    (decision,) = await Caller(world, VICTIM).asks()
    assert decision.reservation.cost.output == 900
