"""Estimate what a request will need, from configured numbers and from the usage of earlier requests."""

import sys
from typing import Final, Protocol

from msgspec import Struct

from extproc.core.quota.costs import Bound, Cost, Weights, bound_of, cost_of
from extproc.core.quota.learning import Learned, Start
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.prompt_fit import PromptKind, PromptSize
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.weighing import weighed_bytes
from extproc.core.request.body import RequestFacts
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId
from extproc.observe.metrics import Metrics

# What a chat template adds to each message, and a server to each text that it embeds, beside the counted text.
_MESSAGE_TOKENS: Final = dict.fromkeys((Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES), 4)
_TEXT_TOKENS: Final = 2


class PromptCounter(Protocol):
    """Count tokens exactly, for the models that have a tokenizer."""

    def knows(self, model: str) -> bool:
        """Tell whether the model has a tokenizer."""

    async def count(self, model: str, endpoint: Endpoint, prompt: bytes) -> int | None:
        """Return the tokens of a prompt's texts; None if they can't be counted in time. Raise nothing."""

    def start(self) -> None:
        """Start its process."""

    async def aclose(self) -> None:
        """End its process."""


class NoCounter:
    """Count nothing: no tokenizer is configured."""

    def knows(self, model: str) -> bool:  # noqa: ARG002 - there is none for any model
        return False

    async def count(self, model: str, endpoint: Endpoint, prompt: bytes) -> int | None:  # noqa: ARG002
        return None

    def start(self) -> None:
        """Do nothing: there is no process."""

    async def aclose(self) -> None:
        """Do nothing: there is no process."""


class Estimate(Struct, frozen=True):
    """Hold a request's expected cost, its largest possible need (for strict limits), and its lesson."""

    cost: Cost
    bound: Bound | None
    weights: Weights
    lesson: "Lesson | None"


class Lesson(Struct, frozen=True):
    """Hold what is needed to learn from a request's usage.

    `learned_as` names model and endpoint: a model's images teach nothing about its chats. `start` is the model's
    configuration at the time of the estimate. `prompt` is None if the prompt's tokens say nothing about its text.
    """

    tenant: TenantId
    learned_as: str
    start: Start
    prompt: PromptSize | None
    choices: int
    bounded: bool
    prompt_estimate: int


class Estimator:
    """Estimate requests, and learn from how they ended. With `learn` False, only the configured numbers count."""

    def __init__(self, models: Models, counter: PromptCounter, metrics: Metrics, *, learn: bool = True) -> None:
        self._models = models
        self._counter = counter
        self._metrics = metrics
        self._learned = Learned()
        self._learns = learn

    async def estimate(
        self,
        tenant: TenantId,
        endpoint: Endpoint,
        facts: RequestFacts,
        *,
        strict: bool,
        min_output_tokens: int | None = None,
    ) -> Estimate:
        """Return the estimate of a tenant's request, with a bound if it is `strict`.

        Wait only if the model has a tokenizer. `min_output_tokens` is the tenant's own setting.
        """
        profile = self._models.profile(facts.model)
        costing = profile.costing
        learned_as = sys.intern(f"{endpoint}/{facts.model}")  # one text for all streams
        counted = None
        if facts.counts_tokens and self._counter.knows(facts.model):
            counted = await self._counter.count(facts.model, endpoint, facts.prompt)
        size = None if facts.prompt_tokens is not None else _size(endpoint, facts, counted)
        prompt = self._prompt(tenant, learned_as, facts, profile, size)
        bound = bound_of(facts, costing, counted, min_output_tokens) if strict else None
        cost = cost_of(facts, prompt, self._learned.typical_output(tenant, learned_as, profile.start))
        lesson = None
        if facts.counts_tokens:
            shows_all = facts.media_parts == 0 and not facts.unbounded_prompt
            lesson = Lesson(
                tenant,
                learned_as,
                profile.start,
                prompt=size if shows_all else None,
                choices=max(1, facts.choices),
                bounded=facts.output_bound is not None,
                prompt_estimate=prompt,
            )
        return Estimate(cost, bound, profile.weights, lesson)

    def learn(self, lesson: Lesson | None, settlement: Settlement, *, bounded: bool) -> None:
        """Learn from the end of a request. Only complete answers with the upstream's own usage count."""
        usage = settlement.usage
        if lesson is None or settlement.outcome is not Outcome.SETTLED or settlement.reason == "cut_off":
            return
        if usage.input:
            self._metrics.estimated(lesson.prompt_estimate / usage.input)
        if self._learns:
            self._learned.observe(
                lesson.tenant,
                lesson.learned_as,
                lesson.start,
                prompt=lesson.prompt,
                prompt_tokens=usage.input,
                output_per_choice=-(-usage.output // lesson.choices),
                bounded=bounded or lesson.bounded,
            )

    def _prompt(
        self,
        tenant: TenantId,
        learned_as: str,
        facts: RequestFacts,
        profile: ModelProfile,
        size: PromptSize | None,
    ) -> int:
        costing = profile.costing
        if size is None:
            tokens = (facts.prompt_tokens or 0) + costing.prompt_overhead_tokens
        else:
            tokens = self._learned.prompt_tokens(tenant, learned_as, profile.start, size)
        return tokens + facts.media_parts * costing.media_tokens


def _size(endpoint: Endpoint, facts: RequestFacts, counted: int | None) -> PromptSize:
    if counted is not None:
        size = counted + facts.messages * _MESSAGE_TOKENS.get(endpoint, _TEXT_TOKENS)
    elif facts.media_parts:
        size = facts.prompt_bytes  # the payload of media would decide the weight
    else:
        size = weighed_bytes(facts.prompt, facts.prompt_bytes)
    return PromptSize(PromptKind.of(counted=counted is not None, tools=facts.tools), size)
