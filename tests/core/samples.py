"""Streams, answers and values that the core's tests share, and the ways to cut bytes into chunks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from extproc.core.quota.binding import Policy, bind
from extproc.core.quota.costs import MAX_WEIGHT, Bound, Cost, Weights
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from tests.sizes import examples, sized

FUZZ = examples(quick=30, thorough=200)
FEWER = examples(quick=15, thorough=60)

NOW = datetime(2026, 3, 4, 11, 30, 15, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
CALLER = Identity(TenantId("zone-prod"), ServiceAccount("console@zone-prod"), ClientIP("10.0.0.7"))
DAILY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 12_000)


HELD = Cost(prompt=20, output=30)


def reservation(cost=HELD, limits=(DAILY,), **changes):
    policy = Policy(CALLER.tenant, tuple(limits), BERLIN)
    fields = {
        "id": ReservationId("r-1"),
        "request_id": "q-1",
        "identity": CALLER,
        "endpoint": Endpoint.CHAT_COMPLETIONS,
        "model": "tiny",
        "stream": False,
        "cost": cost,
        "buckets": bind(policy, CALLER, NOW),
        "admitted_at": NOW,
        "date": "2026-03-04",
        "deadline": NOW.timestamp() + 600,
    }
    return Reservation(**(fields | changes))


# ---------------------------------------------------------------- weights, usage, bounds

_weight = st.sampled_from([0, 1, 100, 333, 1000, 1001, 2500, MAX_WEIGHT]) | st.integers(0, 3000)
WEIGHTS = st.builds(Weights, _weight, _weight, _weight, _weight)


@st.composite
def usages(draw: st.DrawFn, most: int = 60) -> Usage:
    """Any usage that the readers may give, with up to `most` tokens of each kind."""
    tokens_in, tokens_out, further = (draw(st.integers(0, most)) for _ in range(3))
    return Usage(
        input=tokens_in,
        output=tokens_out,
        cached=draw(st.integers(0, tokens_in)),
        reasoning=draw(st.integers(0, tokens_out)),
        total=tokens_in + tokens_out + draw(st.sampled_from([0, further])),
    )


@st.composite
def bounds(draw: st.DrawFn, most: int = 60) -> Bound:
    output = draw(st.integers(0, most))
    return Bound(
        prompt=draw(st.integers(0, most)),
        output=output,
        least=draw(st.integers(0, output)),
        choices=draw(st.integers(1, 3)),
        writable=draw(st.booleans()),
    )


# ---------------------------------------------------------------- recorded answers


RECORDED_STREAMS = ("vllm-chat-stream", "vllm-chat-stream-usage", "vllm-chat-stream-continuous")

# ---------------------------------------------------------------- generated streams


@dataclass(frozen=True)
class Sample:
    """A stream as its events; `usage_only` are the places of those that are hidden where usage is."""

    events: tuple[bytes, ...]
    usage_only: frozenset[int] = frozenset()

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    @property
    def without_usage(self) -> bytes:
        return b"".join(event for place, event in enumerate(self.events) if place not in self.usage_only)

    def with_line_ends(self, end: bytes) -> "Sample":
        return Sample(tuple(event.replace(b"\n", end) for event in self.events), self.usage_only)


def event(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def piece(text: str, **fields: object) -> bytes:
    return event({"id": "c-1", "choices": [{"index": 0, "delta": {"content": text}}], **fields})


def usage_chunk(prompt: int = 10, completion: int = 16, **fields: object) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event({"id": "c-1", "choices": [], "usage": counts, **fields})


DONE = event("[DONE]")
SPACED_USAGE = event(
    '{ "choices" : [ ] ,\t"usage" : { "prompt_tokens" : 10 , "completion_tokens" : 16 , "total_tokens" : 26 } }'
)
SAMPLES = {
    "openai": Sample(
        (piece("", usage=None), piece("Grüße, 世界 🌍", usage=None), usage_chunk(), DONE), frozenset({2})
    ),
    "white space in the usage chunk": Sample((piece("a"), SPACED_USAGE, DONE), frozenset({1})),
    "usage twice": Sample((usage_chunk(1, 1), piece("a"), usage_chunk(), DONE), frozenset({0, 2})),
    "continuous usage": Sample(
        (
            piece("a", usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}),
            piece("b", usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}),
            usage_chunk(10, 2),
            DONE,
        ),
        frozenset({2}),
    ),
    "an error after content": Sample((piece("ab"), event({"error": {"message": "out of memory"}}), DONE)),
    "an error before content": Sample((event({"error": {"message": "out of memory"}}), DONE)),
    "an error and no content": Sample((event({"error": {"code": 500}}), piece(""), DONE)),
    "an error with usage": Sample((piece("a"), event({"error": {"code": 500}, "usage": {"prompt_tokens": 3}}))),
    "keep-alive comments": Sample(
        (b": ping\n\n", piece("a"), b": ping\n\n", usage_chunk(), b":\n\n", DONE), frozenset({3})
    ),
    "a comment in the usage event": Sample((piece("a"), b": ping\n" + usage_chunk(), DONE), frozenset({1})),
    "no final blank line": Sample((piece("a"), usage_chunk(), b"data: [DONE]"), frozenset({1})),
    "half a final blank line": Sample((piece("a"), usage_chunk(), b"data: [DONE]\n"), frozenset({1})),
    "usage without a blank line": Sample((piece("a"), usage_chunk().rstrip(b"\n")), frozenset({1})),
    "usage at the very end": Sample((piece("a"), usage_chunk()), frozenset({1})),
    "data over several lines": Sample(
        (
            piece("a"),
            b'event: x\ndata: {"choices":[\ndata:],"usage":{"prompt_tokens":10,\ndata: "completion_tokens":16}}\nid: 7\n\n',
            DONE,
        ),
        frozenset({1}),
    ),
    "an event that is not JSON": Sample(
        (event("hello"), event("{"), piece("a"), usage_chunk(), event("bye")), frozenset({3})
    ),
    "absurd usage": Sample(
        (piece("abc"), event({"choices": [], "usage": {"prompt_tokens": -1}}), DONE), frozenset({1})
    ),
    "no usage": Sample((piece("abc"), piece("def"), DONE)),
    "no choices and no usage": Sample((event({"choices": [], "prompt_filter_results": []}), piece("a"), DONE)),
    "empty lines and empty data": Sample(
        (b"\n\n", b"data\n\n", b"data:\n\n", piece("a"), b"\n\n", usage_chunk()), frozenset({5})
    ),
    "other fields only": Sample((b"retry: 5\n\n", b"database: 1\n\n", piece("a"), DONE)),
    "nothing at all": Sample(()),
}
LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}

# ---------------------------------------------------------------- ways to cut


def bytewise(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


_OPENING_BYTES, _ENDING_BYTES = 300, 600
# Every so many bytes a body is cut: near its ends, and between them. Primes, so that each event is cut elsewhere.
_STEP, _STEP_BETWEEN = sized((7, 61), (1, 13))


def two_parts(body: bytes) -> Iterator[list[bytes]]:
    """Yield the ways to cut `body` in two, empty parts included: in the thorough form at every byte near its ends.

    Between its first and last bytes a long body repeats itself: there it is cut less often.
    """
    between = range(_OPENING_BYTES, len(body) - _ENDING_BYTES)
    for at in range(len(body) + 1):
        if at % (_STEP_BETWEEN if at in between else _STEP) == 0 or at == len(body):
            yield [body[:at], body[at:]]


def parts(body: bytes, cuts: list[int]) -> list[bytes]:
    """`body` cut at every offset in `cuts`, of which each is taken modulo its length."""
    offsets = sorted({cut % (len(body) + 1) for cut in cuts})
    bounds = [0, *offsets, len(body)]
    return [body[a:b] for a, b in pairwise(bounds)]


CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)

# ---------------------------------------------------------------- arbitrary values

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([0, 1, 2**31, 2**53, 2**63, 2**64, -1, 10_000_000, 10_000_001, "5", "", "a" * 300])
)
VALUES = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """A valid text with a few bytes replaced, removed, put in or repeated."""
    text = bytearray(draw(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        until = min(len(text), at + draw(st.integers(0, 12)))
        text[at:until] = draw(
            st.sampled_from([b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"0", b"-", b"1e999"])
            | st.just(bytes(text[at:until]) * 2)
            | st.binary(max_size=4)
        )
    return bytes(text)
