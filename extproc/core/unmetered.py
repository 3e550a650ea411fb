"""Decide which requests that no endpoint meters may pass: those that read, and those that a list names."""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final

from extproc.core.quota.limits import matches
from extproc.core.request.endpoints import NO_GET, OVERRIDES, READING, Endpoint, PathProblem, Target, spellings


class Refusal(Enum):
    """Say why a request that is not metered is refused. The value is for people: what to do instead."""

    UNKNOWN = "it is no endpoint whose tokens are counted"
    BATCH = "batches run when no client waits, so nothing counts their tokens; send the requests one by one"
    REALTIME = "realtime sessions have no end at which their tokens could be counted; use chat completions"
    THREAD = (
        "threads and assistants run when no client waits, so nothing counts their tokens; use chat completions"
    )


# What generates nothing: it counts or splits text, renders a prompt, describes, stores or stops something.
_FREE_LAST: Final = frozenset(
    {"tokenize", "detokenize", "chat_tokenize", "apply-template", "count_tokens", "ping"}  # SageMaker pings
)
# vLLM writes the prompt of a request to one of these endpoints as tokens, and generated tokens as an answer.
_RENDERED: Final = frozenset({"completions", "messages", "responses"})
_RENDERING: Final = frozenset({"render", "derender"})
_FREE_LAST_TWO: Final = frozenset(
    {
        ("responses", "input_tokens"),
        ("v1", "files"),
        ("api", "show"),  # Ollama: a model's description
        ("repository", "index"),  # KServe v2: the list of models
    }
)
_FREE_VERB: Final = ":counttokens"  # Gemini
_WORDS: Final = {
    "batches": Refusal.BATCH,
    "batch": Refusal.BATCH,
    "realtime": Refusal.REALTIME,
    "threads": Refusal.THREAD,
    "assistants": Refusal.THREAD,
}


def refusal(path: str, allowed: Collection[str]) -> Refusal | None:
    """Return why a POST to a path that is no metered endpoint is refused; None if it passes.

    `allowed` are globs of whole paths. A path passes only if each way in which a server may read it passes: what
    one server takes for `/tokenize` must not be `/generate` for another.
    """
    for segments in spellings(path):
        if not (_is_free(segments) or is_allowed(segments, allowed)):
            words = (_WORDS.get(segment) for segment in segments)
            return next((found for found in words if found is not None), Refusal.UNKNOWN)
    return None


def generates_nothing(method: str, target: Target | PathProblem, headers: Mapping[str, str]) -> bool:
    """Tell whether nothing is generated: the request is a CORS preflight, or a GET that is nothing else."""
    if method == "OPTIONS":
        return True
    asks_us = isinstance(target, Target) and target.endpoint is Endpoint.QUOTA
    return method in READING and not asks_us and NO_GET.isdisjoint(headers)


def may_post(method: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a request is a POST, or one that some frameworks take for a POST."""
    return method == "POST" or not OVERRIDES.isdisjoint(headers)


def asks_for_websocket(headers: Mapping[str, str]) -> bool:
    """Tell whether a request opens a WebSocket."""
    return "websocket" in headers.get("upgrade", "").lower()


def is_allowed(segments: tuple[str, ...], allowed: Collection[str]) -> bool:
    """Return whether one of the globs `allowed` names this path. A slash at its end makes no difference."""
    path = "/" + "/".join(segments)
    return any(matches(glob, path) for glob in allowed)


def _is_free(segments: tuple[str, ...]) -> bool:
    last = segments[-1] if segments else ""
    if last in _FREE_LAST or last.endswith(_FREE_VERB) or segments[-2:] in _FREE_LAST_TWO:
        return True
    if last in _RENDERING:
        return not _RENDERED.isdisjoint(segments[-2:-1])
    return last == "cancel" and segments[-3:-2] == ("responses",)
