"""Count all tokens ever served: a meter in front of this server must arrive at the same sums."""

from collections import defaultdict
from dataclasses import asdict, astuple, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Kind(StrEnum):
    """Name the kinds of request; the keys of ``by_endpoint``."""

    CHAT = "chat_completions"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    TRANSCRIPTIONS = "audio_transcriptions"
    SPEECH = "audio_speech"
    IMAGES = "images"
    PREDICT = "predict"
    INFER = "infer"
    TOKENIZE = "tokenize"


@dataclass(slots=True)
class _Served:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    aborted: int = 0
    audio_seconds: int = 0


@dataclass(slots=True)
class Ledger:
    """Count since the start or the last reset. Not thread-safe: one event loop owns it.

    ``requests`` are the answers that were begun. ``aborted`` are those that ended before the whole answer was
    generated, because the client left or a fault cut them off. ``prompt_tokens`` are all tokens read (audio
    included), and ``completion_tokens`` are all tokens generated (pictures included), whether or not the answer
    reports them. ``audio_seconds`` are the seconds of audio read, rounded up per request.
    """

    _served: defaultdict[tuple[Kind, str], _Served] = field(default_factory=lambda: defaultdict(_Served))

    def begin(self, kind: Kind, model: str, prompt_tokens: int, audio_seconds: int = 0) -> None:
        """Count an answer that starts, and its prompt."""
        served = self._served[kind, model]
        served.requests += 1
        served.prompt_tokens += prompt_tokens
        served.total_tokens += prompt_tokens
        served.audio_seconds += audio_seconds

    def produce(self, kind: Kind, model: str, tokens: int = 1) -> None:
        """Count completion tokens."""
        served = self._served[kind, model]
        served.completion_tokens += tokens
        served.total_tokens += tokens

    def abort(self, kind: Kind, model: str) -> None:
        """Count an answer that was cut off."""
        self._served[kind, model].aborted += 1

    def reset(self) -> None:
        """Set all counts to zero; running generations count from here on."""
        self._served.clear()

    def report(self) -> dict[str, object]:
        """Return the sums of all counters, in total, per model and per kind of endpoint."""
        return {
            **asdict(_summed(list(self._served.values()))),
            "by_model": self._grouped(lambda _, model: model),
            "by_endpoint": self._grouped(lambda kind, _: kind.value),
        }

    def _grouped(self, name: "Callable[[Kind, str], str]") -> dict[str, dict[str, int]]:
        groups: defaultdict[str, list[_Served]] = defaultdict(list)
        for (kind, model), served in self._served.items():
            groups[name(kind, model)].append(served)
        return {group: asdict(_summed(groups[group])) for group in sorted(groups)}


def _summed(parts: list[_Served]) -> _Served:
    return _Served(*(sum(counts) for counts in zip(*map(astuple, parts), strict=True)))
