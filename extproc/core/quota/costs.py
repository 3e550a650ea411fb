"""Compute the cost of a request: estimates and bounds before its answer, the weighted sum of its usage after.

All numbers are integers. Weights are in thousandths, so that a cached token may count a tenth of another token.
"""

from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, assert_never

from msgspec import Struct

from extproc.core.quota.limits import Unit
from extproc.core.quota.rendering import rendering_bytes
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts

THOUSAND: Final = 1000
# Weights are at most 100, so all sums stay below 2**53; above it, numbers in Redis' Lua lose their last digit.
MAX_WEIGHT: Final = 100 * THOUSAND
# The largest output bound, per choice, that we write into a request.
MAX_OUTPUT_BOUND: Final = 1_000_000
_TOKENS: Final = Unit.TOKENS  # to find a member of an enumeration takes 0.1 us
# More than the largest limit: a request with such a need is never admitted.
_MOST: Final = 4 * 10**15


class Weights(Struct, frozen=True):
    """Hold the weight of a token by its kind, in thousandths (0 <= weight <= MAX_WEIGHT)."""

    input: int = THOUSAND
    cached_input: int = THOUSAND
    output: int = THOUSAND
    reasoning: int = THOUSAND

    @property
    def any_input(self) -> int:
        """Return the largest weight that a token of the prompt can have."""
        return max(self.input, self.cached_input)

    @property
    def any_output(self) -> int:
        """Return the largest weight that a generated token can have."""
        return max(self.output, self.reasoning)

    def at_most(self, prompt: int, output: int) -> int:
        """Return the largest weighted count of these tokens, rounded up."""
        if self is EVEN:
            return prompt + output
        return -(-(self.any_input * prompt + self.any_output * output) // THOUSAND)

    def of(self, usage: Usage) -> int:
        """Return the weighted count of the usage, rounded up; its total if all weights are 1.

        Tokens that are only in the upstream's total count as output.
        """
        further = max(0, usage.total - usage.input - usage.output)
        weighted = (
            self.input * (usage.input - usage.cached)
            + self.cached_input * usage.cached
            + self.output * (usage.output - usage.reasoning + further)
            + self.reasoning * usage.reasoning
        )
        return -(-weighted // THOUSAND)


EVEN: Final = Weights()


class Range(NamedTuple):
    """Bound a number that operators set, and describe it to them."""

    least: int
    most: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Costing:
    """Configure how the cost of one model's requests is estimated and bounded before the answer.

    Each field with a `Range` is a setting of the same name, in general and for single models.
    """

    # Most text needs about four weighed bytes per token, so the estimate is rather too high than too low.
    prompt_bytes_per_token: Annotated[
        int, Range(1, 16, "Weighed bytes of prompt JSON counted as one token, until it is learned.")
    ] = 3
    prompt_overhead_tokens: Annotated[int, Range(0, 100_000, "Added for the chat template.")] = 8
    media_tokens: Annotated[int, Range(0, 1_000_000, "Held for each image, audio or file part.")] = 1024
    typical_output_tokens: Annotated[
        int, Range(1, 1_000_000, "Held per choice if the client gave no output bound, until it is learned.")
    ] = 256
    learned_output_min_tokens: Annotated[
        int, Range(1, 1_000_000, "The least output per choice that is learned; at most `typical_output_tokens`.")
    ] = 64
    learned_output_max_tokens: Annotated[
        int, Range(1, 1_000_000, "The most output per choice that is learned; at least `typical_output_tokens`.")
    ] = 4096
    learned_bytes_per_token_min: Annotated[
        int, Range(1, 16, "The fewest weighed bytes per token that are learned; at most `prompt_bytes_per_token`.")
    ] = 1
    # Prompts of few tokens must not teach that a dense prompt needs few tokens.
    learned_bytes_per_token_max: Annotated[
        int, Range(1, 16, "The most weighed bytes per token that are learned; at least `prompt_bytes_per_token`.")
    ] = 6
    # 1 for byte-level tokenizers without a normalization, 3 for NFC (Qwen's), 11 for NFKC (T5's, XLM-R's).
    prompt_bound_factor: Annotated[
        int, Range(1, 16, "Strict mode: how much longer, in bytes, a tokenizer's normalization can make a text.")
    ] = 1
    media_bound_tokens: Annotated[
        int, Range(0, 1_000_000, "Strict mode: the most that an image, audio or file can be.")
    ] = 16_384
    template_bound_tokens: Annotated[
        int, Range(0, 100_000, "Strict mode: the most that a chat template adds to a request.")
    ] = 64
    message_bound_tokens: Annotated[
        int, Range(0, 10_000, "Strict mode with a tokenizer: the most that a chat template adds to each message.")
    ] = 16
    max_output_tokens: Annotated[
        int, Range(1, MAX_OUTPUT_BOUND, "Strict mode: written per choice if the client gave no output bound.")
    ] = 1024
    min_output_tokens: Annotated[
        int,
        Range(
            1,
            MAX_OUTPUT_BOUND,
            "Strict mode: deny a request if fewer tokens are left, unless it asked for fewer.",
        ),
    ] = 16
    # The field that strict mode writes if the client gave none; None: the endpoint's usual one.
    output_field: str | None = None


class Cost(Struct, frozen=True):
    """Estimate the tokens that a request needs. Both parts are estimates, never usage."""

    prompt: int
    output: int

    @property
    def total(self) -> int:
        return self.prompt + self.output


NO_COST: Final = Cost(0, 0)


class Bound(Struct, frozen=True):
    """Bound the tokens that a request can need; strict mode relies on it.

    `prompt` is a proven maximum. `output` is per choice, and is enforced by writing it into the request. The
    output bound may be lowered to `least`; below that the request is denied. `writable` is False if the endpoint
    has no output bound. `field` is the field to write if the client gave no bound (None: the endpoint's usual
    one).
    """

    prompt: int
    output: int
    least: int
    choices: int = 1
    writable: bool = True
    field: str | None = None

    @property
    def all_output(self) -> int:
        return self.output * self.choices


class Demand(Struct, frozen=True):
    """Describe the need of a bucket, in thousandths of its unit: a fixed part, and a part per token of output
    bound.
    """

    fixed: int
    slope: int = 0

    def at(self, output: int) -> int:
        """Return the need in the bucket's unit, rounded up, for an output bound of `output` tokens per choice."""
        return -(-(self.fixed + self.slope * output) // THOUSAND)

    def most(self, room: int) -> int:
        """Return the largest output bound that fits into `room`; may be negative. `slope` must not be 0."""
        return (room * THOUSAND - self.fixed) // self.slope


def demand(unit: Unit, weights: Weights, cost: Cost, requests: int) -> Demand:
    """Return the need of a bucket for an estimated cost."""
    if unit is _TOKENS and weights is EVEN:  # of nearly every bucket
        return Demand(min(THOUSAND * (cost.prompt + cost.output), _MOST))
    match unit:
        case Unit.TOKENS:
            thousandths = weights.any_input * cost.prompt + weights.any_output * cost.output
        case Unit.INPUT_TOKENS:
            thousandths = THOUSAND * cost.prompt
        case Unit.OUTPUT_TOKENS:
            thousandths = THOUSAND * cost.output
        case Unit.REQUESTS:
            thousandths = THOUSAND * requests
        case _:
            assert_never(unit)
    return Demand(min(thousandths, _MOST))


def strict_demand(unit: Unit, weights: Weights, bound: Bound, requests: int) -> Demand:
    """Return the need of a bucket for a bound, as a function of the granted output bound."""
    prompt = Cost(bound.prompt, 0)
    match unit:
        case Unit.TOKENS:
            return Demand(demand(unit, weights, prompt, requests).fixed, weights.any_output * bound.choices)
        case Unit.OUTPUT_TOKENS:
            return Demand(0, THOUSAND * bound.choices)
        case Unit.INPUT_TOKENS | Unit.REQUESTS:
            return demand(unit, weights, prompt, requests)
        case _:
            assert_never(unit)


def cost_of(facts: RequestFacts, prompt: int, typical_output: int) -> Cost:
    """Return prompt estimate + output bound x n.

    `typical_output` per choice replaces a missing bound. It is also the least that is held where only some servers
    read the field with the bound: the others answer as if there were none.
    """
    if not facts.counts_tokens:
        return NO_COST
    if not facts.generates:
        return Cost(prompt, 0)
    if facts.output_bound is None:
        per_choice = typical_output
    elif facts.bound_is_common:
        per_choice = facts.output_bound
    else:
        per_choice = max(facts.output_bound, typical_output)
    return Cost(prompt, per_choice * facts.choices)


def bound_of(
    facts: RequestFacts, costing: Costing, counted: int | None = None, min_output_tokens: int | None = None
) -> Bound:
    """Return the most that the request can need.

    A token is at least one byte long, and JSON never makes a text shorter. So the prompt's bytes, times the growth
    by normalization, bound its tokens. `counted` is a tokenizer's count of the text, if one is configured.
    `min_output_tokens` is the tenant's own. Reads the whole prompt, so use it for strict mode only.
    """
    if not facts.counts_tokens:
        return Bound(0, 0, 0, writable=False)
    if facts.prompt_tokens is not None:
        prompt = facts.prompt_tokens
    else:
        prompt = facts.prompt_bytes * costing.prompt_bound_factor
        if counted is not None:
            prompt = counted + facts.messages * costing.message_bound_tokens
        prompt += rendering_bytes(facts.prompt) + facts.further_bytes * costing.prompt_bound_factor
    prompt += costing.template_bound_tokens + facts.media_parts * costing.media_bound_tokens
    if not facts.generates:
        return Bound(prompt, 0, 0, writable=False)
    asked = facts.output_bound or facts.usual_bound or costing.max_output_tokens
    output = min(asked, MAX_OUTPUT_BOUND)
    wanted = min_output_tokens if min_output_tokens is not None else costing.min_output_tokens
    # Some servers take a bound of 0 for none, others for an error.
    least = min(max(1, wanted), output) if facts.boundable else output
    return Bound(prompt, output, least, facts.choices, facts.boundable, costing.output_field)
