"""Read a large body in another process: the request for it and its result, as bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from extproc.core.request.bodies.facts import FieldError, Malformed, RequestFacts
from extproc.core.request.bodies.json_body import without_mark
from extproc.core.request.bodies.prompts import prompt_texts
from extproc.core.request.bodies.rewriting import REWRITTEN
from extproc.core.request.body import read_request
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.layout import Layout, layout_of

# More text is not counted with a tokenizer, so it is not sent back.
MAX_TEXT_BYTES: Final = 512 << 10


class Unread(StrEnum):
    """Say why a body was not read: too many bodies wait, or the process that read it failed."""

    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold what is needed to read a body, beside the body.

    `allowed` are the parameters and headers that a caller may use to steer the model server. With `wants_prompt`,
    the facts have the texts of the prompt, for a tokenizer.
    """

    target: Target
    content_type: str
    allowed: frozenset[str] = frozenset()
    wants_prompt: bool = False


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """Hold the facts of a body that was read apart, and its layout; None for a body that is not rewritten.

    `facts.prompt` is small: it has the texts alone, or nothing.
    """

    facts: RequestFacts
    layout: Layout | None


class _Result(msgspec.Struct):
    facts: RequestFacts | None = None
    layout: Layout | None = None
    malformed: Malformed | None = None


_reading: Final = msgspec.msgpack.Decoder(Reading)
_result: Final = msgspec.msgpack.Decoder(_Result)


def prepared() -> Callable[[bytes, bytes], bytes]:
    """Return the function that a worker process runs for each body."""
    return perform


def packed(reading: Reading) -> bytes:
    """Return the request as bytes, for `perform`."""
    return msgspec.msgpack.encode(reading)


def perform(request: bytes, body: bytes) -> bytes:
    """Read a body, and return the result as bytes, for `unpacked`. Raise nothing."""
    reading = _reading.decode(request)
    facts = read_request(reading.target, body, reading.content_type, reading.allowed)
    if isinstance(facts, Malformed):
        return msgspec.msgpack.encode(_Result(malformed=facts))
    try:
        layout = _layout(body, reading.target.endpoint) if facts.boundable else None
    except FieldError as error:
        return msgspec.msgpack.encode(_Result(malformed=error.malformed))
    prompt = _texts(reading, facts) if reading.wants_prompt else b""
    return msgspec.msgpack.encode(_Result(replace(facts, prompt=prompt), layout))


def _layout(body: bytes, endpoint: Endpoint) -> Layout:
    plain = without_mark(body)
    return layout_of(plain, REWRITTEN[endpoint]).behind(len(body) - len(plain))


def unpacked(result: bytes) -> BodyFacts | Malformed:
    """Return the result of `perform`."""
    found = _result.decode(result)
    if found.facts is None:
        return found.malformed or Malformed("The body can't be read.")
    return BodyFacts(found.facts, found.layout)


def _texts(reading: Reading, facts: RequestFacts) -> bytes:
    texts = prompt_texts(reading.target, facts.prompt)
    if texts is None or sum(map(len, texts)) > MAX_TEXT_BYTES:
        return b""
    prompt = msgspec.json.encode({"content": texts})  # text for every endpoint
    return prompt if len(prompt) <= 2 * MAX_TEXT_BYTES else b""
