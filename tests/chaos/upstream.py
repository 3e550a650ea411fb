"""A model server's answers, and the count of what it really generated: what the ledger is compared with."""

import gzip
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field

from .clients import Verdict

KINDS = ("json", "sse", "json gzip", "sse gzip")


@dataclass(frozen=True)
class Answer:
    """An answer as it comes in, and the tokens that its usage tells of."""

    head: dict[str, str]
    pieces: list[bytes]
    tokens: int
    kind: str


@dataclass
class Upstream:
    """Tokens generated, by request id."""

    generated: Counter[str] = field(default_factory=Counter)

    @property
    def total(self):
        return self.generated.total()

    def answer(self, exchange, rng, *, prompt, output, kind="json"):
        """What it answers to a request that reached it, counted from now on."""
        self.generated[exchange.id] += prompt + output
        return make_answer(rng, prompt, output, kind)


def make_answer(rng, prompt, output, kind):
    streamed, packed = kind.startswith("sse"), kind.endswith("gzip")
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    body = b"".join(events(output, usage)) if streamed else _document(output, usage)
    head = {"content_type": "text/event-stream" if streamed else "application/json"}
    if packed:
        body = gzip.compress(body, compresslevel=1)
        head["content_encoding"] = "gzip"
    return Answer(head, split(rng, body, 5), prompt + output, kind)


def events(output, usage):
    """A stream of chunks with some tokens each, its usage, and its end."""
    for n in range(min(output, 4)):
        yield _event({"id": "c", "choices": [{"index": 0, "delta": {"content": f"w{n} "}}]})
    if usage is not None:
        yield _event({"id": "c", "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def split(rng, body, most):
    """At random bytes, into at most so many pieces; none is empty."""
    cuts = sorted({rng.randrange(len(body)) for _ in range(rng.randrange(most))} - {0})
    return [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]


def granted(verdict: Verdict):
    """The output bound in the body that the upstream gets: it keeps to it."""
    return json.loads(verdict.body)["max_tokens"]


def _document(output, usage):
    choice = {"index": 0, "message": {"role": "assistant", "content": "w" * output}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()


def _event(document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"
