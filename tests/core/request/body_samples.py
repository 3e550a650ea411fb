"""How the tests of request bodies write and read them."""

import json

from extproc.core.request.body import Malformed, RequestFacts, read_request
from extproc.core.request.endpoints import Endpoint, Target

JSON = "application/json"
# The least that each kind of JSON body needs.
LEAST = {
    Endpoint.CHAT_COMPLETIONS: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "hi"},
    Endpoint.RESPONSES: {"model": "m", "input": "hi"},
    Endpoint.MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "hi"},
    Endpoint.RERANK: {"model": "m", "query": "q", "documents": ["a", "b"]},
    Endpoint.SCORE: {"model": "m", "text_1": "q", "text_2": ["a", "b"]},
    Endpoint.TRANSCRIPTIONS: {"model": "m"},
    Endpoint.SPEECH: {"model": "m", "input": "hi"},
    Endpoint.IMAGES: {"model": "m", "prompt": "hi"},
}


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def text_of(endpoint: Endpoint, **fields: object) -> bytes:
    """A body of this kind. A field that is `...` is left out."""
    merged = LEAST[endpoint] | fields
    return dumps({name: value for name, value in merged.items() if value is not ...})


def read(endpoint: Endpoint, text: bytes, content_type: str = JSON) -> RequestFacts | Malformed:
    return read_request(Target(endpoint), text, content_type)


def facts(endpoint: Endpoint, **fields: object) -> RequestFacts:
    found = read(endpoint, text_of(endpoint, **fields))
    assert isinstance(found, RequestFacts), found
    return found


def problem(endpoint: Endpoint, **fields: object) -> Malformed:
    found = read(endpoint, text_of(endpoint, **fields))
    assert isinstance(found, Malformed), found
    assert found.message.endswith(".")
    return found
