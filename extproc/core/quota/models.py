"""What is known of single models: how their tokens are expected, weighted and priced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from extproc.core.quota.costs import EVEN, Costing, Weights
from extproc.core.quota.limits import matches
from extproc.core.quota.usage import Usage

# Requests name their model, and not every server minds: what is remembered of names is bounded.
_REMEMBERED: Final = 1024
# Prices of at most this many millionths of the currency, so that sums fit into 64 bits.
MAX_PRICE: Final = 100_000 * 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in millionths of the currency (0 <= price <= MAX_PRICE), by their kind."""

    input: int = 0
    cached_input: int = 0
    output: int = 0

    def of(self, usage: Usage) -> int:
        """What the usage costs, in billionths of the currency, rounded half up."""
        output = max(usage.output, usage.total - usage.input)
        parts = self.input * (usage.input - usage.cached) + self.cached_input * usage.cached + self.output * output
        # A millionth per million tokens is a millionth of a millionth per token: 1000 of them are a billionth.
        return (parts + 500) // 1000


FREE: Final = Prices()


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What is known of one model, or of all that nothing else is known of."""

    costing: Costing = field(default_factory=Costing)
    weights: Weights = EVEN
    prices: Prices = FREE


class Models:
    """Profiles by the model's glob; the first that matches counts."""

    def __init__(self, default: ModelProfile, profiles: Sequence[tuple[str, ModelProfile]] = ()) -> None:
        self._default = default
        self._profiles = tuple(profiles)
        self._found: dict[str, ModelProfile] = {}

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
