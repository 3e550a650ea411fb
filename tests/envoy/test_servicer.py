"""One stream from its first message to its end: whatever happens, what was reserved is closed, once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from extproc.core.phase import ExchangeRules, ProtocolError
from extproc.core.quota.reservation import Denied, Unavailable
from extproc.core.request.identity import IdentityRules
from extproc.core.request.in_flight import InFlight
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.servicer import Servicer
from extproc.observe import logs
from extproc.observe.metrics import Metrics

from .channels import EachWaits
from .messages import (
    ANSWER,
    CHAT,
    EXCHANGE,
    NOW,
    REPLIES,
    Books,
    kinds,
    request_body,
    request_head,
    response_body,
    response_head,
)

RULES = ExchangeRules(IdentityRules())
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
CHUNKS = [
    b'data: {"choices":[{"delta":{"content":"po"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"ng"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
]
# How a plain exchange ends if the n-th write does not come to its end. The head alone is not a request; once the write of
# its body has begun, the upstream may have read the prompt, even if the write failed.
ENDS_AT_WRITE = [
    ("released", "not_forwarded"),
    ("estimated", "left_before_answer"),
    ("estimated", "cut_off"),
    ("settled", "usage"),
]
STREAMED = [
    request_head(),
    request_body(b'{"model":"m","messages":[],', end=False),
    request_body(b'"stream":true}'),
    response_head(content_type="text/event-stream"),
    *(response_body(chunk, end=False) for chunk in CHUNKS),
    response_body(b""),
]


@pytest.fixture(autouse=True)
def nothing_in_flight():
    """However the streams of a test ended: no request counts as in flight any more."""
    yield
    assert RULES.in_flight.tenants == 0


class ChannelError(Exception):
    """What a transport may raise."""


class Script(EachWaits):
    """A channel that plays messages, and fails where it is told to."""

    def __init__(self, messages, *, fail_write=None, fail_read=None, gate=None):
        self.messages = list(messages)
        self.written = []
        self.fail_write = fail_write
        self.fail_read = fail_read
        self.reads = 0
        self.gate = gate

    async def read(self):
        if self.gate is not None:
            await self.gate()
        if self.reads == self.fail_read:
            raise ChannelError
        self.reads += 1
        return self.messages.pop(0).SerializeToString() if self.messages else None

    async def write(self, message):
        if self.gate is not None:
            await self.gate()
        if len(self.written) == self.fail_write:
            raise ChannelError
        self.written.append(message)


def servicer_of(books, metrics=None, rules=RULES):
    return Servicer(rules, Codec(rules.identity, MetadataKeys()), books, metrics or Metrics(), lambda: NOW)


async def played(messages, books=None, **options):
    books, channel = books or Books(), Script(messages, **options)
    await servicer_of(books).serve(channel)
    return books, channel


async def test_every_message_is_answered_and_the_usage_is_settled():
    books, channel = await played(EXCHANGE)
    assert kinds(channel.written) == REPLIES
    ((reservation, settlement),) = books.closed
    assert reservation == books.admitted[0]
    assert (settlement.outcome.value, settlement.charge, settlement.status) == ("settled", 7, 200)
    (ask,) = books.asked
    assert (ask.identity.tenant, ask.identity.service_account, ask.identity.client_ip) == (
        "acme",
        "sa",
        "10.0.0.1",
    )
    assert (ask.facts.model, ask.request_id) == ("m", "id-1")


async def test_what_is_logged_on_the_way_knows_the_request():
    class Listening(Books):
        async def reserve(self, ask):
            self.known = logs.request_id.get()
            return await super().reserve(ask)

    books, _ = await asyncio.create_task(played(EXCHANGE, Listening()))
    assert books.known == "id-1"


async def test_a_stream_is_answered_chunk_by_chunk_and_settled_on_its_usage():
    books, channel = await played(STREAMED)
    assert kinds(channel.written) == (
        ["request_headers", "request_body", "request_body", "response_headers"] + ["response_body"] * 5
    )
    assert books.ends == [("settled", "usage")]


async def test_nothing_is_read_after_the_end():
    late = request_body()
    _, channel = await played([*EXCHANGE, late])
    assert channel.messages == [late]


async def test_what_is_denied_is_answered_in_the_upstreams_place_and_nothing_is_closed():
    metrics, books = Metrics(), Books(Denied)
    channel = Script(EXCHANGE)
    await servicer_of(books, metrics).serve(channel)
    assert kinds(channel.written) == ["immediate_response"]
    assert channel.written[0].immediate_response.status.code == 429
    assert books.closed == []
    assert (
        sum(
            s.value
            for m in metrics.registry.collect()
            for s in m.samples
            if s.name == "tokenweir_rejections_total"
        )
        == 1
    )


async def test_a_tenant_at_its_cap_is_refused_at_its_head_and_nobody_is_asked():
    rules, metrics, books = replace(RULES, in_flight=InFlight(1)), Metrics(), Books()
    assert rules.in_flight.enter("acme")
    channel = Script(EXCHANGE)
    await servicer_of(books, metrics, rules).serve(channel)
    assert kinds(channel.written) == ["immediate_response"]
    assert channel.written[0].immediate_response.status.code == 429
    assert len(channel.messages) == len(EXCHANGE) - 1
    assert (books.asked, books.closed) == ([], [])
    assert metrics.registry.get_sample_value("tokenweir_rejections_total", {"reason": "in_flight"}) == 1
    other = Script([request_head(payload={"sub": "sa", "tenant": "other"}), *EXCHANGE[1:]])
    await servicer_of(books, metrics, rules).serve(other)
    assert kinds(other.written) == REPLIES
    assert (rules.in_flight.tenants, rules.in_flight.most()) == (1, 1)


async def test_without_a_decision_the_answer_is_503():
    books, channel = await played(EXCHANGE, Books(Unavailable()))
    assert channel.written[0].immediate_response.status.code == 503
    assert books.closed == []


async def test_a_path_that_is_not_metered_passes_and_the_stream_ends():
    books, channel = await played([request_head(path="/tokenize")])
    assert kinds(channel.written) == ["request_headers"]
    assert books.asked == []


async def test_a_stream_that_begins_with_an_answer_of_envoys_own_passes_and_ends():
    books, channel = await played([response_head(403), response_body(b"no")])
    assert kinds(channel.written) == ["response_headers"]
    assert not channel.written[0].response_headers.response.header_mutation.set_headers
    assert books.asked == books.closed == []


async def test_an_answer_of_envoys_own_to_half_a_request_passes_and_ends():
    books, channel = await played([request_head(), request_body(b"{", end=False), response_head(413, end=True)])
    assert kinds(channel.written) == ["response_headers"]
    assert books.asked == []


@pytest.mark.parametrize("upto", range(len(EXCHANGE) + 1))
async def test_a_stream_that_ends_early_is_closed_once_if_it_was_admitted(upto):
    books, _ = await played(EXCHANGE[:upto])
    expected = {2: ("estimated", "left_before_answer"), 3: ("estimated", "cut_off"), 4: ("settled", "usage")}
    assert books.ends == ([expected[upto]] if upto in expected else [])


@pytest.mark.parametrize("fail_write", range(4))
async def test_a_reply_whose_write_fails_still_closes_once(fail_write):
    books = Books()
    with pytest.raises(ChannelError):
        await played(EXCHANGE, books, fail_write=fail_write)
    assert books.ends == [ENDS_AT_WRITE[fail_write]]


@pytest.mark.parametrize("fail_write", range(9))
async def test_a_streams_chunk_that_does_not_reach_envoy_still_closes_once(fail_write):
    books = Books()
    with pytest.raises(ChannelError):
        await played(STREAMED, books, fail_write=fail_write)
    assert len(books.closed) == 1
    expected = ["released"] * 2 + ["estimated"] * 4 + ["settled"] * 3
    assert books.ends[0][0] == expected[fail_write]


@pytest.mark.parametrize("stuck_write", range(4))
async def test_a_reply_whose_write_had_begun_when_envoy_reset_the_stream_counts_as_delivered(stuck_write):
    class Stuck(Script):
        async def write(self, message):
            await super().write(message)
            if len(self.written) == stuck_write + 1:
                stuck.set()
                await asyncio.Event().wait()

    books, stuck = Books(), asyncio.Event()
    task = asyncio.create_task(servicer_of(books).serve(Stuck(EXCHANGE)))
    await stuck.wait()
    task.cancel()
    await asyncio.wait({task})
    assert books.ends == [ENDS_AT_WRITE[stuck_write]]


@pytest.mark.parametrize("fail_read", range(5))
async def test_a_read_that_fails_still_closes_once_if_it_was_admitted(fail_read):
    books = Books()
    if fail_read == 4:  # nothing is read after the end
        await played(EXCHANGE, books, fail_read=fail_read)
    else:
        with pytest.raises(ChannelError):
            await played(EXCHANGE, books, fail_read=fail_read)
    assert len(books.closed) == len(books.admitted) == (fail_read >= 2)


@pytest.mark.parametrize("messages", [EXCHANGE, STREAMED], ids=["plain", "stream"])
async def test_wherever_the_stream_is_cancelled_it_is_closed_once_if_it_was_admitted(messages):
    points = 0
    while True:
        stopped, passed = asyncio.Event(), 0

        async def gate(point=points, stopped=stopped):
            nonlocal passed
            passed += 1
            if passed > point:
                stopped.set()
                await asyncio.Event().wait()

        books = Books(gate=gate)
        task = asyncio.create_task(servicer_of(books).serve(Script(messages, gate=gate)))
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert len(books.closed) == len(books.admitted), f"await point {points}"
        points += 1
    assert points == 2 * len(messages) + 1  # each message, each reply, the decision


async def test_a_stream_that_is_cancelled_while_a_long_piece_is_read_is_closed_once():
    """Cancel after so many turns of the loop, until the exchange comes to its end before."""
    long_piece = response_body(CHUNKS[0] * 20_000, end=False)
    turns, ends = 0, set()
    while True:
        books = Books()
        task = asyncio.create_task(servicer_of(books).serve(Script([*STREAMED[:4], long_piece, *STREAMED[-3:]])))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task})
        assert len(books.closed) == len(books.admitted)
        ends.update(books.ends)
        turns += 1
    assert books.ends == [("estimated", "absurd")]  # its usage is that of a much shorter answer
    assert ("estimated", "cut_off") in ends


@pytest.mark.parametrize(
    "messages",
    [
        [request_body()],
        [request_head(), request_head()],
        [*EXCHANGE[:2], response_body()],
        [*EXCHANGE[:3], request_body()],
        [*EXCHANGE[:2], request_head()],
        [*EXCHANGE[:3], response_head()],
        [response_body()],
        [pb.ProcessingRequest()],
        [*EXCHANGE[:3], pb.ProcessingRequest()],
        [*EXCHANGE[:2], pb.ProcessingRequest(response_trailers=pb.HttpTrailers())],
    ],
)
async def test_messages_in_an_impossible_order_are_a_protocol_error_and_close_what_was_admitted(messages):
    books = Books()
    with pytest.raises(ProtocolError):
        await played(messages, books)
    assert len(books.closed) == len(books.admitted)


async def test_trailers_end_a_request_and_an_answer():
    trailers = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
    end = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())
    messages = [request_head(), request_body(end=False), trailers, response_head(), response_body(end=False), end]
    books, channel = await played(messages)
    assert kinds(channel.written) == [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
    ]
    assert books.ends == [("settled", "usage")]


async def test_the_clock_is_asked_when_the_decision_came():
    books = Books(Denied)
    at = datetime(1970, 1, 1, 23, 59, tzinfo=UTC)
    channel = Script(EXCHANGE)
    await Servicer(RULES, Codec(RULES.identity, MetadataKeys()), books, Metrics(), lambda: at).serve(channel)
    headers = {h.header.key: h.header.raw_value for h in channel.written[0].immediate_response.headers.set_headers}
    assert headers["retry-after"] == b"60"


async def test_the_answers_body_passes_untouched():
    _, channel = await played(EXCHANGE)
    assert not channel.written[-1].response_body.HasField("response")
    assert ANSWER["usage"]["total_tokens"] == 7
