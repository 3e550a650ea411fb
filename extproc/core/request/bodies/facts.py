"""What admission and metering need to know of a request, and what a client reads who sent a bad one."""

from dataclasses import dataclass
from typing import Final

from extproc.core.request.endpoints import MAX_MODEL_CHARS

__all__ = ["MAX_CHOICES", "MAX_MODEL_CHARS", "MAX_TOKENS", "FieldError", "Malformed", "RequestFacts", "is_model"]

# One request may ask for at most this many tokens per choice (product bound) ...
MAX_TOKENS: Final = 10_000_000
# ... and for as many choices as the most permissive server takes (vLLM's default cap). Also the bound on messages
# and on prompts in one request, and on the product of prompts and choices.
MAX_CHOICES: Final = 16_384


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What admission and metering need to know of a request.

    `choices` is the number of sequences that are generated, over all prompts. `output_bound` is tokens per choice,
    None where the client gave none. `prompt_bytes` is the size of all that becomes prompt, media left out: a
    byte-level tokenizer makes no more tokens of it, but one that normalises Unicode first can. Fields that we do
    not know are in it beyond 1024 bytes. `media_parts` counts images, audio and files, carried or named.
    `wants_usage` is False only where usage has to be asked for and then hidden from this client.

    `prompt` is the raw JSON (an object) of what becomes prompt, for `prompt_texts`; it holds a copy of most of the
    body, so whoever keeps facts for long drops it. `messages` is how often a chat template adds its overhead.
    `prompt_tokens` is set where the client gave token ids. `boundable`: `upstream_body` can write an output bound.
    `unbounded_prompt`: the server adds to the prompt what the body does not show (an earlier conversation, remote
    media, a search), so that no bound on it can be proven. `further_bytes` are fields that nobody here knows and
    that are too small to be in `prompt_bytes`: they may become prompt all the same. `usual_bound` is what servers
    take for the output bound where there is none.
    """

    model: str
    stream: bool
    choices: int
    output_bound: int | None
    prompt_bytes: int
    media_parts: int
    wants_usage: bool
    prompt: bytes = b""
    messages: int = 1
    prompt_tokens: int | None = None
    boundable: bool = False
    unbounded_prompt: bool = False
    generates: bool = True
    counts_tokens: bool = True
    further_bytes: int = 0
    usual_bound: int | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that can't be metered: what the client reads. `param` names the field, None for the body."""

    message: str
    param: str | None = None
    code: str = "invalid_value"


class FieldError(Exception):
    """Inside the readers: the first field that is wrong. Never leaves `read_request`."""

    def __init__(self, param: str, rule: str) -> None:
        self.malformed = Malformed(f"'{param}' must be {rule}.", param)


def is_model(name: str) -> bool:
    """Whether a model's name from a path or a form can be metered, and shown in a log or a table."""
    return 0 < len(name) <= MAX_MODEL_CHARS and name.isprintable() and name == name.strip()
