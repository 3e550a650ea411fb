"""Hold the tokens of one exchange, with bounds."""

from typing import Final

from msgspec import Struct

from extproc.core.request.body import MAX_TOKENS


class Usage(Struct, frozen=True):
    """Hold the tokens of one exchange, each 0 <= n <= MAX_TOKENS.

    `cached`, `cache_written` and `audio_input` are parts of `input`; `reasoning` and `audio_output` are parts of
    `output`. `total` is the upstream's total, but at least input + output: a smaller total contradicts itself. If
    it is larger (Gemini's thinking tokens are in the total only), the rest belongs to neither.
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
    """Estimate the output tokens of an answer without usage; at least 1 if there was content.

    Servers send about one token per piece of a stream. If a server sends more, the bytes show it.
    """
    return min(MAX_TOKENS, max(pieces, -(-content_bytes // bytes_per_token)))
