"""Entries: one per request, saying what it did to its buckets."""

from datetime import timedelta

from extproc.core.ledger import Entry, closed_entry, denied_entry, expiry
from extproc.core.quota import Cost
from extproc.core.settlement import Outcome, Settlement
from extproc.core.usage import NO_USAGE, Usage

from .samples import CALLER, NOW, reservation

LATER = NOW + timedelta(seconds=3)


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
    )


def test_a_denied_request_held_nothing_and_costs_nothing():
    entry = denied_entry(reservation(Cost(20, 30)), "over_limit:tenant")
    assert (entry.outcome, entry.reason) == (Outcome.DENIED, "over_limit:tenant")
    assert (entry.held, entry.charge, entry.usage, entry.status) == (0, 0, NO_USAGE, 0)
    assert entry.ended_at == entry.admitted_at == NOW


def test_what_nobody_ended_is_charged_as_held():
    assert expiry(reservation(Cost(20, 30))) == Settlement(Outcome.EXPIRED, Usage(20, 30, total=50), 50, "expired")
