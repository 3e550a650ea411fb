"""Usage as servers write it: every name that one of them gives a count, each a bounded int or nothing at all."""

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from extproc.core.content import NOT_GIVEN
from extproc.core.requests import MAX_TOKENS

_Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class InputDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None  # OpenAI, OpenRouter
    cache_creation_tokens: _Count | None = None  # LiteLLM
    created_cache_tokens: _Count | None = None  # vLLM


class OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None
    audio_tokens: _Count | None = None


class Reported(msgspec.Struct):
    # Chat completions, completions, embeddings, rerank, score.
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    # Responses, images, audio; Anthropic's messages.
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: InputDetails | None = None
    input_token_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    output_token_details: OutputDetails | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    # Beside the details, or in place of them.
    prompt_cache_hit_tokens: _Count | None = None  # DeepSeek
    cached_tokens: _Count | None = None  # Moonshot
    reasoning_tokens: _Count | None = None  # SGLang, Perplexity
    # Cohere: one level further down, and there are searches instead of tokens.
    tokens: Raw = NOT_GIVEN
    billed_units: Raw = NOT_GIVEN
    search_units: Raw = NOT_GIVEN
    seconds: Raw = NOT_GIVEN

    @property
    def counts_nothing(self) -> bool:
        """Whether there is not one of the counts that usage needs."""
        counts = (self.prompt_tokens, self.completion_tokens, self.total_tokens)
        return counts == (None, None, None) and self.input_tokens is None and self.output_tokens is None


_decoder = msgspec.json.Decoder(Reported)


def decode_reported(text: Raw | bytes) -> Reported:
    """Raises one of `content.UNREADABLE` where a count is none: negative, fractional, a string, out of bounds."""
    return _decoder.decode(text)
