"""In mode reserve, docs/guarantees.md states how far a limit can be exceeded: whatever a tenant teaches and asks for.

overshoot <= n x (M - f) + E,   n <= left / f
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.costs import Costing, cost_of
from extproc.core.quota.learning import Learned, Start
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.quota.prompt_fit import PromptKind, PromptSize
from extproc.core.quota.reservation import Admitted, Count, Reservation, decide
from extproc.core.quota.settlement import Estimates, charges
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts
from tests.changing import replace
from tests.core.samples import FUZZ, reservation

COSTING = Costing()
START = Start.of(COSTING)
LEAST = 1 + COSTING.prompt_overhead_tokens + COSTING.typical_output_tokens


class Asked(NamedTuple):
    """A request: what its body shows, and what it needs in truth. A bound on the output is kept to."""

    prompt_bytes: int
    prompt: int
    output: int
    bound: int | None
    choices: int


@dataclass
class Tenant:
    """One tenant, one bucket, one replica. `overshoot_at_most` follows from the last admission."""

    amount: int
    learned: Learned = field(default_factory=Learned)
    used: int = 0
    open: list[tuple[Reservation, Asked]] = field(default_factory=list)
    overshoot_at_most: int = 0

    @property
    def held(self):
        return sum(each.held for each, _ in self.open)

    def asks(self, asked):
        facts = RequestFacts(
            model="m",
            stream=True,
            choices=asked.choices,
            output_bound=asked.bound,
            prompt_bytes=asked.prompt_bytes,
            media_parts=0,
            wants_usage=True,
        )
        prompt = self.learned.prompt_tokens("t", "m", START, PromptSize(PromptKind.BYTES, asked.prompt_bytes))
        cost = cost_of(facts, prompt, self.learned.typical_output("t", "m", START))
        limit = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, self.amount)
        decision = decide(reservation(cost, (limit,)), [Count(self.used, self.held)])
        if isinstance(decision, Admitted):
            self.open.append((decision.reservation, asked))
            assert self.used + self.held <= self.amount
            self.overshoot_at_most = self.bound()

    def bound(self):
        """The formula, from what is in flight now."""
        unbounded = [asked for _, asked in self.open if asked.bound is None]
        n = min(len(unbounded), (self.amount - self.used) // LEAST)
        largest = max((asked.prompt + asked.output for asked in unbounded), default=LEAST)
        beyond = [asked.prompt - held.cost.prompt for held, asked in self.open if asked.bound is not None]
        return n * max(0, largest - LEAST) + sum(max(0, tokens) for tokens in beyond)

    def grows(self, index, written):
        held, asked = self.open[index]
        written = min(written, asked.output)
        if written > held.output_held:
            grown = replace(held, extra_output=written + held.output_held - held.cost.output)
            self.open[index] = grown, asked

    def ends(self, index):
        held, asked = self.open.pop(index)
        usage = Usage(asked.prompt, asked.output, total=asked.prompt + asked.output)
        (charge,) = charges(held, Estimates.of(held, 4).settle(usage, complete=True))
        self.used += charge
        self.learned.observe(
            "t",
            "m",
            START,
            prompt=PromptSize(PromptKind.BYTES, asked.prompt_bytes),
            prompt_tokens=asked.prompt,
            output_per_choice=-(-asked.output // asked.choices),
            bounded=asked.bound is not None,
        )
        assert self.used - self.amount <= self.overshoot_at_most


@st.composite
def requests(draw):
    size = draw(st.sampled_from([1, 300, 3000]))
    bound = draw(st.sampled_from([None, None, 1, 400]))
    choices = draw(st.sampled_from([1, 1, 3]))
    most = draw(st.sampled_from([1, 300, 6000])) if bound is None else bound
    return Asked(size, draw(st.integers(1, size * 2)), draw(st.integers(0, most * choices)), bound, choices)


SMALL = st.integers(0, 200)
STEPS = st.lists(
    st.tuples(st.just("asks"), requests(), SMALL)
    | st.tuples(st.just("grows"), SMALL, st.integers(0, 6000))
    | st.tuples(st.just("ends"), SMALL, SMALL),
    max_size=80,
)


def play(tenant, lessons, steps):
    for _ in range(lessons):
        tenant.asks(Asked(1, 1, 1, None, 1))
        while tenant.open:
            tenant.ends(0)
    for step, first, second in steps:
        if step == "asks":
            for _ in range(1 + second):
                tenant.asks(first)
        elif tenant.open and step == "grows":
            tenant.grows(first % len(tenant.open), second)
        elif tenant.open:
            tenant.ends(first % len(tenant.open))
    while tenant.open:
        tenant.ends(0)


@FUZZ
@given(st.sampled_from([1000, 10_000]), st.sampled_from([0, 40]), STEPS)
def test_a_limit_is_exceeded_by_no_more_than_the_stated_bound(amount, lessons, steps):
    play(Tenant(amount), lessons, steps)


BURST = [("asks", Asked(30, 10, 6000, None, 1), 149)]


@pytest.mark.parametrize("lessons", [0, 40])
def test_the_bound_is_reached_by_a_burst(lessons):
    """So no smaller one would be true: each request needs the most, and holds little more than the least."""
    tenant = Tenant(10_000)
    play(tenant, lessons, BURST)
    assert 0.97 * tenant.overshoot_at_most <= tenant.used - tenant.amount <= tenant.overshoot_at_most


def test_holds_that_small_answers_lower_would_break_the_bound(monkeypatch):
    def lowered(self, tenant, model, start):
        return self._find(tenant, model).outputs.estimate(start.output, 1, start.output_high)

    monkeypatch.setattr(Learned, "typical_output", lowered)
    play(Tenant(10_000), 0, BURST)
    with pytest.raises(AssertionError):
        play(Tenant(10_000), 40, BURST)
