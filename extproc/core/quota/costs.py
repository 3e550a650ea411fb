"""What a request costs: estimates and bounds before its answer, the weighted sum of its usage after it.

Integers throughout. Weights are thousandths, so that a cached token may count a tenth of another one.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from extproc.core.quota.limits import Unit
from extproc.core.quota.rendering import rendering_bytes
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts

THOUSAND: Final = 1000
# Weights are at most 100, so that all sums stay below 2**53, where numbers in Redis' Lua lose their last digit.
MAX_WEIGHT: Final = 100 * THOUSAND
# No larger output bound is ever written into a request, per choice.
MAX_OUTPUT_BOUND: Final = 1_000_000
# More than the largest limit: what needs so much is never admitted.
_MOST: Final = 4 * 10**15


@dataclass(frozen=True, slots=True)
class Weights:
    """How much a token counts, in thousandths (0 <= weight <= MAX_WEIGHT), by its kind."""

    input: int = THOUSAND
    cached_input: int = THOUSAND
    output: int = THOUSAND
    reasoning: int = THOUSAND

    @property
    def any_input(self) -> int:
        """The largest weight that a token of the prompt can have."""
        return max(self.input, self.cached_input)

    @property
    def any_output(self) -> int:
        """The largest weight that a generated token can have."""
        return max(self.output, self.reasoning)

    def at_most(self, prompt: int, output: int) -> int:
        """What so many tokens count at most, rounded up."""
        return -(-(self.any_input * prompt + self.any_output * output) // THOUSAND)

    def of(self, usage: Usage) -> int:
        """What the usage counts, rounded up; its total where all weights are even.

        Tokens that only the upstream's total knows of count as output.
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


@dataclass(frozen=True, slots=True)
class Costing:
    """How the tokens of one model's requests are expected, before anything is known of the answer.

    Attributes:
        bytes_per_token: bytes of prompt JSON that are counted as one token, rounded up, until it is learned. The
            default is below what tokenizers need for most text: the estimate is rather too high than too low.
        overhead_tokens: what a chat template adds.
        media_tokens: held for each image or audio part carried inside the body.
        typical_output_tokens: held per choice where the client gave no output bound, until it is learned.
        prompt_bound_factor: how much longer, in bytes, a tokenizer's normalization can make a text; for strict
            mode: 1 for byte-level tokenizers without one, 3 for NFC (Qwen's), 11 for NFKC (T5's, XLM-R's).
        media_bound_tokens: the most that an image or audio part can be; for strict mode.
        template_bound_tokens: the most that a chat template adds beside the messages; for strict mode.
        message_bound_tokens: the most that it adds for each message, where a tokenizer counted the text.
        max_output_tokens: written per choice in strict mode where the client gave no output bound.
        min_output_tokens: in strict mode a request that could not get so many per choice is denied.
        output_field: the field that strict mode writes where the client gave none; None: the endpoint's usual one.
    """

    bytes_per_token: int = 3
    overhead_tokens: int = 8
    media_tokens: int = 1024
    typical_output_tokens: int = 256
    prompt_bound_factor: int = 1
    media_bound_tokens: int = 16_384
    template_bound_tokens: int = 64
    message_bound_tokens: int = 16
    max_output_tokens: int = 1024
    min_output_tokens: int = 16
    output_field: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens that a request is expected to need. Both parts are estimates, never usage."""

    prompt: int
    output: int

    @property
    def total(self) -> int:
        return self.prompt + self.output


NO_COST: Final = Cost(0, 0)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a request can need at the most: what strict mode rests on.

    `prompt` tokens for certain; `output` per choice, because that is written into the request. It may be lowered
    to `least`, below which the request is denied. `writable` is False where the endpoint has no output bound;
    `field` is where it is written if the client gave none (None: the endpoint's usual one).
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


@dataclass(frozen=True, slots=True)
class Demand:
    """What a bucket has to hold, in thousandths of its unit: a fixed part, and one per token of output bound."""

    fixed: int
    slope: int = 0

    def at(self, output: int) -> int:
        """In the bucket's unit, rounded up, where the output bound is `output` tokens per choice."""
        return -(-(self.fixed + self.slope * output) // THOUSAND)

    def most(self, room: int) -> int:
        """The largest output bound with which it fits into `room`; may be negative. Needs a slope."""
        return (room * THOUSAND - self.fixed) // self.slope


def demand(unit: Unit, weights: Weights, cost: Cost, requests: int) -> Demand:
    """What is held for an estimate."""
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
    """What is held for a bound, as a function of the output bound that is granted."""
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


def prompt_estimate(facts: RequestFacts, costing: Costing) -> int:
    """Tokens of the prompt, by its bytes, without anything learned."""
    text = -(-facts.prompt_bytes // costing.bytes_per_token) + costing.overhead_tokens
    return text + facts.media_parts * costing.media_tokens


def cost_of(facts: RequestFacts, prompt: int, typical_output: int) -> Cost:
    """Prompt estimate + output bound x n; `typical_output` per choice stands in for a bound."""
    if not facts.counts_tokens:
        return NO_COST
    if not facts.generates:
        return Cost(prompt, 0)
    per_choice = facts.output_bound if facts.output_bound is not None else typical_output
    return Cost(prompt, per_choice * facts.choices)


def bound_of(
    facts: RequestFacts, costing: Costing, counted: int | None = None, min_output_tokens: int | None = None
) -> Bound:
    """What the request can need at the most.

    A token is at least a byte long, and JSON writes no text shorter than it is: the prompt's bytes bound its
    tokens, times what normalization can make of them. `counted` is what a tokenizer made of the text, where one
    is configured; `min_output_tokens` is the tenant's own. Works through the whole prompt: only for strict mode.
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
    # A bound of 0 is none to some servers and an error to others.
    least = min(max(1, wanted), output) if facts.boundable else output
    return Bound(prompt, output, least, facts.choices, facts.boundable, costing.output_field)
