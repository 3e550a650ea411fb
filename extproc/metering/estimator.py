"""Estimate what a request will need, from configured numbers and from the usage of earlier requests."""

import sys
from typing import NamedTuple, Protocol

from extproc.core.quota.costs import Bound, Cost, Weights, bound_of, cost_of, prompt_estimate
from extproc.core.quota.learning import Learned, Start
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.request.body import RequestFacts
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import TenantId
from extproc.observe.metrics import Metrics


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


class Estimate(NamedTuple):
    """Hold a request's expected cost, its largest possible need (for strict limits), and its lesson."""

    cost: Cost
    bound: Bound | None
    weights: Weights
    lesson: "Lesson | None"


class Lesson(NamedTuple):
    """Hold what is needed to learn from a request's usage.

    `learned_as` names model and endpoint: a model's images teach nothing about its chats. `start` is the model's
    configuration at the time of the estimate.
    """

    tenant: TenantId
    learned_as: str
    start: Start
    prompt_bytes: int
    media_parts: int
    choices: int
    bounded: bool
    prompt_estimate: int


class Estimator:
    """Estimate requests, and learn from how they ended. With `learn` False, only the configured numbers count."""

    def __init__(self, models: Models, counter: PromptCounter, metrics: Metrics, *, learn: bool = True) -> None:
        self._models = models
        self._counter = counter
        self._metrics = metrics
        self._learned = Learned() if learn else None

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
        counted = await self._counted(endpoint, facts)
        if facts.prompt_tokens is not None:
            prompt = facts.prompt_tokens + costing.prompt_overhead_tokens
        elif counted is not None:
            prompt = counted + costing.prompt_overhead_tokens + facts.media_parts * costing.media_tokens
        else:
            prompt = self._prompt(tenant, learned_as, facts, profile)
        bound = bound_of(facts, costing, counted, min_output_tokens) if strict else None
        cost = cost_of(facts, prompt, self._typical_output(tenant, learned_as, profile))
        return Estimate(cost, bound, profile.weights, _lesson(tenant, learned_as, facts, profile.start, cost))

    def learn(self, lesson: Lesson | None, settlement: Settlement, *, bounded: bool) -> None:
        """Learn from the end of a request. Only complete answers with the upstream's own usage count."""
        usage = settlement.usage
        if lesson is None or settlement.outcome is not Outcome.SETTLED or settlement.reason == "cut_off":
            return
        if usage.input:
            self._metrics.estimated(lesson.prompt_estimate / usage.input)
        if self._learned is not None:
            self._learned.observe(
                lesson.tenant,
                lesson.learned_as,
                lesson.start,
                prompt_bytes=lesson.prompt_bytes,
                media_parts=lesson.media_parts,
                prompt_tokens=usage.input,
                output_per_choice=-(-usage.output // lesson.choices),
                bounded=bounded or lesson.bounded,
            )

    async def _counted(self, endpoint: Endpoint, facts: RequestFacts) -> int | None:
        if not facts.counts_tokens or not self._counter.knows(facts.model):
            return None
        return await self._counter.count(facts.model, endpoint, facts.prompt)

    def _prompt(self, tenant: TenantId, learned_as: str, facts: RequestFacts, profile: ModelProfile) -> int:
        if self._learned is None:
            return prompt_estimate(facts, profile.costing)
        tokens = self._learned.prompt_tokens(tenant, learned_as, profile.start, prompt_bytes=facts.prompt_bytes)
        return tokens + facts.media_parts * profile.costing.media_tokens

    def _typical_output(self, tenant: TenantId, learned_as: str, profile: ModelProfile) -> int:
        if self._learned is None:
            return profile.costing.typical_output_tokens
        return self._learned.typical_output(tenant, learned_as, profile.start)


def _lesson(tenant: TenantId, learned_as: str, facts: RequestFacts, start: Start, cost: Cost) -> Lesson | None:
    if not facts.counts_tokens:
        return None
    return Lesson(
        tenant,
        learned_as,
        start,
        prompt_bytes=facts.prompt_bytes,
        media_parts=facts.media_parts,
        choices=max(1, facts.choices),
        bounded=facts.output_bound is not None,
        prompt_estimate=cost.prompt,
    )
