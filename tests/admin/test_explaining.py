"""The verdict on a request, beside what binds its caller."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from extproc.admin.errors import AdminError
from extproc.admin.explaining import Explainer, Size, document_of
from extproc.core.quota.binding import bind_request
from extproc.core.quota.costs import Bound, Cost, Weights
from extproc.core.quota.ledger import denied_entry
from extproc.core.quota.limits import Subject
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.policies import Defaults, limits_from, policy_from
from extproc.core.quota.reservation import Admitted, Denied, Reservation, decide
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.base import StoreError
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.memory.tenants import MemoryTenants

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHO = Identity("acme", "sa", "10.0.0.1")
DEFAULTS = Defaults(limits_from({"sa_limit": 1000}), UTC)
MODELS = Models(ModelProfile(), [("double", ModelProfile(weights=Weights(output=2000)))])


class World:
    def __init__(self):
        self.tenants = MemoryTenants()
        self.counters = MemoryCounters()
        self.ledger = MemoryLedger()
        self.requests = MemoryRequests(self.ledger)
        self.explainer = Explainer(
            self.tenants, self.counters, self.requests, defaults=DEFAULTS, models=MODELS, now=lambda: NOW
        )

    async def document(self, **fields):
        await self.tenants.update("acme", fields)

    async def hold(self, tokens, number=1):
        document = await self.tenants.document("acme")
        binding = bind_request(policy_from(document, DEFAULTS), WHO, NOW, Subject("m", Endpoint.CHAT_COMPLETIONS))
        reservation = Reservation(
            f"r{number}", f"q{number}", WHO, Endpoint.CHAT_COMPLETIONS, "m", False, Cost(tokens, 0), binding.buckets,
            NOW, "2026-03-01", 1e12,
        )  # fmt: skip
        return reservation, await self.counters.reserve(reservation)

    async def explain(self, *size, ip="10.0.0.1", model="m", endpoint=Endpoint.CHAT_COMPLETIONS):
        return await self.explainer.explain(
            "acme", "sa", ip, model=model, endpoint=endpoint, size=Size(*size) if size else None
        )

    async def verdict(self, *size, **further):
        return (await self.explain(*size, **further)).verdict


async def test_without_a_size_there_is_no_verdict():
    world = World()
    await world.document(sa_limit=45)
    assert await world.verdict() is None


async def test_a_request_that_fits_would_pass_and_one_token_more_would_not():
    world = World()
    await world.document(sa_limit=45)
    await world.hold(20)
    assert (await world.verdict(25)).told == "It would pass."
    verdict = await world.verdict(20, 6)
    obstacle = verdict.obstacle
    assert not verdict.passes
    assert (obstacle.scope, obstacle.window, obstacle.amount, obstacle.used) == ("service_account", "day", 45, 0)
    assert (obstacle.held, obstacle.needed, obstacle.retry_after_s) == (20, 26, 12 * 3600)
    assert obstacle.resets_at == NOW + timedelta(hours=12)


async def test_waiting_does_not_help_a_request_that_needs_more_than_the_whole_limit():
    world = World()
    await world.document(sa_limit=45)
    verdict = await world.verdict(46)
    assert verdict.obstacle.retry_after_s is None
    assert verdict.told.endswith("waiting does not help: it needs more than the whole limit.")


async def test_a_top_up_counts_and_is_shown_apart_from_the_amount():
    world = World()
    until = NOW + timedelta(hours=1)
    top_up = {"scope": "service_account", "window": "day", "unit": "tokens", "amount": 100, "until": until}
    await world.document(sa_limit=45, top_ups=[top_up])
    found = await world.explain(146)
    (row,) = document_of(found)["limits"]
    assert (row["amount"], row["topped_up"], row["remaining"]) == (45, 100, 145)
    assert (found.verdict.obstacle.amount, found.verdict.obstacle.topped_up) == (45, 100)
    assert "45 and 100 by top-ups tokens" in found.verdict.told
    assert (await world.verdict(145)).passes


async def test_a_strict_limit_leaves_less_output_as_it_does_for_a_request():
    world = World()
    await world.document(sa_limit=100, mode="strict", min_output_tokens=10)
    verdict = await world.verdict(40, 80)
    assert (verdict.passes, verdict.output_bound) == (True, 60)
    assert (await world.verdict(40, 60)).output_bound is None
    assert not (await world.verdict(91, 80)).passes
    assert (await world.verdict(90, 80)).output_bound == 10


async def test_weights_of_the_model_count():
    world = World()
    await world.document(sa_limit=45)
    assert (await world.verdict(5, 40)).passes
    assert (await world.verdict(5, 40, model="double")).obstacle.needed == 85


async def test_a_suspended_caller_would_be_refused():
    world = World()
    await world.document(sa_limit=45, suspended="unpaid")
    verdict = await world.verdict(1)
    assert (verdict.passes, verdict.obstacle) == (False, None)
    assert "suspended (unpaid)" in verdict.told


async def test_a_shadow_that_would_deny_is_told_and_denies_nothing():
    world = World()
    limits = [{"scope": "tenant", "window": "day", "amount": 3, "mode": "shadow"}]
    await world.document(sa_limit=45, limits=limits)
    verdict = await world.verdict(10)
    assert verdict.passes
    assert verdict.told == "It would pass. Shadow limits would deny it: tenant:day~shadow."


@pytest.mark.parametrize("missing", ["ip", "model", "endpoint"])
async def test_what_depends_on_something_that_was_not_named_makes_the_verdict_provisional(missing):
    world = World()
    limits = [
        {"scope": "client_ip", "window": "day", "amount": 3},
        {"scope": "tenant", "window": "day", "amount": 4, "model": "m*"},
        {"scope": "tenant", "window": "hour", "amount": 5, "endpoint": "chat_completions"},
    ]
    await world.document(sa_limit=45, limits=limits)
    whole = await world.verdict(6)
    assert (whole.passes, whole.provisional) == (False, False)
    assert (await world.verdict(1, **{missing: None})).provisional


async def test_an_address_that_is_missing_is_no_count_of_0():
    world = World()
    await world.document(sa_limit=45, ip_limit=40)
    by_account, by_ip = document_of(await world.explain(ip=None))["limits"]
    assert (by_account["used"], by_ip["used"], by_ip["remaining"]) == (0, None, None)


async def test_the_last_denials_of_the_caller_are_shown_with_their_limit():
    world = World()
    await world.document(sa_limit=45)
    for number in range(7):
        reservation, decision = await world.hold(50 + number, number)
        assert isinstance(decision, Denied)
        await world.ledger.append([denied_entry(reservation, "service_account", decision)])
    found = await world.explain()
    assert len(found.denials) == 5
    assert found.denials[0].limits[0].needed == 56
    assert (await world.explain(ip="10.0.0.2")).denials == ()
    json.loads(msgspec.json.encode(document_of(found)))


async def test_denials_that_can_not_be_read_take_nothing_else_away():
    world = World()

    async def slow(*_):
        raise StoreError("too slow", transient=True)

    world.requests.newest = slow
    found = await world.explain(5)
    assert (found.denials, found.verdict.passes) == (None, True)


@pytest.mark.parametrize("size", [(-1, 0), (0, -1), (10**9 + 1, 0)])
def test_a_size_that_can_not_be_is_refused(size):
    with pytest.raises(AdminError, match="the tokens must be from 0 to 1000000000"):
        Size(*size)


@pytest.mark.parametrize("mode", ["soft", "reserve", "strict"])
async def test_the_verdict_is_that_of_an_admission(mode):
    world = World()
    await world.document(sa_limit=45, mode=mode)
    await world.hold(20)
    policy = policy_from(await world.tenants.document("acme"), DEFAULTS)
    buckets = bind_request(policy, WHO, NOW, Subject("m", Endpoint.CHAT_COMPLETIONS)).buckets
    counts = await world.counters.read("acme", buckets)
    for output in range(40):
        asked = Reservation(
            "r", "q", WHO, Endpoint.CHAT_COMPLETIONS, "m", False, Cost(5, output), buckets, NOW, "d", 1e12,
            bound=Bound(5, output, min(16, output)) if mode == "strict" else None,
        )  # fmt: skip
        admitted = isinstance(decide(asked, counts), Admitted)
        assert (await world.verdict(5, output)).passes is admitted
