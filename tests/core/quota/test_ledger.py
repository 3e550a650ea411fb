"""Entries: one per request, saying what it did to its buckets."""

from datetime import timedelta

from extproc.core.quota.costs import NO_COST, Bound, Cost, Weights
from extproc.core.quota.ledger import Charge, Entry, RefusedBy, closed_entry, denied_entry
from extproc.core.quota.limits import Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import BucketState, Count, Denied
from extproc.core.quota.settlement import Outcome, Settlement, charges, expiry
from extproc.core.quota.usage import NO_USAGE, Usage
from tests.core.samples import CALLER, NOW, reservation

LATER = NOW + timedelta(seconds=3)
STRICT = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000, mode=Mode.STRICT)


def test_an_entry_says_what_was_held_and_what_was_charged():
    settlement = Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage", status=200)
    assert closed_entry(reservation(Cost(20, 30), stream=True), settlement, LATER) == Entry(
        id="r-1",
        request_id="q-1",
        identity=CALLER,
        date="2026-03-04",
        endpoint="chat_completions",
        model="tiny",
        stream=True,
        outcome=Outcome.SETTLED,
        reason="usage",
        held=50,
        charge=26,
        usage=Usage(10, 16, total=26),
        status=200,
        admitted_at=NOW,
        ended_at=LATER,
        cost=Cost(20, 30),
        charges=tuple(Charge(b.key, b.interval.end, 26, b.limit.amount) for b in reservation().buckets),
    )


def test_an_entry_says_what_each_bucket_was_charged_in_its_unit():
    limits = [Limit(Scope.TENANT, Window.DAY, 100, unit=unit) for unit in (Unit.REQUESTS, Unit.OUTPUT_TOKENS)]
    limits.append(Limit(Scope.TENANT, Window.DAY, 100, unit=Unit.INPUT_TOKENS))
    held = reservation(Cost(20, 30), limits=limits)
    settlement = Settlement(Outcome.SETTLED, Usage(0, 16, total=16), 26, "usage", status=200)
    charged = [(charge.key, charge.amount) for charge in closed_entry(held, settlement, LATER).charges]
    assert charged == [(held.buckets[0].key, 1), (held.buckets[1].key, 16)]  # what is charged nothing is left out
    known = closed_entry(held, settlement, LATER, charged=charges(held, settlement))
    assert known == closed_entry(held, settlement, LATER)


def test_a_denied_request_charges_no_bucket_not_even_as_a_request():
    held = reservation(limits=[Limit(Scope.TENANT, Window.DAY, 100, unit=Unit.REQUESTS)])
    assert denied_entry(held, "tenant").charges == ()


def test_an_entry_names_the_shadows_that_would_have_denied_and_the_price():
    settlement = Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage")
    entry = closed_entry(reservation(), settlement, LATER, shadow=("tenant:day~shadow",), price=7)
    assert (entry.shadow, entry.price) == (("tenant:day~shadow",), 7)


def test_what_is_weighted_is_held_weighted_and_expected_unweighted():
    entry = closed_entry(reservation(Cost(20, 30), weights=Weights(output=3000)), expiry(reservation()), LATER)
    assert (entry.held, entry.cost) == (110, Cost(20, 30))


def test_the_cost_is_what_was_expected_however_much_was_held():
    entry = closed_entry(
        reservation(Cost(20, 30), (STRICT,), bound=Bound(25, 8, 1, 2)), expiry(reservation()), LATER
    )
    assert (entry.held, entry.cost) == (25 + 16, Cost(20, 30))
    grown = closed_entry(reservation(Cost(20, 30), extra_output=64), expiry(reservation()), LATER)
    assert (grown.held, grown.cost) == (50 + 64, Cost(20, 30))


def test_a_denied_request_held_nothing_and_costs_nothing():
    entry = denied_entry(reservation(Cost(20, 30)), "over_limit:tenant")
    assert (entry.outcome, entry.reason) == (Outcome.DENIED, "over_limit:tenant")
    assert (entry.held, entry.charge, entry.usage, entry.status) == (0, 0, NO_USAGE, 0)
    assert entry.ended_at == entry.admitted_at == NOW
    assert entry.cost == Cost(20, 30)
    assert NO_COST.total == 0


def test_what_nobody_ended_is_recorded_as_held():
    entry = closed_entry(reservation(Cost(20, 30)), expiry(reservation(Cost(20, 30))), LATER)
    assert (entry.outcome, entry.held, entry.charge, entry.usage) == (
        Outcome.EXPIRED,
        50,
        50,
        Usage(20, 30, total=50),
    )


def test_a_request_that_a_limit_denied_names_the_bucket_with_its_counts():
    asked = reservation(Cost(20, 30))
    bucket = asked.buckets[0]
    denied = Denied(BucketState(bucket, Count(11_990, 5)), 50)
    entry = denied_entry(asked, "service_account", denied)
    assert entry.refused_by == RefusedBy(bucket.key, bucket.interval.end, 12_000, 11_990, 5, 50)
    assert denied_entry(asked, "suspended").refused_by is None
