"""Read a request body into `RequestFacts`, or into an error for the client; build the body for the upstream.

Only fields that matter for metering are read. The upstream judges all others. The package `bodies` has one reader
per kind of body.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from msgspec.structs import replace

from extproc.core.request.bodies import forms, generation, multipart, vectors
from extproc.core.request.bodies.facts import (
    MAX_CHOICES,
    MAX_TOKENS,
    UNNAMED,
    FieldError,
    Malformed,
    RequestFacts,
    is_model,
)
from extproc.core.request.bodies.json_body import JsonBody, json_body, without_mark
from extproc.core.request.bodies.prompts import prompt_texts
from extproc.core.request.bodies.rewriting import Rewriting, upstream_body, upstream_parts
from extproc.core.request.bodies.steering import STEERING_FIELDS, steers
from extproc.core.request.endpoints import MAX_MODEL_CHARS, Endpoint, Shape, Target

__all__ = [
    "MAX_CHOICES",
    "MAX_MODEL_CHARS",
    "MAX_TOKENS",
    "UNNAMED",
    "Malformed",
    "RequestFacts",
    "Rewriting",
    "prompt_texts",
    "read_request",
    "reads_body",
    "upstream_body",
    "upstream_parts",
]


class _Kind(NamedTuple):
    fields: frozenset[str]
    read: Callable[[JsonBody], RequestFacts]
    form: Callable[[multipart.Form], RequestFacts | Malformed] | None = None


_KINDS: Final = {
    Endpoint.CHAT_COMPLETIONS: _Kind(generation.CHAT_FIELDS, generation.read_chat),
    Endpoint.COMPLETIONS: _Kind(generation.COMPLETION_FIELDS, generation.read_completion),
    Endpoint.RESPONSES: _Kind(generation.RESPONSE_FIELDS, generation.read_response),
    Endpoint.MESSAGES: _Kind(generation.MESSAGE_FIELDS, generation.read_messages),
    Endpoint.EMBEDDINGS: _Kind(vectors.EMBEDDING_FIELDS, vectors.read_embedding),
    Endpoint.RERANK: _Kind(vectors.PAIR_FIELDS, vectors.read_pairs),
    Endpoint.SCORE: _Kind(vectors.PAIR_FIELDS, vectors.read_pairs),
    Endpoint.TRANSCRIPTIONS: _Kind(forms.FORM_FIELDS, forms.read_described, forms.read_uploaded),
    Endpoint.SPEECH: _Kind(forms.FORM_FIELDS, forms.read_described),
    Endpoint.IMAGES: _Kind(forms.FORM_FIELDS, forms.read_described, forms.read_uploaded),
}
_SHAPES: Final = {
    Shape.STORED_PROMPT: _Kind(generation.CHAT_FIELDS, generation.read_stored_chat),
    Shape.ANY: _Kind(generation.INVOCATION_FIELDS, generation.read_invocation),
}
_BAD_PATH_MODEL: Final = Malformed(
    f"The model that the path names must be 1 to {MAX_MODEL_CHARS} printable characters.", "model"
)


def read_request(
    target: Target, body: bytes, content_type: str, allowed: Collection[str] = ()
) -> RequestFacts | Malformed:
    """Return the facts of a request, or the first error in it. Never raise.

    `allowed` are the parameters of `STEERING_FIELDS` that a caller may use.

    A body is read as JSON whatever its content type says, as servers do, unless the content type says that it is a
    form. Endpoints that count requests and no tokens don't need the body: the model is in the path. The model of
    any other request is the one that its body names, else the one in its path, else `UNNAMED`. Where the server
    goes by the path, it is the one in the path.
    """
    kind = _KINDS.get(target.endpoint)
    if kind is None:
        return _without_body(target)
    if target.shape is not Shape.USUAL:
        kind = _SHAPES[target.shape]
    facts = _read(kind, body, content_type, allowed)
    if target.model is None or isinstance(facts, Malformed) or (facts.model != UNNAMED and not target.decides):
        return facts
    return replace(facts, model=target.model) if is_model(target.model) else _BAD_PATH_MODEL


def _read(kind: _Kind, body: bytes, content_type: str, allowed: Collection[str]) -> RequestFacts | Malformed:
    try:
        if multipart.is_multipart(content_type):
            return _read_form(kind, body, content_type, allowed)
        steering = STEERING_FIELDS - frozenset(allowed) if allowed else STEERING_FIELDS
        read = json_body(without_mark(body), kind.fields, steering)
        return read if isinstance(read, Malformed) else kind.read(read)
    except FieldError as error:
        return error.malformed
    except RecursionError:
        return Malformed("The body is nested too deeply.", code="invalid_json")


def _read_form(kind: _Kind, body: bytes, content_type: str, allowed: Collection[str]) -> RequestFacts | Malformed:
    if kind.form is None:
        return Malformed("'content-type' must be application/json here.", "content-type", "invalid_content_type")
    form = multipart.read_form(content_type, body)
    if isinstance(form, Malformed):
        return form
    steering = next((name for name, _ in form.fields if name in STEERING_FIELDS and name not in allowed), None)
    return steers(steering) if steering is not None else kind.form(form)


def reads_body(target: Target) -> bool:
    """Return whether `read_request` parses the body. It does not where requests are counted, and no tokens."""
    return target.endpoint in _KINDS


def _without_body(target: Target) -> RequestFacts | Malformed:
    model = target.model
    if model is not None and not is_model(model):
        return _BAD_PATH_MODEL
    return RequestFacts(
        model=model or "",
        stream=False,
        choices=1,
        output_bound=None,
        prompt_bytes=0,
        media_parts=0,
        wants_usage=True,
        generates=False,
        counts_tokens=False,
    )
