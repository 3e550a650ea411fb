"""Format usage for each API, with the requested details."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extproc.local.model.details import Details
    from extproc.local.model.events import Document


def counts(prompt_tokens: int, completion_tokens: int) -> "Document":
    """Return the counts alone, in vLLM's order."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def pooled(prompt_tokens: int) -> "Document":
    """Return the usage of an endpoint that generates nothing."""
    return counts(prompt_tokens, 0) | {"prompt_tokens_details": None, "completion_tokens_details": None}


def plain(prompt_tokens: int, completion_tokens: int, details: "Details", *, tells_writes: bool) -> "Document":
    """Return the usage of a plain chat or completion. With `tells_writes` it reports tokens written to the
    cache.
    """
    details = details.within(prompt_tokens, completion_tokens)
    heard: Document = {"audio": details.audio_in} if details.audio_in else {}
    written = details.cache_write if tells_writes or details.cache_write else None
    prompt: Document = {
        "cached_tokens": details.cached,
        "created_cache_tokens": written,
        "multimodal_tokens": heard or None,
    }
    return counts(prompt_tokens, completion_tokens) | {
        "prompt_tokens_details": prompt | _heard(details),
        "completion_tokens_details": _produced(details) or None,
    }


def streamed(prompt_tokens: int, completion_tokens: int, details: "Details", *, tells_writes: bool) -> "Document":
    """Return the usage in the last chunk of a chat or completion."""
    details = details.within(prompt_tokens, completion_tokens)
    prompt = {"cached_tokens": details.cached}
    if tells_writes or details.cache_write:
        prompt["created_cache_tokens"] = details.cache_write
    usage = counts(prompt_tokens, completion_tokens) | {"prompt_tokens_details": prompt | _heard(details)}
    produced = _produced(details)
    return usage | {"completion_tokens_details": produced} if produced else usage


def responses(prompt_tokens: int, completion_tokens: int, details: "Details") -> "Document":
    details = details.within(prompt_tokens, completion_tokens)
    read = {
        "cached_tokens": details.cached,
        "cache_write_tokens": details.cache_write,
        "input_tokens_per_turn": [],
        "cached_tokens_per_turn": [],
    }
    produced = {
        "reasoning_tokens": details.reasoning,
        "tool_output_tokens": 0,
        "output_tokens_per_turn": [],
        "tool_output_tokens_per_turn": [],
    }
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": read,
        "output_tokens": completion_tokens,
        "output_tokens_details": produced,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def messages(prompt_tokens: int, completion_tokens: int, details: "Details") -> "Document":
    """Return Anthropic's usage: tokens read from or written to the cache are added to the input tokens, not part
    of them.
    """
    details = details.within(prompt_tokens, completion_tokens)
    return {
        "input_tokens": prompt_tokens - details.cached - details.cache_write,
        "output_tokens": completion_tokens,
        "cache_creation_input_tokens": details.cache_write,
        "cache_read_input_tokens": details.cached,
    }


def _heard(details: "Details") -> "Document":
    return {"audio_tokens": details.audio_in} if details.audio_in else {}


def _produced(details: "Details") -> "Document":
    told = {"reasoning_tokens": details.reasoning, "audio_tokens": details.audio_out}
    return {key: count for key, count in told.items() if count}
