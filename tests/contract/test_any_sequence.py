"""Any sequence of calls leaves the counters as a plain model has them, and no limit exceeded.

A test's id is its seed: `pytest "tests/contract/test_any_sequence.py::test_...[valkey-17]"` replays it.
"""

import random
from datetime import timedelta

import pytest

from extproc.core.quota.costs import EVEN, Bound, Cost, Weights
from extproc.core.quota.ledger import closed_entry
from extproc.core.quota.limits import Mode, Scope, Unit, Window
from extproc.core.quota.reservation import Denied
from extproc.core.quota.settlement import Estimates, charges, expiry, released
from extproc.core.quota.usage import Usage
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing
from tests.changing import replace
from tests.sizes import sized

from .plain_model import PlainModel
from .reservations import NOW, bucket, reservation, who

# The same scripts run in both servers: what differs between these shows soon.
SEEDS = sized(
    {"memory": 25, "small_redis": 5, "valkey": 25, "redis_server": 15},
    {"memory": 400, "small_redis": 100, "valkey": 400, "redis_server": 100},
)
STEPS = 60
PERCENT = (50, 80, 100)


class Sequence:
    """A random run against the counters and the model side by side."""

    def __init__(self, counters, seed):
        self.counters = counters
        self.dice = random.Random(seed)
        self.model = PlainModel()
        self.now = NOW
        self.made = []  # every reservation, as its holder knows it
        self.entries = []
        self.identities = [who(account=f"sa{n % 2}", ip=f"10.0.0.{n}") for n in range(self.dice.randint(2, 3))]
        self.limits = self._limits()

    # ------------------------------------------------------------ what may come

    def _limits(self):
        kinds = {}
        for _ in range(self.dice.randint(1, 4)):
            scope = self.dice.choice(
                [Scope.SERVICE_ACCOUNT, Scope.CLIENT_IP, Scope.SERVICE_ACCOUNT_IP, Scope.MODEL]
            )
            window, unit = self.dice.choice([Window.DAY, Window.MONTH]), self.dice.choice([Unit.TOKENS, *Unit])
            shadow, mode = self.dice.random() < 0.2, self.dice.choice([*Mode, Mode.STRICT])
            amount = self.dice.randint(0, 8) if unit is Unit.REQUESTS else self.dice.choice([0, 30, 60, 100, 200])
            kinds[scope, window, unit, shadow] = {"amount": amount, "unit": unit, "mode": mode, "shadow": shadow}
        return kinds

    def _has(self, mode, *shadow):
        return any(
            limit["mode"] is mode and limit["shadow"] in (shadow or (True, False))
            for limit in self.limits.values()
        )

    def _new(self):
        dice, identity = self.dice, self.dice.choice(self.identities)
        buckets = tuple(
            bucket(identity, limit=(scope, window), **limit) for (scope, window, *_), limit in self.limits.items()
        )
        output = dice.randint(0, 30)
        # The prompt's bound is one: never below the estimate. Nor is the output's, where the client gave it.
        cost = Cost(dice.randint(0, 12), dice.choice([output, dice.randint(0, 15)]))
        bound = Bound(cost.prompt + dice.randint(0, 8), output, dice.randint(0, output), dice.randint(1, 2))
        weights = dice.choice([EVEN, EVEN, Weights(*(dice.randint(0, 2500) for _ in range(4)))])
        made = reservation(
            cost,
            identity=identity,
            at=self.now,
            ttl_s=dice.randint(1, 30),
            buckets=buckets,
            weights=weights,
            bound=bound if self._has(Mode.STRICT) or dice.random() < 0.5 else None,
            requests=dice.choice([1, 1, 1, 0, 3]),
        )
        self.made.append(made)
        return made

    def _some(self):
        return self.dice.choice(self.made[-10:])

    def _settlement(self, held):
        dice, estimates = self.dice, Estimates.of(held, 4)
        tokens_in, tokens_out = dice.randint(0, 30), dice.choice([0, dice.randint(0, 20), dice.randint(0, 300)])
        cached, reasoning = dice.randint(0, tokens_in), dice.randint(0, tokens_out)
        usage = Usage(tokens_in, tokens_out, cached, reasoning, tokens_in + tokens_out + dice.choice([0, 0, 5]))
        return dice.choice(
            [
                lambda: estimates.settle(usage, complete=True),
                lambda: estimates.settle(usage, complete=True),
                lambda: estimates.settle(usage, complete=False),
                lambda: estimates.estimate(dice.randint(0, 200), dice.randint(0, 9), "no_usage"),
                lambda: released("upstream_error", forwarded=dice.random() < 0.5),
            ]
        )()

    # ------------------------------------------------------------ steps

    async def step(self):
        if not self.made:
            await self.reserve(self._new())
            return
        steps = {
            lambda: self.reserve(self._new()): 38,
            lambda: self.reserve(self._some()): 8,
            lambda: self.renew(self._some()): 15,
            lambda: self.close(self._some()): 24,
            lambda: self.close(self._new()): 3,  # it overtakes its reserve, which is repeated later
            self.expire: 9,
            self.raise_a_limit: 3,
        }
        self.now += timedelta(seconds=self.dice.choice([0, 0, 1, 3]))
        (step,) = self.dice.choices(list(steps), list(steps.values()))
        await step()
        await self.compare()

    async def raise_a_limit(self):
        self.dice.choice(list(self.limits.values()))["amount"] += self.dice.randint(1, 20)

    async def reserve(self, wanted):
        repeated = wanted.id in self.model.open
        said, *facts = self.model.reserve(wanted)
        try:
            decision = await self.counters.reserve(wanted)
        except StoreError:
            assert said == "ended"
            return
        if isinstance(decision, Denied):
            assert (said, decision.state.bucket, decision.need) == ("denied", *facts)
            assert (decision.state.count.used, decision.state.count.held) == self.model.count(facts[0])
            return
        assert said == "admitted"
        output, with_it, shadowed = facts
        granted = decision.reservation
        assert granted == (
            wanted if wanted.bound is None else replace(wanted, bound=replace(wanted.bound, output=output))
        )
        assert [(s.count.used, s.count.held) for s in decision.states] == with_it
        if repeated:
            return
        assert [state.bucket for state in decision.shadowed] == shadowed
        self._know(granted)
        for state in decision.states:
            if not state.bucket.limit.shadow and state.bucket.limit.mode is not Mode.SOFT:
                assert state.count.used + state.count.held <= state.bucket.limit.amount

    async def renew(self, held):
        longer = max(held.deadline, self.now.timestamp()) + self.dice.choice([-20, 0, 5, 20])
        cost = Cost(held.cost.prompt, max(0, held.cost.output + self.dice.randint(-5, 15)))
        renewed = replace(held, deadline=longer, cost=cost)
        self.model.renew(renewed)
        await self.counters.renew([renewed])
        known = self.model.open.get(held.id)
        if known is not None:
            self._know(known.reservation)

    async def close(self, held):
        settlement = self._settlement(held)
        await self._close(held, settlement)
        if self.dice.random() < 0.3:  # a lost answer
            await self._close(held, settlement)

    async def expire(self):
        overdue = await self.counters.overdue(self.now, 1000)
        expected = self.model.overdue(self.now.timestamp())
        assert sorted(overdue, key=lambda r: r.id) == sorted(expected, key=lambda r: r.id)
        for held in self.dice.sample(overdue, self.dice.randint(0, len(overdue))):
            await self._close(held, expiry(held))

    async def _close(self, held, settlement):
        closing = Closing(held, settlement.outcome, charges(held, settlement))
        known = self.model.open.get(held.id)
        outcome, crossed = self.model.close(closing, PERCENT)
        (closed,) = await self.counters.close([closing], PERCENT)
        assert closed.outcome is outcome
        assert [(each.bucket.key, each.used, each.threshold) for each in closed.crossed] == crossed
        if known is not None:
            self.entries.append((closed_entry(held, settlement, self.now), held, closing.charges))

    def _know(self, held):
        self.made = [held if each.id == held.id else each for each in self.made]

    # ------------------------------------------------------------ what must hold

    async def compare(self):
        """Every bucket counts as in the model; none holds less than nothing; no strict one is over its limit."""
        buckets = {b.key: b for made in self.made for b in made.buckets}  # with the amount that was given last
        counts = await self.counters.read("acme", list(buckets.values()))
        for each, count in zip(buckets.values(), counts, strict=True):
            assert (count.used, count.held) == self.model.count(each), each.key
            assert count.held >= 0, each.key
            if each.limit.mode is Mode.STRICT and not each.limit.shadow:
                assert count.used + count.held <= each.limit.amount, each.key
        return zip(buckets.values(), counts, strict=True)

    def _counts_the_ledger(self, limit):
        """Whether all that the limit is charged is the ledger's charge.

        All on tokens, but strict shadows, and strict ones beside others: these are never charged beyond their hold.
        """
        if limit.unit is not Unit.TOKENS:
            return False
        return limit.mode is not Mode.STRICT or not (limit.shadow or self._has_others())

    def _has_others(self):
        return any(
            limit["unit"] is Unit.TOKENS and limit["mode"] is not Mode.STRICT and not limit["shadow"]
            for limit in self.limits.values()
        )

    async def settle_all(self):
        for held in self.dice.sample(self.made, len(self.made)):
            if held.id in self.model.open:
                await self._close(held, self._settlement(held))
        for each, count in await self.compare():
            assert count.held == 0, each.key
            mine = [
                (e, n)
                for e, r, ns in self.entries
                for b, n in zip(r.buckets, ns, strict=True)
                if b.key == each.key
            ]
            assert count.used == sum(n for _, n in mine), each.key
            if self._counts_the_ledger(each.limit):
                assert count.used == sum(entry.charge for entry, _ in mine), each.key
        assert await self.counters.overdue(self.now + timedelta(days=1), 1000) == []


@pytest.mark.parametrize(
    ("counters_part", "seed"),
    [(part, seed) for part, seeds in SEEDS.items() for seed in range(seeds)],
    indirect=["counters_part"],
)
async def test_any_sequence_ends_as_in_a_plain_model_and_exceeds_no_limit(counters, seed):
    sequence = Sequence(counters, seed)
    for _ in range(STEPS):
        await sequence.step()
    await sequence.settle_all()
