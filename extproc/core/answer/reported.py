"""Usage as servers write it: every name that one of them gives a count, each a bounded int or nothing at all.

A fraction of a token counts as a token: gateways that convert usage multiply it. What went in and what came out
have to be counts, and so has a total that stands alone: else there is no telling what the rest is worth. What only
says more about them (cached, reasoning, audio) is left out where it is none, and the totals stand.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw

from extproc.core.answer.content import NOT_GIVEN, NOTHING, UNREADABLE
from extproc.core.request.body import MAX_TOKENS

_Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class InputDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None  # OpenAI, OpenRouter
    cache_creation_tokens: _Count | None = None  # LiteLLM
    created_cache_tokens: _Count | None = None  # vLLM


class OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None
    thinking_tokens: _Count | None = None  # Anthropic
    audio_tokens: _Count | None = None


class _Iteration(msgspec.Struct):
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Totals(msgspec.Struct):
    # Chat completions, completions, embeddings, rerank, score.
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    # Responses, images, audio; Anthropic's messages.
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    # Cohere: one level further down, and there are searches, images or classifications instead of tokens.
    tokens: Raw = NOT_GIVEN
    billed_units: Raw = NOT_GIVEN
    search_units: Raw = NOT_GIVEN
    images: Raw = NOT_GIVEN
    classifications: Raw = NOT_GIVEN
    seconds: Raw = NOT_GIVEN


class _InCamelCase(msgspec.Struct, rename="camel"):
    """Counts as Bedrock's Converse writes them (its input is without the cache), and as the AI SDK does."""

    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_write_input_tokens: _Count | None = None
    cached_input_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class Reported(_Totals):
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    input_tokens_details: InputDetails | None = None
    input_token_details: InputDetails | None = None
    prompt_token_details: InputDetails | None = None  # Mistral, beside its own name for the cache
    output_tokens_details: OutputDetails | None = None
    output_token_details: OutputDetails | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    # Beside the details, or in place of them.
    prompt_cache_hit_tokens: _Count | None = None  # DeepSeek
    cached_tokens: _Count | None = None  # Moonshot
    num_cached_tokens: _Count | None = None  # Mistral
    reasoning_tokens: _Count | None = None  # SGLang, Perplexity
    image_tokens: _Count | None = None  # Cohere bills them beside the input; for others they are a part of it
    # Anthropic: each pass of the model in one request. What compacts the context, or advises, is in nothing else.
    iterations: Raw = NOT_GIVEN

    @property
    def counts_nothing(self) -> bool:
        """Whether there is not one of the counts that usage needs."""
        counts = (self.prompt_tokens, self.completion_tokens, self.total_tokens)
        return counts == (None, None, None) and self.input_tokens is None and self.output_tokens is None

    @property
    def counts_elsewhere(self) -> bool:
        """Whether something else than tokens was counted."""
        units = (self.seconds, self.search_units, self.images, self.classifications)
        return any(bytes(raw) not in NOTHING for raw in units)


class OddTotal(Reported):
    """Usage whose total is no count. Its parts stand, and are doubted."""


_decoder: Final = msgspec.json.Decoder(Reported)
_camel_case: Final = msgspec.json.Decoder(_InCamelCase)
_members: Final = msgspec.json.Decoder(dict[str, Raw])
_count: Final = msgspec.json.Decoder(_Count | None)
_number: Final = msgspec.json.Decoder(Annotated[float, Meta(ge=0, le=MAX_TOKENS)])
_passes: Final = msgspec.json.Decoder(list[_Iteration] | None)
_passes_as_written: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_SIDES: Final = frozenset(Reported.__struct_fields__) - frozenset(_Totals.__struct_fields__)
_PARTS: Final = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
_OTHER_UNITS: Final = frozenset(_Totals.__struct_fields__) - {*_PARTS, "total_tokens"}
_MAX_PASSES: Final = 256
# Usage has less than 4 KiB.
_MAX_USAGE_BYTES: Final = 16 << 10
# Anthropic's count of the input is the sum of these and `input_tokens`.
_INPUT_PARTS: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")


