"""Answer POST /tokenize and /detokenize."""

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from extproc.local.model.api import ChatMessage, countable
from extproc.local.model.errors import malformed
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Planner
from extproc.local.model.service import Ready, Service, given, read_asked, read_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.sending import Reply


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


async def tokenize(service: Service, request: "Request") -> "Reply":
    """Count the tokens. This costs nothing, because no model reads them."""
    asked = read_asked(request)
    planner = service.planner
    parsed, tokens = await read_json(request, TokenizeRequest, partial(_tokens, planner))
    pieces = [planner.tokenizer.decode([token]) for token in tokens] if parsed.return_token_strs else None
    document = {
        "count": len(tokens),
        "max_model_len": planner.max_model_len,
        "tokens": tokens,
        "token_strs": pieces,
    }
    return given(service, asked, Ready(Kind.TOKENIZE, parsed.model or planner.models[0], document))


async def detokenize(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    planner = service.planner
    parsed, text = await read_json(request, DetokenizeRequest, partial(_text, planner))
    return given(service, asked, Ready(Kind.TOKENIZE, parsed.model or planner.models[0], {"prompt": text}))


def _tokens(planner: Planner, request: TokenizeRequest) -> list[int]:
    planner.check_model(request.model or planner.models[0])
    if request.messages is not None:
        return planner.tokenizer.chat_tokens([countable(message) for message in request.messages])
    if request.prompt is None:
        raise malformed("Either prompt or messages must be provided.", "prompt")
    if request.add_special_tokens:
        return planner.tokenizer.text_tokens(request.prompt)
    return planner.tokenizer.encode(request.prompt)


def _text(planner: Planner, request: DetokenizeRequest) -> str:
    planner.check_model(request.model or planner.models[0])
    planner.check_tokens(request.tokens, "tokens")
    return planner.tokenizer.decode(request.tokens)
