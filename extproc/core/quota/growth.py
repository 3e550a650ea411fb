"""How what is held for an answer follows its length."""

from dataclasses import replace
from typing import Final

from extproc.core.quota.reservation import Reservation
from extproc.core.request.body import RequestFacts

# The least that the hold of a long stream grows by.
_GROWTH_TOKENS: Final = 64


def outgrown(reservation: Reservation, facts: RequestFacts, written: int) -> Reservation | None:
    """What to hold now that so many output tokens are `written`; None where what is held is enough.

    Others must not be admitted to what is gone. It doubles, so that there are few calls for a long answer. What a
    strict limit binds is held whole from the start.
    """
    # An answer that is as long as its client allowed is complete; without a bound it may go on.
    enough = written <= reservation.output_held if facts.output_bound else written < reservation.output_held
    if enough or reservation.strict or not (facts.stream and facts.counts_tokens):
        return None
    more = written - reservation.cost.output + max(_GROWTH_TOKENS, reservation.output_held)
    return replace(reservation, extra_output=more)
