"""Answer POST /v1/embeddings, /v1/rerank and /v1/score: they read tokens and generate none."""

import struct
from base64 import b64encode
from functools import partial
from hashlib import sha256
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

from extproc.local.model import usage
from extproc.local.model.api import ModelRequest, token_inputs
from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Planner
from extproc.local.model.service import Ready, Service, given, read_asked, read_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.events import Document
    from extproc.local.model.sending import Reply

# The dimensions of a vector, if the client gives none.
DIMENSIONS = 8
_MAX_DIMENSIONS = 4096

# Extra tokens of a pair of texts: a begin marker, one between and one at the end.
PAIR_TOKENS = 3

_Text = str | dict[str, Any]
_Texts = str | list[str | dict[str, Any]]


class EmbeddingRequest(ModelRequest, frozen=True, kw_only=True):
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class RerankRequest(ModelRequest, frozen=True, kw_only=True):
    query: _Text
    documents: _Texts
    top_n: int = 0


class ScoreRequest(ModelRequest, frozen=True, kw_only=True):
    """Hold the two sides of a score, in one of four spellings."""

    queries: _Texts | None = None
    documents: _Texts | None = None
    items: _Texts | None = None
    data_1: _Texts | None = None
    data_2: _Texts | None = None
    text_1: _Texts | None = None
    text_2: _Texts | None = None


async def embed(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, inputs = await read_json(request, EmbeddingRequest, partial(_read_inputs, service.planner))
    dimensions = DIMENSIONS if parsed.dimensions is None else parsed.dimensions
    vectors = [_vector(tokens, dimensions) for tokens in inputs]
    packed = parsed.encoding_format == "base64"
    data = [
        {"index": index, "object": "embedding", "embedding": _packed(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    read = sum(len(tokens) for tokens in inputs)
    document = {
        "id": f"embd-{asked.request_id}",
        "object": "list",
        "created": service.created,
        "model": parsed.model,
        "data": data,
        "usage": usage.pooled(read),
    }
    return given(service, asked, Ready(Kind.EMBEDDINGS, parsed.model, document, read))


async def rerank(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, scored = await read_json(request, RerankRequest, partial(_rank, service.planner))
    results: list[Document] = [
        {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": score}
        for index, (text, score, _) in enumerate(scored)
    ]
    results.sort(key=lambda result: result["relevance_score"], reverse=True)
    read = sum(tokens for _, _, tokens in scored)
    document: Document = {
        "id": f"rerank-{asked.request_id}",
        "model": parsed.model,
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "results": results[: parsed.top_n or None],
    }
    return given(service, asked, Ready(Kind.RERANK, parsed.model, document, read))


async def score(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, scored = await read_json(request, ScoreRequest, partial(_score_all, service.planner))
    data = [{"index": index, "object": "score", "score": value} for index, (value, _) in enumerate(scored)]
    read = sum(tokens for _, tokens in scored)
    document = {
        "id": f"score-{asked.request_id}",
        "object": "list",
        "created": service.created,
        "model": parsed.model,
        "data": data,
        "usage": usage.pooled(read),
    }
    return given(service, asked, Ready(Kind.SCORE, parsed.model, document, read))


def _read_inputs(planner: Planner, request: EmbeddingRequest) -> list[list[int]]:
    planner.check_model(request.model)
    if request.dimensions is not None and not 1 <= request.dimensions <= _MAX_DIMENSIONS:
        message = f"dimensions must be between 1 and {_MAX_DIMENSIONS}, got {request.dimensions}."
        raise ApiError(message, param="dimensions")
    return [planner.input_tokens(item, "input") for item in token_inputs(request.input, "input")]


def _rank(planner: Planner, request: RerankRequest) -> list[tuple[str, float, int]]:
    planner.check_model(request.model)
    if request.top_n < 0:
        raise ApiError(f"top_n must be at least 0, got {request.top_n}.", param="top_n")
    query = _text(request.query, "query")
    documents = _texts(request.documents, "documents")
    return [(text, *_scored(planner, query, text)) for text in documents]


def _score_all(planner: Planner, request: ScoreRequest) -> list[tuple[float, int]]:
    planner.check_model(request.model)
    names = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
    for first, second in names:
        left, right = getattr(request, first), getattr(request, second)
        if left is not None and right is not None:
            lefts, rights = _texts(left, first), _texts(right, second)
            break
    else:
        raise malformed("A score needs two sides: queries and documents, or text_1 and text_2", "queries")
    if len(lefts) == 1:
        lefts *= len(rights)
    if len(lefts) != len(rights):
        raise malformed(f"{first} must be one, or as many as {second}", first)
    return [_scored(planner, one, other) for one, other in zip(lefts, rights, strict=True)]


def _texts(given_texts: _Texts, param: str) -> list[str]:
    items = [given_texts] if isinstance(given_texts, str) else given_texts
    if not items:
        raise malformed(f"{param} must have at least one text", param)
    return [_text(item, param) for item in items]


def _text(item: _Text, param: str) -> str:
    text = item if isinstance(item, str) else item.get("text")
    if not isinstance(text, str):
        raise malformed(f"{param} must be texts, or objects with a `text`", param)
    return text


def _scored(planner: Planner, one: str, other: str) -> tuple[float, int]:
    """Return the similarity of two texts from 0 to 1 (the share of common tokens), and the number of tokens
    read.
    """
    left, right = planner.tokenizer.encode(one), planner.tokenizer.encode(other)
    read = len(left) + len(right) + PAIR_TOKENS
    if read > planner.max_model_len:
        message = f"This model's maximum context length is {planner.max_model_len} tokens, got {read} in a pair."
        raise ApiError(message, param="input_tokens")
    both = set(left) | set(right)
    return (len(set(left) & set(right)) / len(both) if both else 0.0, read)


def _vector(tokens: list[int], dimensions: int) -> list[float]:
    """Return a vector of length 1; the same tokens give the same vector."""
    seed = sha256(struct.pack(f">{len(tokens)}q", *tokens)).digest()
    raw = b""
    block = 0
    while len(raw) < dimensions:
        raw += sha256(seed + block.to_bytes(4)).digest()
        block += 1
    values = [byte - 127.5 for byte in raw[:dimensions]]
    length = sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def _packed(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
