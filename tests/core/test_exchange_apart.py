"""An exchange whose body is read elsewhere: large bodies, and those that take as long to read."""

import json

import pytest

from extproc.core.events import (
    BodyRead,
    BodyReply,
    Decided,
    Finish,
    ReadBody,
    Reject,
    RequestBody,
    RequestTrailers,
    Reserve,
    ResponseHead,
    StreamClosed,
    TrailersReply,
)
from extproc.core.exchange import Exchange
from extproc.core.phase import ProtocolError
from extproc.core.quota.reservation import Count, Denied, Suspended, admitted, denied
from extproc.core.request import apart
from extproc.core.request.apart import BodyFacts, Unread
from extproc.core.request.body import Malformed
from extproc.core.request.buffers import Buffers
from tests.changing import replace

from .samples import NOW
from .test_exchange import ADMITTED, CALLER, FORWARDED, HELD, RULES, head

LARGE = replace(RULES, max_body_bytes=1 << 20, direct_bytes=20_000, allowed=frozenset({"priority"}))
TEXT = "x" * 30_000


def chat(**fields):
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": TEXT}]} | fields).encode()


def performed(effect):
    return BodyRead(apart.unpacked(apart.perform(apart.packed(effect.reading), b"".join(effect.body))), NOW)


def reading(body=None, *, end=True, rules=LARGE, **headers):
    """An exchange that waits for its body to be read, and the effect that asks for it."""
    exchange = Exchange(rules)
    assert exchange.receive(head(**headers)) == []
    (effect,) = exchange.receive(RequestBody(chat() if body is None else body, end_of_stream=end))
    assert isinstance(effect, ReadBody)
    assert not exchange.awaits_request
    return exchange, effect


def test_a_large_body_is_read_apart_and_goes_upstream_with_what_is_asked_for():
    exchange, effect = reading(chat(stream=True, priority=1))
    assert (effect.caller.identity, effect.caller.model, effect.caller.request_id) == (CALLER, None, "q-1")
    (reserve,) = exchange.receive(performed(effect))
    assert isinstance(reserve, Reserve)
    assert (reserve.ask.facts.model, reserve.ask.facts.prompt) == ("tiny", b"")
    forwarded, reply = exchange.receive(Decided(ADMITTED, NOW))
    assert forwarded == FORWARDED
    assert json.loads(b"".join([reply.data, *reply.more])) == json.loads(
        chat(stream=True, priority=1, stream_options={"include_usage": True})
    )
    assert len(exchange.receive(StreamClosed())) == 2


def test_a_body_in_parts_is_one_message_and_goes_upstream_in_parts():
    body = chat(stream=True)
    exchange = Exchange(LARGE)
    exchange.receive(head())
    parts = [body[:10_000], body[10_000:20_000], body[20_000:]]
    (effect,) = exchange.receive(RequestBody(parts[0], True, parts[1:]))
    assert effect.body == tuple(parts)
    exchange.receive(performed(effect))
    _, reply = exchange.receive(Decided(ADMITTED, NOW))
    assert {part.obj for part in reply.more if isinstance(part, memoryview)} >= set(parts)
    assert len(reply.more) >= len(parts)
    changed = json.loads(b"".join([reply.data, *reply.more]))
    assert changed == json.loads(body) | {"stream_options": {"include_usage": True}}


def test_a_body_in_parts_that_does_not_change_has_one_reply_for_each_message():
    body = chat()
    exchange = Exchange(LARGE)
    exchange.receive(head())
    exchange.receive(RequestBody(body[:100], False, [body[100:15_000], body[15_000:20_000]]))
    (effect,) = exchange.receive(RequestBody(body[20_000:], True))
    assert b"".join(effect.body) == body
    exchange.receive(performed(effect))
    assert exchange.receive(Decided(ADMITTED, NOW)) == [FORWARDED, BodyReply(), BodyReply()]


def test_a_large_body_that_nothing_is_asked_of_goes_upstream_as_it_is():
    exchange, effect = reading()
    exchange.receive(performed(effect))
    assert exchange.receive(Decided(ADMITTED, NOW)) == [FORWARDED, BodyReply()]


