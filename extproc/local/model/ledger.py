"""The count of all tokens ever served: what a meter in front of this server has to arrive at."""

from collections import defaultdict
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class _Served:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    aborted: int = 0


@dataclass(slots=True)
class Ledger:
    """Counters since the start or the last reset. Not thread-safe: one event loop owns it.

    ``requests`` are generations begun; ``aborted`` are those of them which ended before their
    finish reason, because the client left or a fault cut them off.
    """

    _models: defaultdict[str, _Served] = field(default_factory=lambda: defaultdict(_Served))

    def begin(self, model: str, prompt_tokens: int) -> None:
        """Count a generation that starts, and its prompt."""
        served = self._models[model]
        served.requests += 1
        served.prompt_tokens += prompt_tokens
        served.total_tokens += prompt_tokens

    def produce(self, model: str) -> None:
        """Count one completion token."""
        served = self._models[model]
        served.completion_tokens += 1
        served.total_tokens += 1

    def abort(self, model: str) -> None:
        """Count a generation that was cut off."""
        self._models[model].aborted += 1

    def reset(self) -> None:
        """Set all to zero; generations still running count from here on."""
        self._models.clear()

    def report(self) -> dict[str, object]:
        """All counters summed up, and under ``by_model`` the same ones for each model."""
        total = _Served()
        for served in self._models.values():
            total.requests += served.requests
            total.prompt_tokens += served.prompt_tokens
            total.completion_tokens += served.completion_tokens
            total.total_tokens += served.total_tokens
            total.aborted += served.aborted
        by_model = {name: asdict(served) for name, served in sorted(self._models.items())}
        return {**asdict(total), "by_model": by_model}
