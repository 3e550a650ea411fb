"""Write a corpus of requests, always the same one: what tenants of many kinds would send.

Each tenant sends requests of one kind of text or of a mixture, through one kind of client. Half of its requests are
there to learn from, the other half to judge by.
"""

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from extproc.core.request.endpoints import Endpoint

# Sentences of many languages, snippets of code, and names. {n} stands for a number, {w} for a name.
_TEXTS = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))
SENTENCES, SNIPPETS, NAMES = _TEXTS["sentences"], _TEXTS["snippets"], _TEXTS["names"]

EACH = 64  # requests of a tenant: half of them to learn from
KINDS = (*SENTENCES, "code", "json", "digits", "base64")
CHAT, MESSAGES, RESPONSES = Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES, Endpoint.RESPONSES
LATIN = ("en", "de", "fr", "es", "pl", "tr", "vi")
# How clients write JSON: with spaces or without, text of other scripts as it is or escaped.
FORMS = ("compact", "spaced", "escaped")


class Tenant(NamedTuple):
    """A tenant of the corpus: an endpoint, the kinds of its texts, whether it sends tools."""

    endpoint: Endpoint
    kinds: tuple[str, ...]
    tools: bool
    form: str

    @property
    def name(self) -> str:
        kinds = self.kinds[0] if len(self.kinds) == 1 else f"mixed-{len(self.kinds)}"
        return f"{self.endpoint}/{kinds}{'/tools' if self.tools else ''}"


class Request(NamedTuple):
    """A request: its body as sent, and what it was made of."""

    tenant: Tenant
    number: int
    body: dict
    sent: bytes


def tenants() -> list[Tenant]:
    mixtures = (LATIN, ("en", "code"), ("en", "zh", "ru"), KINDS)
    lines = [
        *((CHAT, (kind,), False) for kind in KINDS),
        *((CHAT, kinds, False) for kinds in mixtures),
        *((CHAT, kinds, True) for kinds in (("en",), ("code",), ("zh",), ("en", "code", "json"))),
        *((MESSAGES, kinds, False) for kinds in (("en",), ("ru",), ("zh",), ("code",), *mixtures)),
        *((MESSAGES, kinds, True) for kinds in (("en",), ("code",))),
        *((RESPONSES, kinds, False) for kinds in (("en",), ("hi",), ("ja",), ("code",), *mixtures)),
        *((RESPONSES, kinds, True) for kinds in (("en",), ("code",))),
    ]
    return [Tenant(*line, FORMS[place % len(FORMS)]) for place, line in enumerate(lines)]


def corpus() -> Iterator[Request]:
    """Yield all requests, tenant by tenant."""
    for place, tenant in enumerate(tenants()):
        rng = random.Random(place)
        tools = [_tool(rng) for _ in range(12)]
        for number in range(EACH):
            body = _body(rng, tenant, tools)
            yield Request(tenant, number, body, written(body, tenant.form))


def written(body: dict, form: str) -> bytes:
    separators = (", ", ": ") if form == "spaced" else (",", ":")
    return json.dumps(body, ensure_ascii=form == "escaped", separators=separators).encode()


def text(rng: random.Random, kind: str, size: int) -> str:
    """Return a text of about so many characters."""
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        parts.append(_part(rng, kind, size))
    return "".join(parts).strip()


def _part(rng: random.Random, kind: str, size: int) -> str:
    if kind in SENTENCES:
        gap = "" if kind in ("zh", "ja") else rng.choice((" ", " ", " ", "\n", "\n\n"))
        return _filled(rng, rng.choice(SENTENCES[kind])) + gap
    if kind == "code":
        return _filled(rng, rng.choice(SNIPPETS))
    if kind == "json":
        return json.dumps(_record(rng), indent=rng.choice((None, 2))) + "\n"
    if kind == "digits":
        return (
            ",".join(f"{rng.random() * 10 ** rng.randrange(1, 7):.{rng.randrange(4)}f}" for _ in range(6)) + "\n"
        )
    data = bytes(rng.randrange(256) for _ in range(max(32, size * 3 // 5)))
    return f"Decode this file: {base64.b64encode(data).decode()}\n"


def _filled(rng: random.Random, sentence: str) -> str:
    return sentence.format(n=rng.randrange(2, 10), w=rng.choice(NAMES))


def _record(rng: random.Random) -> dict:
    return {
        "id": rng.randrange(10**6),
        "name": rng.choice(NAMES),
        "active": rng.random() < 0.5,
        "tags": [rng.choice(NAMES).lower() for _ in range(rng.randrange(4))],
        "address": {
            "street": f"{rng.choice(NAMES)} Street {rng.randrange(200)}",
            "zip": str(rng.randrange(99999)),
        },
        "created_at": f"2025-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T12:00:00Z",
        "score": round(rng.random(), 3),
    }


def _tool(rng: random.Random) -> dict:
    """Return a function as a schema of JSON, in the form of chat."""
    name = f"{rng.choice(('get', 'find', 'update', 'create'))}_{rng.choice(NAMES[10:]).lower()}"
    fields = rng.sample(("id", "query", "limit", "start_date", "city", "unit", "sort_by"), rng.randrange(1, 5))
    properties = {
        field: {"type": rng.choice(("string", "integer")), "description": text(rng, "en", 40)} for field in fields
    }
    schema = {"type": "object", "properties": properties, "required": fields[:1]}
    return {"name": name, "description": text(rng, "en", 90), "parameters": schema}


def _body(rng: random.Random, tenant: Tenant, tools: list[dict]) -> dict:
    kind = rng.choice(tenant.kinds)
    turns = rng.choice((1, 1, 1, 2, 3, 5))
    size = int(20 * 2 ** (rng.random() * 8))  # 20 to 5,120 characters, small ones as often as large ones
    system = text(rng, kind if kind in SENTENCES else "en", 60) if rng.random() < 0.6 else ""
    said = []
    for turn in range(turns):
        said.append(("user", text(rng, kind, size // turns)))
        if turn < turns - 1:
            said.append(("assistant", text(rng, kind, size // turns)))
    given = rng.sample(tools, rng.choice((3, 5, 8))) if tenant.tools else []
    in_parts = rng.random() < 0.3
    if tenant.endpoint is MESSAGES:
        return _messages(said, system, given, in_parts)
    if tenant.endpoint is RESPONSES:
        return _responses(said, system, given, in_parts)
    messages = [{"role": "system", "content": system}] if system else []
    for role, content in said:
        whole = [{"type": "text", "text": content}] if in_parts else content
        messages.append({"role": role, "content": whole})
    body = {"model": "m", "messages": messages, "temperature": 0.2}
    return body | ({"tools": [{"type": "function", "function": tool} for tool in given]} if given else {})


def _messages(said: list, system: str, given: list[dict], in_parts: bool) -> dict:
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}
        for role, content in said
    ]
    body: dict = {"model": "m", "max_tokens": 1024, "messages": messages}
    if system:
        body["system"] = system
    if given:
        body["tools"] = [
            {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
            for tool in given
        ]
    return body


def _responses(said: list, system: str, given: list[dict], in_parts: bool) -> dict:
    if len(said) == 1 and not in_parts:
        items: object = said[0][1]
    else:
        types = {"user": "input_text", "assistant": "output_text"}
        items = [
            {"role": role, "content": [{"type": types[role], "text": content}] if in_parts else content}
            for role, content in said
        ]
    body: dict = {"model": "m", "input": items}
    if system:
        body["instructions"] = system
    if given:
        body["tools"] = [{"type": "function", **tool} for tool in given]
    return body