@pytest.mark.parametrize(
    ("path", "kind", "body", "is_apart"),
    [
        ("/v1/chat/completions", "application/json", chat()[:20_000], True),
        ("/v1/chat/completions", "application/json", b"[" * 8192, False),
        ("/v1/chat/completions", "application/json", b":" * 1500 + b"1" * 9000, False),
        ("/v1/chat/completions", "application/json", b":[{" * 501 + b"1" * 9000, True),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", b"x" * 8192, False),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", b"x" * 8193, True),
        ("/v2/models/m/infer", "application/json", chat(), None),
    ],
)
def test_what_takes_long_to_read_is_read_apart(path, kind, body, is_apart):
    rules = replace(LARGE, direct_bytes=20_000 - (is_apart is True and len(body) == 20_000))
    exchange = Exchange(rules)
    exchange.receive(head(__path=path, content_type=kind))
    effects = exchange.receive(RequestBody(body, end_of_stream=True))
    kinds = {True: ReadBody, False: Reject, None: Reserve}
    assert isinstance(effects[0], kinds[is_apart])


@pytest.mark.parametrize(
    ("result", "status", "reason"),
    [
        (Malformed("'n' must be less.", "n"), 400, "malformed"),
        (Suspended("unpaid"), 403, "suspended"),
        (denied(HELD, [Count(12_000, 0)]), 429, "over_limit:service_account"),
        (Unread.BUSY, 503, "overloaded"),
        (Unread.FAILED, 503, "unread"),
    ],
)
def test_whoever_is_refused_meanwhile_is_told_why_and_its_body_is_let_go(result, status, reason):
    buffers = Buffers()
    exchange, _ = reading(rules=replace(LARGE, buffers=buffers))
    assert buffers.kept_bytes
    reject, finish = exchange.receive(BodyRead(result, NOW))
    assert (reject.rejection.status, reject.rejection.reason, finish) == (status, reason, Finish())
    assert buffers.kept_bytes == 0
    assert not isinstance(result, Denied) or b"12000 used" in reject.rejection.body


def test_a_first_piece_that_is_a_whole_request_does_not_wait_for_its_trailers():
    exchange, effect = reading(end=False)
    (reserve,) = exchange.receive(performed(effect))
    assert isinstance(reserve, Reserve)
    assert exchange.receive(Decided(ADMITTED, NOW)) == [FORWARDED, BodyReply()]
    assert exchange.receive(RequestTrailers()) == [TrailersReply()]


def test_a_first_piece_that_is_no_whole_request_is_read_again_with_the_rest():
    body = chat()
    exchange, effect = reading(body[:-9], end=False)
    assert exchange.receive(performed(effect)) == []
    assert exchange.awaits_request
    assert exchange.receive(RequestBody(body[-9:-1], end_of_stream=False)) == []
    (again,) = exchange.receive(RequestBody(body[-1:], end_of_stream=True))
    assert b"".join(again.body) == body
    (reserve,) = exchange.receive(performed(again))
    assert isinstance(reserve, Reserve)
    assert exchange.receive(Decided(admitted(HELD, [Count(0, 0)]), NOW)) == [FORWARDED, *[BodyReply()] * 3]


def test_a_client_that_leaves_while_its_body_is_read_leaves_nothing():
    buffers = Buffers()
    exchange, effect = reading(rules=replace(LARGE, buffers=buffers))
    assert exchange.receive(StreamClosed()) == [Finish()]
    assert buffers.kept_bytes == 0
    assert exchange.receive(performed(effect)) == []
    exchange, _ = reading()
    assert exchange.receive(ResponseHead(504, {}, end_of_stream=True))[-1] == Finish()


def test_facts_that_nobody_asked_for_are_a_fault():
    exchange = Exchange(LARGE)
    exchange.receive(head())
    with pytest.raises(ProtocolError, match="BodyRead in phase ReadingBody"):
        exchange.receive(BodyRead(Unread.BUSY, NOW))


def test_facts_without_a_layout_go_upstream_as_those_that_were_read_here():
    exchange, effect = reading(chat(stream=True))
    facts = performed(effect).result.facts
    exchange.receive(BodyRead(BodyFacts(facts, None), NOW))
    reply = exchange.receive(Decided(ADMITTED, NOW))[1]
    assert json.loads(reply.data)["stream_options"] == {"include_usage": True}


def test_a_body_of_very_many_pieces_is_refused():
    buffers = Buffers()
    exchange = Exchange(replace(LARGE, buffers=buffers))
    exchange.receive(head())
    effects = []
    for _ in range(8193):
        assert effects == []
        effects = exchange.receive(RequestBody(b" ", end_of_stream=False))
    assert (effects[0].rejection.status, effects[0].rejection.reason) == (400, "malformed")
    assert buffers.kept_bytes == 0
