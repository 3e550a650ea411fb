"""Raise the hold of a request as its answer gets longer."""

from typing import Final

from msgspec.structs import replace

from extproc.core.quota.reservation import Reservation
from extproc.core.request.body import RequestFacts

# The smallest step by which the hold of a long answer grows.
_GROWTH_TOKENS: Final = 64


def enough(reservation: Reservation, facts: RequestFacts) -> int | None:
    """Return for how many output tokens the present hold is enough; None if it is for all that may come.

    If a strict limit binds, everything is held from the start.
    """
    if reservation.strict or not (facts.generates and facts.counts_tokens):
        return None
    # An answer that reached the client's bound is complete; an answer without a bound may go on.
    return reservation.output_held if facts.output_bound else reservation.output_held - 1


def grown(reservation: Reservation, written: int) -> Reservation:
    """Return the reservation with a larger hold, for more output tokens than it is enough for.

    The hold must grow, or others would be admitted to tokens that are already used, and a client that leaves would
    be charged less than what it got. The hold doubles each time, so a long answer needs few calls.
    """
    more = written - reservation.cost.output + max(_GROWTH_TOKENS, reservation.output_held)
    return replace(reservation, extra_output=more)
