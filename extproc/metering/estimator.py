"""Estimate what a request will need, from configured numbers and from the usage of earlier requests."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from extproc.core.quota.costs import Bound, Cost, Costing, Weights, bound_of, cost_of, prompt_estimate
from extproc.core.quota.learning import Learned
from extproc.core.quota.models import Models
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.request.body import RequestFacts, prompt_texts
from extproc.core.request.endpoints import Endpoint, Target
from extproc.observe.metrics import Metrics

# The texts of a larger prompt are read in a thread: reading them would delay other streams by a millisecond.
_ASIDE_BYTES: Final = 65_536
# A larger prompt is not counted with a tokenizer, even if most of it is pictures.
_LARGEST_BYTES: Final = 4 << 20


class PromptCounter(Protocol):
    """Count tokens exactly, for the models that have a tokenizer."""

    def knows(self, model: str) -> bool:
        """Tell whether the model has a tokenizer."""

    async def count(self, model: str, texts: Sequence[str]) -> int | None:
        """Return the tokens of all texts together; None if they can't be counted in time. Raise nothing."""

    def close(self) -> None:
        """Stop its threads."""


class NoCounter:
    """Count nothing: no tokenizer is configured."""

    def knows(self, model: str) -> bool:  # noqa: ARG002 - there is none for any model
        return False

    async def count(self, model: str, texts: Sequence[str]) -> int | None:  # noqa: ARG002
        return None

    def close(self) -> None:
        """Do nothing: there are no threads."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold a request's expected cost, its largest possible need (for strict limits), and its lesson."""

    cost: Cost
    bound: Bound | None
    weights: Weights
    lesson: "Lesson | None"


@dataclass(frozen=True, slots=True)
class Lesson:
    """Hold what is needed to learn from a request's usage.

    `learned_as` names model and endpoint: a model's images teach nothing about its chats.
    """

    learned_as: str
    prompt_bytes: int
    media_parts: int
    choices: int
    bounded: bool
    prompt_estimate: int
    overhead_tokens: int
    bytes_per_token: int


class Estimator:
    """Estimate requests, and learn from how they ended. With `learn` False, only the configured numbers count."""

    def __init__(self, models: Models, counter: PromptCounter, metrics: Metrics, *, learn: bool = True) -> None:
        self._models = models
        self._counter = counter
        self._metrics = metrics
        self._learned = Learned() if learn else None

    async def estimate(
        self, endpoint: Endpoint, facts: RequestFacts, *, strict: bool, min_output_tokens: int | None = None
    ) -> Estimate:
        """Return the request's estimate, with a bound if it is `strict`.

        Wait only if the model has a tokenizer. `min_output_tokens` is the tenant's own setting.
        """
        profile = self._models.profile(facts.model)
        costing = profile.costing
        counted = await self._counted(endpoint, facts)
        if facts.prompt_tokens is not None:
            prompt = facts.prompt_tokens + costing.prompt_overhead_tokens
        elif counted is not None:
            prompt = counted + costing.prompt_overhead_tokens + facts.media_parts * costing.media_tokens
        else:
            prompt = self._prompt(endpoint, facts, costing)
        bound = bound_of(facts, costing, counted, min_output_tokens) if strict else None
        cost = cost_of(facts, prompt, self._typical_output(endpoint, facts, costing))
        return Estimate(cost, bound, profile.weights, _lesson(endpoint, facts, costing, cost))

    def learn(self, lesson: Lesson | None, settlement: Settlement, *, bounded: bool) -> None:
        """Learn from the end of a request. Only complete answers with the upstream's own usage count."""
        usage = settlement.usage
        if lesson is None or settlement.outcome is not Outcome.SETTLED or settlement.reason == "cut_off":
            return
        if usage.input:
            self._metrics.estimated(lesson.prompt_estimate / usage.input)
        if self._learned is not None:
            self._learned.observe(
                lesson.learned_as,
                prompt_bytes=lesson.prompt_bytes,
                overhead_tokens=lesson.overhead_tokens,
                media_parts=lesson.media_parts,
                prompt_tokens=usage.input,
                output_per_choice=-(-usage.output // lesson.choices),
                bounded=bounded or lesson.bounded,
                start_bytes_per_token=lesson.bytes_per_token,
            )

    async def _counted(self, endpoint: Endpoint, facts: RequestFacts) -> int | None:
        size = len(facts.prompt)
        if not self._counter.knows(facts.model) or not facts.counts_tokens or size > _LARGEST_BYTES:
            return None
        target = Target(endpoint, None)
        if size > _ASIDE_BYTES:
            texts = await asyncio.to_thread(prompt_texts, target, facts.prompt)
        else:
            texts = prompt_texts(target, facts.prompt)
        return await self._counter.count(facts.model, texts) if texts is not None else None

    def _prompt(self, endpoint: Endpoint, facts: RequestFacts, costing: Costing) -> int:
        if self._learned is None:
            return prompt_estimate(facts, costing)
        tokens = self._learned.prompt_tokens(
            _learned_as(endpoint, facts),
            prompt_bytes=facts.prompt_bytes,
            overhead_tokens=costing.prompt_overhead_tokens,
            start_bytes_per_token=costing.prompt_bytes_per_token,
        )
        return tokens + facts.media_parts * costing.media_tokens

    def _typical_output(self, endpoint: Endpoint, facts: RequestFacts, costing: Costing) -> int:
        start = costing.typical_output_tokens
        if self._learned is None:
            return start
        return self._learned.typical_output(_learned_as(endpoint, facts), start)


def _learned_as(endpoint: Endpoint, facts: RequestFacts) -> str:
    return f"{endpoint}/{facts.model}"


def _lesson(endpoint: Endpoint, facts: RequestFacts, costing: Costing, cost: Cost) -> Lesson | None:
    if not facts.counts_tokens:
        return None
    return Lesson(
        learned_as=_learned_as(endpoint, facts),
        prompt_bytes=facts.prompt_bytes,
        media_parts=facts.media_parts,
        choices=max(1, facts.choices),
        bounded=facts.output_bound is not None,
        prompt_estimate=cost.prompt,
        overhead_tokens=costing.prompt_overhead_tokens,
        bytes_per_token=costing.prompt_bytes_per_token,
    )
