"""Rewrite a body for the upstream: ask for usage, bound the output, leave every other value as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.request.bodies.generation import (
    CHAT_BOUNDS,
    COMPLETION_BOUNDS,
    COMPLETION_DEFAULT_TOKENS,
    MESSAGE_BOUNDS,
    RESPONSE_BOUNDS,
)
from extproc.core.request.bodies.json_body import without_mark
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.layout import Layout

# The first name is always written. For chats all servers obey `max_tokens`, except OpenAI's reasoning models,
# which reject it. Ollama and Text Generation Inference take `max_completion_tokens` and ignore it.
_BOUNDS: Final = {
    Endpoint.CHAT_COMPLETIONS: CHAT_BOUNDS,
    Endpoint.COMPLETIONS: COMPLETION_BOUNDS,
    Endpoint.RESPONSES: RESPONSE_BOUNDS,
    Endpoint.MESSAGES: MESSAGE_BOUNDS,
}
# A chat goes upstream with one of these: OpenAI, Azure and Volcengine refuse both at once.
_EITHER: Final = frozenset({"max_tokens", "max_completion_tokens"})
_NEWER: Final = "max_completion_tokens"  # servers that read both go by it
_ASKED_FOR_USAGE: Final = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS})
# Anthropic's smallest budget for thinking. It has to be less than max_tokens.
_LEAST_THINKING_TOKENS: Final = 1024

_AFTER_A_BOUND: Final = ("min_tokens", "thinking")
# All fields that may be written, by endpoint.
REWRITTEN: Final = {
    endpoint: frozenset({*names, *_AFTER_A_BOUND, "stream_options"}) for endpoint, names in _BOUNDS.items()
}

_object: Final = msgspec.json.Decoder(dict[str, Raw] | None)
_integer: Final = msgspec.json.Decoder(int)
_Fields = Mapping[str, Raw]


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Say what is changed in a body.

    `add_usage` asks for usage in a stream of chunks, with `continuous` in each of them; other kinds of endpoint
    always report it. Else a client that left out `include_usage` gets no continuous statistics either, even if it
    asked for them: they mean nothing on their own, and with `include_usage` they would show up in its chunks.

    `output_bound` (at least 1; tokens per choice) lowers each bound of the client. The bound is also written to
    the field that the upstream obeys: `bound_field` for chats whose upstream needs another name than `max_tokens`,
    else the API's own field. A chat loses the other one of `max_tokens` and `max_completion_tokens`; if the client
    gave both, the value of the latter stays. Values that may not exceed the bound (`min_tokens`, the thinking
    budget) are lowered too. Thinking is turned off if the bound leaves too little for it. If a field that is not
    read occurs twice, the last one stays. Kinds that are not boundable stay unchanged.
    """

    add_usage: bool
    output_bound: int | None
    bound_field: str | None = None
    continuous: bool = False

    def changes(self, endpoint: Endpoint) -> bool:
        """Tell whether a body of this endpoint may change."""
        if self.add_usage and endpoint in _ASKED_FOR_USAGE:
            return True
        return self.output_bound is not None and endpoint in _BOUNDS


def upstream_body(target: Target, body: bytes, wanted: Rewriting) -> bytes | None:
    """Return the body for the upstream, or None to forward the client's own.

    `read_request` must have accepted it.
    """
    if not wanted.changes(target.endpoint):
        return None
    changed = _changed(target, _object.decode(without_mark(body)) or {}, wanted)
    return None if changed is None else msgspec.json.encode(changed)


def upstream_parts(
    target: Target, body: Sequence[bytes], layout: Layout, wanted: Rewriting
) -> list[bytes | memoryview] | None:
    """Return the same in parts, of a body that was read apart. It is neither parsed nor copied."""
    if not wanted.changes(target.endpoint):
        return None
    changed = _changed(target, layout.fields(), wanted)
    return None if changed is None else layout.changed(body, changed)


def _changed(target: Target, fields: _Fields, wanted: Rewriting) -> dict[str, Raw] | None:
    """Return all fields as the upstream gets them; None if none of them changes."""
    output_bound, names = wanted.output_bound, _BOUNDS.get(target.endpoint, ())
    changes: dict[str, Raw] = {}
    dropped: frozenset[str] = frozenset()
    if wanted.add_usage and target.endpoint in _ASKED_FOR_USAGE:
        changes["stream_options"] = _with_usage(fields, continuous=wanted.continuous)
    if output_bound is not None and names:
        if target.endpoint is Endpoint.CHAT_COMPLETIONS:
            names = names if wanted.bound_field is None else (wanted.bound_field, *names)
            others = _EITHER - {names[0]} if names[0] in _EITHER else ()
            dropped = frozenset(name for name in others if _int(fields.get(name)) is not None)
        default = COMPLETION_DEFAULT_TOKENS if target.endpoint is Endpoint.COMPLETIONS else None
        changes |= _bounded(fields, names, dropped, output_bound, default)
    if not changes and not dropped:
        return None
    return {name: value for name, value in fields.items() if name not in dropped} | changes


def _with_usage(fields: _Fields, *, continuous: bool) -> Raw:
    options = _object.decode(fields["stream_options"]) if "stream_options" in fields else None
    changed = dict(options or {}) | {"include_usage": Raw(b"true")}
    if continuous:
        changed["continuous_usage_stats"] = Raw(b"true")
    elif "continuous_usage_stats" in changed:
        changed["continuous_usage_stats"] = Raw(b"false")
    return Raw(msgspec.json.encode(changed))


def _bounded(
    fields: _Fields, names: tuple[str, ...], dropped: frozenset[str], bound: int, default: int | None
) -> dict[str, Raw]:
    """Return the fields to write for a bound. The first of `names` takes the place of those dropped."""
    own = {name: value for name in names if (value := _int(fields.get(name))) is not None}
    newer = own.get(_NEWER, -1)
    if dropped and newer >= 0:
        own = {name: value for name, value in own.items() if name not in dropped} | {names[0]: newer}
    # A negative one stands for no bound.
    unbounded = min(own.values(), default=-1 if default is None else 0) < 0
    most = bound if unbounded else min(bound, max(own.values(), default=default or 0))
    lowered = {name: bound for name, value in own.items() if name not in dropped and not 0 <= value <= bound}
    stands = names[0] in own and (newer >= 0 or not dropped)
    first = min(bound, own[names[0]]) if stands and own[names[0]] >= 0 else most
    if _int(fields.get(names[0])) != first:
        lowered[names[0]] = first
    changes = {name: _raw(value) for name, value in lowered.items()}
    if not changes:
        return changes
    least = _int(fields.get("min_tokens"))
    if least is not None and least > most:
        changes["min_tokens"] = _raw(most)
    if "thinking" in fields:
        changes |= _thinking_within(most, fields["thinking"])
    return changes


def _thinking_within(bound: int, raw: Raw) -> dict[str, Raw]:
    try:
        thinking = _object.decode(raw) or {}
    except msgspec.DecodeError:
        return {}  # no object: the upstream will refuse it
    budget = _int(thinking.get("budget_tokens"))
    if budget is None or budget < bound:
        return {}
    if bound <= _LEAST_THINKING_TOKENS:
        return {"thinking": Raw(b'{"type":"disabled"}')}
    return {"thinking": Raw(msgspec.json.encode(thinking | {"budget_tokens": bound - 1}))}


def _int(raw: Raw | None) -> int | None:
    try:
        return None if raw is None else _integer.decode(raw)
    except msgspec.DecodeError:
        return None


def _raw(value: int) -> Raw:
    return Raw(str(value).encode())