def decode_reported(text: Raw | bytes) -> Reported:
    """The counts of a usage object; where it tells of several passes, the sums over them.

    Fractions are rounded up. Raises one of `content.UNREADABLE` where the input, the output or a total that stands
    alone is no count: negative, a string, out of bounds, or where there is more of it than any server writes.
    """
    if len(text) > _MAX_USAGE_BYTES:
        raise msgspec.DecodeError("larger than usage is")
    reported = _decoded(text)
    if not reported.counts_nothing:
        return _summed(reported, passes) if (passes := _passes_of(reported.iterations)) else reported
    if bytes(reported.tokens) not in NOTHING:
        return _decoded(reported.tokens)
    if bytes(reported.billed_units) not in NOTHING:
        billed = _decoded(reported.billed_units)
        if billed.image_tokens is not None:
            billed.input_tokens = (billed.input_tokens or 0) + billed.image_tokens
        return billed
    return reported if reported.counts_elsewhere else _from_camel_case(_camel_case.decode(text))


def _from_camel_case(counts: _InCamelCase) -> Reported:
    return Reported(
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        total_tokens=counts.total_tokens,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cache_read_input_tokens=counts.cache_read_input_tokens,
        cache_creation_input_tokens=counts.cache_write_input_tokens,
        cached_tokens=counts.cached_input_tokens,
        reasoning_tokens=counts.reasoning_tokens,
    )


def decode_count(raw: Raw) -> int | None:
    """A count that stands alone, rounded up. Raises one of `content.UNREADABLE` where it is none."""
    if raw is NOT_GIVEN:
        return None
    count: int | None
    try:
        count = _count.decode(raw)
    except UNREADABLE:
        count = int(-(-_number.decode(raw) // 1))
    return count


def side_count(raw: Raw) -> int | None:
    """A count that is left out where it is none."""
    try:
        return decode_count(raw)
    except UNREADABLE:
        return None


def _decoded(text: Raw | bytes) -> Reported:
    try:
        return _decoder.decode(text)
    except UNREADABLE:
        return _without_oddities(text)


def _without_oddities(text: Raw | bytes) -> Reported:
    """The totals, which have to be counts, and of all beside them what is one.

    A total that is no count is left out if it has a part that is one.
    """
    members = _members.decode(text)
    totals: dict[str, object] = {name: decode_count(members.get(name, NOT_GIVEN)) for name in _PARTS}
    reported = Reported()
    try:
        totals["total_tokens"] = decode_count(members.get("total_tokens", NOT_GIVEN))
    except UNREADABLE:
        if not any(totals.values()):
            raise
        totals["total_tokens"], reported = None, OddTotal()
    if totals["prompt_tokens"] is None and totals["total_tokens"] is None:
        for name in _INPUT_PARTS:
            decode_count(members.get(name, NOT_GIVEN))  # without it there is no telling the input
    for name, value in (totals | {name: members[name] for name in _OTHER_UNITS & members.keys()}).items():
        setattr(reported, name, value)
    for name in _SIDES & members.keys():
        setattr(reported, name, _side(name, members[name]))
    return reported


def _side(name: str, raw: Raw) -> object:
    try:
        if name == "iterations":
            return raw
        if not name.endswith("_details"):
            return side_count(raw)
        details = InputDetails if name.startswith(("prompt", "input")) else OutputDetails
        members = _members.decode(raw)
        return details(**{part: side_count(members.get(part, NOT_GIVEN)) for part in details.__struct_fields__})
    except UNREADABLE:
        return None


def _passes_of(raw: Raw) -> list[_Iteration] | None:
    """The passes that usage lists; None where they are odd. Raises `DecodeError` where they are too many."""
    if raw is NOT_GIVEN:
        return None
    text = bytes(raw)
    if text.count(b"{") > _MAX_PASSES:
        raise msgspec.DecodeError("more passes than a request can have")
    passes: list[_Iteration] | None
    try:
        passes = _passes.decode(text)
    except UNREADABLE:
        passes = _passes_with_fractions(text)
    return passes


def _passes_with_fractions(text: bytes) -> list[_Iteration] | None:
    names = _Iteration.__struct_fields__
    try:
        return [
            _Iteration(**{name: decode_count(one.get(name, NOT_GIVEN)) for name in names})
            for one in _passes_as_written.decode(text)
        ]
    except UNREADABLE:
        return None


def _summed(reported: Reported, passes: list[_Iteration]) -> Reported:
    """With the sums over all passes, where they are more: what was counted once is not taken back."""
    for name in _Iteration.__struct_fields__:
        counts = [count for one in passes if (count := getattr(one, name)) is not None]
        if counts:
            setattr(reported, name, max(sum(counts), getattr(reported, name) or 0))
    return reported
