"""Hold the details of usage beyond its totals: cached tokens, reasoning, audio."""

from dataclasses import dataclass, replace
from typing import Self

from extproc.local.model.errors import malformed

USAGE_HEADER = "x-sample-usage"

# The header's spelling, and the field that it sets.
_COUNTS = {
    "cached": "cached",
    "cache-write": "cache_write",
    "reasoning": "reasoning",
    "audio-in": "audio_in",
    "audio-out": "audio_out",
}
_BY_TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Details:
    """Hold the parts of the true totals that usage reports; the totals stay the true ones.

    Attributes:
        cached: Prompt tokens read from a cache.
        cache_write: Prompt tokens written to a cache.
        reasoning: Completion tokens of reasoning, which are not shown.
        audio_in: Prompt tokens of audio.
        audio_out: Completion tokens of audio.
        by_tokens: Whether transcriptions report tokens (like gpt-4o-transcribe) instead of seconds.
    """

    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_in: int = 0
    audio_out: int = 0
    by_tokens: bool = False

    def within(self, prompt_tokens: int, completion_tokens: int) -> Self:
        """Return the details with no part larger than its total."""
        cached = min(self.cached, prompt_tokens)
        return replace(
            self,
            cached=cached,
            cache_write=min(self.cache_write, prompt_tokens - cached),
            reasoning=min(self.reasoning, completion_tokens),
            audio_in=min(self.audio_in, prompt_tokens),
            audio_out=min(self.audio_out, completion_tokens),
        )


def read_details(value: str | None) -> Details:
    """Return the details that a header asks for, such as ``cached=5, reasoning=3`` or ``tokens``.

    Raises:
        ApiError: 400; it names something else, or a count is not a number.
    """
    found: dict[str, int | bool] = {}
    for part in filter(None, ((value or "").replace(" ", "").split(","))):
        name, _, count = part.lower().partition("=")
        if name == _BY_TOKENS and not count:
            found["by_tokens"] = True
        elif name in _COUNTS and count.isascii() and count.isdigit():
            found[_COUNTS[name]] = int(count)
        else:
            known = ", ".join(f"{name}=N" for name in _COUNTS)
            raise malformed(f"{USAGE_HEADER}: can't read {part!r}; known are {known}, {_BY_TOKENS}")
    return Details(**found)  # type: ignore[arg-type]  # by_tokens is the only bool
