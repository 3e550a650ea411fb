"""Extract the texts of a prompt, so that a tokenizer can count them exactly."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.request.bodies.forms import MEDIA_FIELDS as FORM_MEDIA
from extproc.core.request.bodies.media import (
    CONTAINERS,
    MEDIA_FIELDS,
    MESSAGE,
    NEITHER,
    OF_BODIES,
    OF_MESSAGES,
    PART,
    is_data_url,
    is_payload,
)
from extproc.core.request.bodies.vectors import DOCUMENTS, QUERIES
from extproc.core.request.endpoints import Endpoint, Target

# The most text in all. A query is repeated for each document.
MAX_TEXT_CHARS: Final = 1 << 24
MAX_TEXTS: Final = 1 << 18

_object: Final = msgspec.json.Decoder(dict[str, Raw])
# Python takes numbers that are too large for a float, as the servers do.
_anything: Final = msgspec.json.Decoder(float_hook=float)
# The fields that hold messages, and those that hold content. A template writes all other fields as JSON.
_MESSAGES: Final = frozenset({"messages", "input", "previous_input_messages"})
_CONTENT: Final = frozenset(
    {
        *("system", "instructions", "prompt", "suffix", "hotwords", "negative_prompt"),
        *("input_prefix", "input_suffix", "input_extra"),
        *("inputs", "texts", "content", "text", "instruction", "instruct"),
    }
)
_SIDES: Final = frozenset({*QUERIES, *DOCUMENTS})
_MEDIA_SOURCES: Final = ("base64", "url", "file")
_COMPARED: Final = frozenset({Endpoint.RERANK, Endpoint.SCORE})
# There, all texts are parts, and a data URL is none.
_EMBEDDED: Final = frozenset({Endpoint.EMBEDDINGS, *_COMPARED})
_NO_TEXT: Final = frozenset({*FORM_MEDIA, *OF_BODIES})
# A template's text per message is counted per message. Any other role is text.
_ROLES: Final = frozenset({"user", "assistant", "system", "developer", "tool", "function"})
_MAX_TYPE_CHARS: Final = 64
# The arguments of a tool call. A template writes them as JSON, with names and numbers.
_ARGUMENTS: Final = frozenset({"input", "arguments"})


def prompt_texts(target: Target, prompt: bytes) -> list[str] | None:
    """Return the texts that become prompt, from `RequestFacts.prompt`, without media payloads and token ids.

    Return None if the texts are unknown, or exceed `MAX_TEXT_CHARS` or `MAX_TEXTS`; the estimate by bytes then
    remains. Never raise. Takes linear time: run it in a thread, not on the event loop.
    """
    if prompt.count(b"[") + prompt.count(b"{") > MAX_TEXTS:
        return None  # before millions of lists are built
    try:
        written = {name: raw for name, raw in _object.decode(prompt).items() if name not in _NO_TEXT}
        values = {name: _value(target, name, raw) for name, raw in written.items()}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    embedded = target.endpoint in _EMBEDDED
    messages = _MESSAGES - {"input"} if embedded else _MESSAGES
    texts = {name: _leaves(value, MESSAGE if name in messages else PART) for name, value in values.items()}
    if embedded:
        texts = {name: [text for text in found if not is_data_url(text)] for name, found in texts.items()}
    again = _times_read(values) if target.endpoint in _COMPARED else 1
    times = dict.fromkeys(QUERIES, again)
    count = sum(len(found) * times.get(name, 1) for name, found in texts.items())
    chars = sum(sum(map(len, found)) * times.get(name, 1) for name, found in texts.items())
    if count > MAX_TEXTS or chars > MAX_TEXT_CHARS:
        return None
    return [text for name, found in texts.items() for text in found * times.get(name, 1)]


def _value(target: Target, name: str, raw: Raw) -> object:
    if target.endpoint in _COMPARED:
        is_text = name in _SIDES or name in _CONTENT
    else:
        # In a response, `text` is an object of options; elsewhere it is text to embed.
        is_option = target.endpoint is Endpoint.RESPONSES and name == "text"
        is_text = name in _MESSAGES or (name in _CONTENT and not is_option)
    return _anything.decode(raw) if is_text else bytes(raw).decode()


def _times_read(values: Mapping[str, object]) -> int:
    """Return how often a query is read: once per document if there is one query."""
    queries = sum(1 if name == "query" else _length(values[name]) for name in QUERIES if name in values)
    documents = sum(_length(values[name]) for name in DOCUMENTS if name in values)
    return max(1, documents) if queries == 1 else 1


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 1


def _leaves(value: object, place: int) -> list[str]:
    """Return all strings in a value that become prompt, in order."""
    found: list[str] = []
    rest: list[tuple[object, int]] = [(value, place)]
    while rest and len(found) <= MAX_TEXTS:
        node, place = rest.pop()
        if isinstance(node, str):
            found.append(node)
        elif isinstance(node, list):
            rest.extend((element, place) for element in reversed(node))
        elif isinstance(node, dict):
            rest.extend(reversed(list(_fields(node, place))))
    return found


def _fields(node: Mapping[str, object], place: int) -> Iterator[tuple[object, int]]:
    """Yield the members of an object that are text or may contain text. Leaves out only recognised media."""
    kind = node.get("type")
    for name, value in node.items():
        if place == PART and name in MEDIA_FIELDS and (name != "source" or _is_media(value)):
            continue
        if (place == MESSAGE and name in OF_MESSAGES) or (place != NEITHER and is_payload(name, kind, place)):
            continue
        if _is_overhead(name, value):
            continue
        if name in _ARGUMENTS and isinstance(value, dict):
            yield (msgspec.json.encode(value).decode(), NEITHER)
        elif name == "source":
            yield (value, place)  # a document that is text, or has content of its own
        else:
            yield (value, PART if name in CONTAINERS and place != NEITHER else NEITHER)


def _is_media(source: object) -> bool:
    return isinstance(source, dict) and source.get("type") in _MEDIA_SOURCES


def _is_overhead(name: str, value: object) -> bool:
    if name == "role":
        return isinstance(value, str) and value in _ROLES
    return name == "type" and isinstance(value, str) and len(value) <= _MAX_TYPE_CHARS
