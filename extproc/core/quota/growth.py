"""Raise the hold of a request as its answer gets longer."""

from typing import Final

from msgspec.structs import replace

from extproc.core.quota.reservation import Reservation
from extproc.core.request.body import RequestFacts

# The smallest step by which the hold of a long answer grows.
_GROWTH_TOKENS: Final = 64
# More tokens than any answer has.
_ALL: Final = 1 << 62


def enough(reservation: Reservation, facts: RequestFacts) -> int:
    """Return for how many output tokens the present hold is enough.

    If a strict limit binds, everything is held from the start.
    """
    if reservation.strict or not (facts.generates and facts.counts_tokens):
        return _ALL
    # An answer that reached the client's bound is complete; an answer without a bound may go on.
    return reservation.output_held if facts.output_bound else reservation.output_held - 1


def beyond(reservation: Reservation, read: int) -> int:
    """Return how many output tokens must be held for the part of the input that is beyond the prompt's estimate.

    `read` is the input that the server reported so far, in tokens; 0 if it has reported none.
    """
    more, weights = read - reservation.cost.prompt, reservation.weights
    if more <= 0 or not weights.any_output:
        return 0  # output that weighs nothing holds nothing
    return -(-more * weights.any_input // weights.any_output)


def grown(reservation: Reservation, needed: int, beyond_estimate: int = 0) -> Reservation:
    """Return the reservation with a larger hold, for more output tokens than it is enough for.

    `beyond_estimate` of the `needed` tokens are for the prompt. The hold must grow, or others would be admitted to
    tokens that are already used, and a client that leaves would be charged less than what it got. The hold doubles
    each time, so a long answer needs few calls.
    """
    more = needed - reservation.cost.output + max(_GROWTH_TOKENS, reservation.output_held - beyond_estimate)
    return replace(reservation, extra_output=more)
