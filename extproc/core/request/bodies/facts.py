"""Define the facts of a request that admission and metering need, and the error for a malformed one."""

from typing import Final

from msgspec import Struct

from extproc.core.request.endpoints import MAX_MODEL_CHARS

__all__ = [
    "MAX_CHOICES",
    "MAX_MODEL_CHARS",
    "MAX_TOKENS",
    "UNNAMED",
    "FieldError",
    "Malformed",
    "RequestFacts",
    "is_model",
]

# The model of a request that names none: servers with one model need no name.
UNNAMED: Final = "(unnamed)"
# A request may ask for at most this many tokens per choice (our own bound) ...
MAX_TOKENS: Final = 10_000_000
# ... and for as many choices as the most permissive server takes (vLLM's default cap). Also bounds the number of
# messages, the number of prompts, and the product of prompts and choices.
MAX_CHOICES: Final = 16_384


class RequestFacts(Struct, frozen=True):
    """Hold the facts of a request that admission and metering need.

    `model` is `UNNAMED` if neither the path nor the body names one. `choices` is the number of sequences to
    generate, over all prompts. `output_bound` is in tokens per choice, None if the client gave none.
    `prompt_bytes` is the size of everything that becomes prompt, without media: a byte-level tokenizer makes at
    most one token of each byte, but one that normalises Unicode first can make more. Unknown fields count in
    `prompt_bytes` beyond 1024 bytes. `media_parts` counts images, audio and files, embedded or referenced.
    `wants_usage` is False only if we have to ask for usage and hide it from this client.

    `prompt` is the raw JSON object of the prompt fields, for `prompt_texts`. `prompt` copies most of the body, so
    drop it before keeping facts for long. `messages` is the number of times that a chat template adds its
    overhead. `prompt_tokens` is set if the client gave token ids. `boundable`: `upstream_body` can write an output
    bound. `unbounded_prompt`: the server adds text that the body does not show (an earlier conversation, remote
    media, a search), so no bound on the prompt can be proven. `further_bytes` is the size of unknown fields that
    are too small to be in `prompt_bytes`; they may still become prompt. `usual_bound` is the output bound that
    servers assume if the request has none. `bound_is_common` is False if the bound is only in fields that many
    servers ignore. `tells_usage` is False if the answer was asked for in a form without usage. `wants_continuous`:
    the client asked for usage in every chunk. `tools`: tools that the model may call are part of the prompt.
    `truncates`: the client asked the server to cut the prompt, so it may have far fewer tokens than its size says.
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
    bound_is_common: bool = True
    tells_usage: bool = True
    wants_continuous: bool = False
    tools: bool = False
    truncates: bool = False


class Malformed(Struct, frozen=True):
    """Report a request that can't be metered. The client reads `message`; `param` is the field, None for the
    body.
    """

    message: str
    param: str | None = None
    code: str = "invalid_value"


class FieldError(Exception):
    """Carry the first wrong field out of a reader. Never leaves `read_request`."""

    def __init__(self, param: str, rule: str) -> None:
        self.malformed = Malformed(f"'{param}' must be {rule}.", param)


def is_model(name: str) -> bool:
    """Return whether a model's name from a path or form can be metered, and shown in a log or table."""
    return 0 < len(name) <= MAX_MODEL_CHARS and name.isprintable() and name == name.strip()
