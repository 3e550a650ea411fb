"""What an answer tells beyond its totals: how many tokens were cached, thought or heard."""

from dataclasses import dataclass, replace
from typing import Self

from extproc.local.model.errors import malformed

USAGE_HEADER = "x-sample-usage"

# As the header spells them, and the field each sets.
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
    """Parts of the true totals that usage claims; the totals stay what was served.

    Attributes:
        cached: Prompt tokens that a cache had.
        cache_write: Prompt tokens that a cache was given.
        reasoning: Completion tokens that were thought and not said.
        audio_in: Prompt tokens that were heard.
        audio_out: Completion tokens that were spoken.
        by_tokens: Whether transcriptions tell tokens (as gpt-4o-transcribe) and not seconds.
    """

    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_in: int = 0
    audio_out: int = 0
    by_tokens: bool = False

    def within(self, prompt_tokens: int, completion_tokens: int) -> Self:
        """The same, but no part larger than what it is a part of."""
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
    """The details a header asks for, such as ``cached=5, reasoning=3`` or ``tokens``.

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
