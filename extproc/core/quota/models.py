"""Describe single models: how their tokens are estimated, weighted and priced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from extproc.core.quota.costs import EVEN, Costing, Weights
from extproc.core.quota.learning import Start
from extproc.core.quota.limits import matches
from extproc.core.quota.usage import Usage
from extproc.core.request.bodies.hidden import adds_by_name

# Clients can send any model name, so the number of names in memory is bounded.
_REMEMBERED: Final = 1024
# Prices are at most this many millionths of the currency, so that sums fit into 64 bits.
MAX_PRICE: Final = 100_000 * 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Hold the price of a million tokens by kind, in millionths of the currency (0 <= price <= MAX_PRICE)."""

    input: int = 0
    cached_input: int = 0
    output: int = 0

    def of(self, usage: Usage) -> int:
        """Return the price of the usage in billionths of the currency, rounded half up."""
        output = max(usage.output, usage.total - usage.input)
        parts = self.input * (usage.input - usage.cached) + self.cached_input * usage.cached + self.output * output
        # A millionth per million tokens is 10**-12 per token; 1000 of them are a billionth.
        return (parts + 500) // 1000


FREE: Final = Prices()


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Hold the settings of one model, or of all models without settings of their own.

    `asks_for_usage`: ask the upstream for usage in a stream whose client did not. `continuous_usage`: ask for it
    in every chunk. `adds_to_prompt`: the model searches, or has a prompt of its own, whatever the body says; None
    goes by its name.
    """

    costing: Costing = field(default_factory=Costing)
    weights: Weights = EVEN
    prices: Prices = FREE
    asks_for_usage: bool = True
    continuous_usage: bool = False
    adds_to_prompt: bool | None = None
    start: Start = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", Start.of(self.costing))


class Models:
    """Find a profile by the model's glob; the first match counts."""

    def __init__(self, default: ModelProfile, profiles: Sequence[tuple[str, ModelProfile]] = ()) -> None:
        self._default = default
        self._profiles = tuple(profiles)
        self._found: dict[str, ModelProfile] = {}

    def adds_to_prompt(self, model: str) -> bool:
        """Return whether the server adds to each prompt of this model, so that nothing bounds it."""
        told = self.profile(model).adds_to_prompt
        return adds_by_name(model) if told is None else told

    def profile(self, model: str) -> ModelProfile:
        if not self._profiles:
            return self._default
        found = self._found.get(model)
        if found is None:
            found = next((p for glob, p in self._profiles if matches(glob, model)), self._default)
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[model] = found
        return found
