"""Usage: the tokens of one exchange, as a value with bounds."""

from dataclasses import dataclass
from typing import Final

from extproc.core.request.body import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one exchange, each 0 <= n <= MAX_TOKENS.

    `cached`, `cache_written` and `audio_input` are parts of `input`; `reasoning` and `audio_output` of `output`.
    `total` is what the upstream called total, but never less than input + output: a server whose total is smaller
    contradicts itself. Where it is larger (thinking that Gemini counts nowhere else), the rest belongs to neither.
    """

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    total: int = 0
    audio_input: int = 0
    audio_output: int = 0
    cache_written: int = 0


NO_USAGE: Final = Usage(0, 0)


def estimated_output(content_bytes: int, pieces: int, bytes_per_token: int) -> int:
    """Output tokens of an answer that did not tell, at least 1 where there was content.

    Servers send about one token in a piece of a stream; those that send more are caught by the bytes.
    """
    return min(MAX_TOKENS, max(pieces, -(-content_bytes // bytes_per_token)))
