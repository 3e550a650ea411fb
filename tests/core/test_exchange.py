"""One exchange: the effects of every course that HTTP can take, and of those that it can't."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.events import (
    BodyReply,
    Close,
    Decided,
    Finish,
    Grow,
    HeadReply,
    Inspect,
    Inspected,
    Pause,
    Reject,
    RequestBody,
    RequestHead,
    RequestTrailers,
    Reserve,
    ResponseBody,
    ResponseHead,
    ResponseTrailers,
    Resumed,
    StreamClosed,
    TrailersReply,
)
from extproc.core.exchange import Exchange as Stepwise
from extproc.core.phase import ExchangeRules, ProtocolError
from extproc.core.quota.costs import Bound, Cost
from extproc.core.quota.drafting import Ask
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Limit, Mode, Scope, Subject, Window
from extproc.core.quota.reservation import (
    BucketState,
    Count,
    Denied,
    Suspended,
    Unavailable,
    Unbounded,
    Unnamed,
    admitted,
    decide,
    denied,
)
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.rejections import DeniedStyle
from extproc.core.request.body import UNNAMED
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import IdentityRules
from tests.changing import replace
from tests.recordings import recorded

from .samples import (
    CALLER,
    CUTS,
    DAILY,
    FUZZ,
    NOW,
    SAMPLES,
    Sample,
    bytewise,
    mutated,
    parts,
    piece,
    reservation,
    two_parts,
    usage_chunk,
)

RULES = ExchangeRules(IdentityRules(service_account_header="oc_sa", tenant_header="x-tenant"), max_body_bytes=2000)
CLAIMS = {"sub": CALLER.service_account, "tenant": CALLER.tenant}
CHAT = json.dumps({"model": "tiny", "messages": [], "max_tokens": 30}).encode()
STREAM = json.dumps({"model": "tiny", "messages": [], "stream": True}).encode()
STREAM_WITH_USAGE = json.dumps(
    {"model": "tiny", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
).encode()
PLAIN = b'{"choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":10,"completion_tokens":16}}'
HELD = reservation(Cost(20, 30))
ADMITTED = admitted(HELD, [Count(100, 0)])
FORWARDED = HeadReply((("accept-encoding", "identity"),), ("oc_sa", "x-tenant"))
QUOTA = (
    ("x-ratelimit-limit-tokens", "12000"),
    ("x-ratelimit-remaining-tokens", "11850"),
    ("x-ratelimit-reset-tokens", "11h29m45s"),
)
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
SETTLED = Close(HELD, Settlement(Outcome.SETTLED, Usage(10, 16, total=26), 26, "usage", 200))


class Exchange(Stepwise):
    """An exchange that goes on by itself where it pauses."""

    def receive(self, event):
        effects = super().receive(event)
        while effects == [Pause()]:
            effects = super().receive(Resumed())
        return effects


def head(end_of_stream=False, claims=CLAIMS, **headers) -> RequestHead:
    plain = {":path": "/v1/chat/completions", ":method": "POST", "x-request-id": "q-1"}
    named = {name.replace("__", ":").replace("_", "-"): value for name, value in headers.items()}
    return RequestHead(plain | named, claims, "10.0.0.7:4321", end_of_stream)


def asked(body=CHAT, rules=RULES) -> Exchange:
    """An exchange that waits for a decision."""
    exchange = Exchange(rules)
    assert exchange.receive(head()) == []
    (reserve,) = exchange.receive(RequestBody(body, end_of_stream=True))
    assert isinstance(reserve, Reserve)
    return exchange


def forwarded(body=CHAT, rules=RULES) -> Exchange:
    """An exchange that waits for the upstream's answer."""
    exchange = asked(body, rules)
    exchange.receive(Decided(ADMITTED, NOW))
    return exchange


def answering(body=CHAT, headers=JSON, status=200, rules=RULES) -> Exchange:
    """An exchange in the middle of the upstream's answer."""
    exchange = forwarded(body, rules)
    exchange.receive(ResponseHead(status, headers, end_of_stream=False))
    return exchange


def close_of(effects, rest=()) -> Settlement:
    """The settlement of effects that end with Close and Finish, behind the replies `rest`."""
    *replies, close, finish = effects
    assert replies == list(rest)
    assert (type(close), finish) == (Close, Finish())
    assert close.reservation is HELD
    return close.settlement


def rejection(effects):
    reject, finish = effects
    assert isinstance(reject, Reject)
    assert finish == Finish()
    return reject.rejection


# ---------------------------------------------------------------- whole exchanges


def test_a_plain_request_from_head_to_settlement():
    exchange = Exchange(RULES)
    assert exchange.receive(head()) == []
    (reserve,) = exchange.receive(RequestBody(CHAT, end_of_stream=True))
    assert reserve.ask == Ask(CALLER, Endpoint.CHAT_COMPLETIONS, reserve.ask.facts, "q-1")
    assert (reserve.ask.facts.model, reserve.ask.facts.output_bound) == ("tiny", 30)
    assert exchange.receive(Decided(ADMITTED, NOW)) == [FORWARDED, BodyReply()]
    assert exchange.receive(ResponseHead(200, JSON, end_of_stream=False)) == [HeadReply(QUOTA)]
    assert exchange.receive(ResponseBody(PLAIN[:30], end_of_stream=False)) == [BodyReply()]
    assert exchange.receive(ResponseBody(PLAIN[30:], end_of_stream=True)) == [BodyReply(), SETTLED, Finish()]


def test_a_stream_whose_client_did_not_ask_for_usage_asks_for_it_and_hides_it():
    exchange = asked(STREAM)
    before, after = exchange.receive(Decided(ADMITTED, NOW))
    assert before == FORWARDED
    assert json.loads(after.data) == json.loads(STREAM) | {"stream_options": {"include_usage": True}}
    assert exchange.receive(ResponseHead(200, SSE, end_of_stream=False)) == [HeadReply(QUOTA, ("content-length",))]
    assert exchange.receive(ResponseBody(piece("a"), end_of_stream=False)) == [BodyReply()]
    assert exchange.receive(ResponseBody(usage_chunk(), end_of_stream=False)) == [BodyReply(b"")]
    assert exchange.receive(ResponseBody(b"data: [DONE]\n\n", end_of_stream=True)) == [
        BodyReply(),
        SETTLED,
        Finish(),
    ]


def test_a_stream_whose_client_asked_for_usage_passes_untouched():
    exchange = asked(STREAM_WITH_USAGE)
    assert exchange.receive(Decided(ADMITTED, NOW)) == [FORWARDED, BodyReply()]
    assert exchange.receive(ResponseHead(200, SSE, end_of_stream=False)) == [HeadReply(QUOTA)]
    assert exchange.receive(ResponseBody(usage_chunk(), end_of_stream=True)) == [BodyReply(), SETTLED, Finish()]


def test_a_client_that_did_not_want_a_stream_but_gets_one_loses_nothing():
    exchange = answering(CHAT, SSE)
    assert exchange.receive(ResponseBody(usage_chunk(), end_of_stream=True)) == [BodyReply(), SETTLED, Finish()]


# ---------------------------------------------------------------- request heads


@pytest.mark.parametrize(
    "request_head",
    [
        head(__path="/tokenize"),
        head(__path="/v1/models", __method="GET"),
        head(__method="OPTIONS"),
        RequestHead({}, {}, "", False),
        head(__method="GET"),
        head(__method="HEAD", __path="/v1/responses"),
        head(__method="GET", __path="/v1/organization/usage/completions?start_time=1"),
        head(__method="GET", __path="/v2/models/m/infer%3f/v1/chat/completions"),
    ],
)
def test_what_is_not_metered_goes_on_unchanged(request_head):
    assert Exchange(RULES).receive(request_head) == [HeadReply(), Finish()]


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"__method": "PUT"}, 405, "method"),
        ({"__method": "CONNECT"}, 405, "method"),
        ({"__method": "GET", "upgrade": "websocket"}, 426, "websocket"),
        ({"__method": "GET", "upgrade": "websocket", "__path": "/v1/responses"}, 426, "websocket"),
        ({"__method": "GET", "x_http_method_override": "POST", "__path": "/v1/generate"}, 404, "not_metered"),
        ({"__method": "GET", "x_http_method_override": "POST"}, 405, "method"),
        ({"__method": "POST", "__path": "/v1/quota"}, 405, "method"),
        ({"__method": ""}, 405, "method"),
        ({"__path": "/v2/models/m/infer%3f/v1/chat/completions"}, 400, "path"),
        ({"__path": "/" + "a" * 2048}, 414, "path"),
        ({"content_encoding": "gzip"}, 415, "compressed"),
        ({"content_length": "2001"}, 413, "too_large"),
        ({"content_type": "multipart/form-data; a=" + "b" * 490}, 400, "malformed"),
        ({"x_data_parallel_rank": "0"}, 400, "malformed"),
        ({"x_gateway_inference_objective": "mine", "__path": "/v1/embeddings"}, 400, "malformed"),
        ({"claims": {"sub": 5}}, 403, "identity"),
        ({"claims": {"sub": "a", "tenant": ""}}, 403, "identity"),
        ({"claims": {}, "oc_sa": "x"}, None, None),
    ],
)
def test_a_head_that_can_not_be_served_is_answered_at_once(headers, status, reason):
    effects = Exchange(RULES).receive(head(**headers))
    if status is None:
        assert effects == []
    else:
        assert (rejection(effects).status, rejection(effects).reason) == (status, reason)


@pytest.mark.parametrize("length", ["2000", "0", "", "-1", "x", "9" * 20, "٣٠٠٠", "3e9", "+3000"])
def test_a_declared_length_is_believed_only_where_it_is_a_number_that_is_too_large(length):
    assert Exchange(RULES).receive(head(content_length=length, content_encoding="Identity")) == []


def test_a_header_that_steers_passes_where_it_is_allowed_and_others_do_not():
    rules = replace(RULES, allowed=frozenset({"x-data-parallel-rank"}))
    assert Exchange(rules).receive(head(x_data_parallel_rank="0")) == []
    refused = Exchange(rules).receive(head(x_data_parallel_rank="0", x_dp_rank="1"))
    assert b"'x-dp-rank'" in rejection(refused).body


def test_a_header_that_came_twice_names_nobody():
    request_head = replace(head(claims={}), headers=head().headers | {"oc_sa": "mesh,mallory"})
    assert rejection(Exchange(RULES).receive(request_head)).status == 403


def test_the_request_id_that_is_kept_is_bounded():
    exchange = Exchange(RULES)
    exchange.receive(head(x_request_id="x" * 5000))
    (reserve,) = exchange.receive(RequestBody(CHAT, end_of_stream=True))
    assert reserve.ask.request_id == "x" * 128


def test_a_request_without_a_body_is_refused():
    assert rejection(Exchange(RULES).receive(head(end_of_stream=True))).status == 400


# ---------------------------------------------------------------- request bodies


@pytest.mark.parametrize("body", [CHAT, STREAM, STREAM_WITH_USAGE], ids=["plain", "stream", "stream with usage"])
@pytest.mark.parametrize("trailers", [True, False])
def test_a_request_body_is_read_and_goes_upstream_the_same_however_it_is_cut(body, trailers):
    whole = upstream = None
    for chunks in ([body], bytewise(body), *two_parts(body)):
        exchange = Exchange(RULES)
        exchange.receive(head())
        effects = []
        for place, chunk in enumerate(chunks):
            last = not trailers and place == len(chunks) - 1
            effects += decided(exchange, exchange.receive(RequestBody(chunk, end_of_stream=last)))
        if trailers:
            effects += decided(exchange, exchange.receive(RequestTrailers()))
        reserve, first, *replies = effects
        assert isinstance(reserve, Reserve)
        whole = whole or reserve
        assert reserve == whole
        assert first == FORWARDED
        if trailers:
            assert replies.pop() == TrailersReply()
        assert all(isinstance(reply, BodyReply) for reply in replies)
        sent = b"".join(
            chunk if reply.data is None else reply.data for chunk, reply in zip(chunks, replies, strict=True)
        )
        upstream = upstream or sent
        assert sent == upstream
    assert (upstream == body) is (body is not STREAM)


@pytest.mark.parametrize(
    "rest", [[RequestTrailers()], [RequestBody(b" ", False), RequestTrailers()], [RequestBody(b"", True)]]
)
@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_a_first_piece_that_is_a_whole_request_does_not_wait_for_its_trailers(body, rest):
    exchange = Exchange(RULES)
    exchange.receive(head())
    (reserve,) = exchange.receive(RequestBody(body, end_of_stream=False))
    assert isinstance(reserve, Reserve)
    replies = exchange.receive(Decided(ADMITTED, NOW))
    assert len(replies) == 2
    for event in rest:
        expected = TrailersReply() if isinstance(event, RequestTrailers) else BodyReply()
        assert exchange.receive(event) == [expected]
    exchange.receive(ResponseHead(200, {"content-type": "application/json"}, end_of_stream=False))
    assert exchange.receive(RequestTrailers()) == [TrailersReply()]


def test_more_of_a_body_than_was_decided_on_is_a_fault():
    exchange = forwarded()
    with pytest.raises(ProtocolError, match="RequestBody"):
        exchange.receive(RequestBody(b"{}", end_of_stream=True))
    assert isinstance(exchange.receive(StreamClosed())[0], Close)


def decided(exchange, effects):
    """The effects, and those of the decision where one is asked for: it comes before the next event."""
    return [
        *effects,
        *(exchange.receive(Decided(ADMITTED, NOW)) if effects[:1] and isinstance(effects[0], Reserve) else []),
    ]


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_a_body_that_is_not_compressed_is_read(encoding):
    exchange = Exchange(RULES)
    assert exchange.receive(head(content_encoding=encoding)) == []


def test_a_body_over_the_bound_is_refused_with_the_chunk_that_goes_over_it():
    exchange = Exchange(RULES)
    exchange.receive(head())
    assert exchange.receive(RequestBody(b" " * 2000, end_of_stream=False)) == []
    assert rejection(exchange.receive(RequestBody(b" ", end_of_stream=False))).status == 413
    assert exchange.receive(RequestBody(b" ", end_of_stream=True)) == []


def test_a_body_of_the_largest_size_is_read():
    exchange = Exchange(RULES)
    exchange.receive(head())
    (reserve,) = exchange.receive(RequestBody(CHAT.ljust(2000), end_of_stream=True))
    assert isinstance(reserve, Reserve)


@pytest.mark.parametrize(("setting", "model"), [({}, UNNAMED), ({"unnamed_model": "llama"}, "llama")])
def test_a_request_that_names_no_model_counts_under_the_configured_one(setting, model):
    exchange = Exchange(replace(RULES, **setting))
    exchange.receive(head())
    (reserve,) = exchange.receive(RequestBody(b'{"messages":[{"role":"user"}]}', end_of_stream=True))
    assert reserve.ask.facts.model == model


@pytest.mark.parametrize("end", ["body", "trailers"])
def test_a_malformed_body_is_refused_at_its_end(end):
    exchange = Exchange(RULES)
    exchange.receive(head())
    if end == "body":
        effects = exchange.receive(RequestBody(b'{"model":5}', end_of_stream=True))
    else:
        assert exchange.receive(RequestBody(b'{"model":5}', end_of_stream=False)) == []
        effects = exchange.receive(RequestTrailers())
    assert json.loads(rejection(effects).body)["error"]["param"] == "model"


# ---------------------------------------------------------------- decisions


@pytest.mark.parametrize(("style", "status"), [(DeniedStyle.OPENAI, 429), (DeniedStyle.TALK, 400)])
def test_a_denied_request_is_answered_in_the_style_of_the_house(style, status):
    exchange = asked(rules=replace(RULES, denied_style=style))
    answer = rejection(exchange.receive(Decided(denied(HELD, [Count(12_000, 0)]), NOW)))
    assert (answer.status, answer.reason) == (status, "over_limit:service_account")


def test_without_a_decision_the_client_is_asked_to_come_back():
    answer = rejection(asked(rules=replace(RULES, store_retry_after_s=7)).receive(Decided(Unavailable(), NOW)))
    assert (answer.status, dict(answer.headers)["retry-after"]) == (503, "7")


@pytest.mark.parametrize("decision", [ADMITTED, denied(HELD, [Count(12_000, 0)]), Unavailable()])
def test_a_decision_that_nobody_waits_for_is_a_fault_even_when_all_is_over(decision):
    gone = asked()
    assert gone.receive(StreamClosed()) == [Finish()]
    for exchange in (Exchange(RULES), forwarded(), answering(), gone):
        with pytest.raises(ProtocolError, match="Decided in phase"):
            exchange.receive(Decided(decision, NOW))


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ["vllm-chat-stream", "vllm-chat-stream-usage", "vllm-chat-stream-continuous"])
def test_a_recorded_stream_reaches_the_client_and_the_ledger_the_same_however_it_is_cut(name):
    body = recorded(f"{name}.body")
    events = [e + b"\n\n" for e in body.split(b"\n\n")[:-1]]
    hidden = frozenset({len(events) - 2} if name != "vllm-chat-stream" else ())
    sample = Sample(tuple(events), hidden)
    results = set()
    for chunks in ([body], bytewise(body), *list(two_parts(body))[::7]):
        out, settlement = drive(answering(STREAM, SSE), chunks)
        assert out == sample.without_usage
        results.add(settlement)
    (settlement,) = results
    assert settlement.charge == (26 if hidden else 48)


def drive(exchange, chunks):
    """What the client gets for the chunks of a complete answer, and the settlement."""
    out, effects = b"", []
    for place, chunk in enumerate(chunks):
        reply, *effects = exchange.receive(ResponseBody(chunk, end_of_stream=place == len(chunks) - 1))
        out += chunk if reply.data is None else reply.data
    return out, close_of(effects)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_any_stream_reaches_the_client_and_the_ledger_the_same_however_it_is_cut(sample):
    expected = drive(answering(STREAM, SSE), [sample.body])[1]
    for chunks in ([sample.body], bytewise(sample.body) or [b""], *list(two_parts(sample.body))[::3]):
        assert drive(answering(STREAM, SSE), chunks) == (sample.without_usage, expected)
        assert drive(answering(STREAM_WITH_USAGE, SSE), chunks) == (sample.body, expected)


def test_what_was_held_back_at_the_end_of_a_stream_is_the_clients_after_all():
    exchange = answering(STREAM, SSE)
    assert exchange.receive(ResponseBody(usage_chunk() + b"data: [DO", end_of_stream=False)) == [BodyReply(b"")]
    effects = exchange.receive(ResponseBody(b"NE]", end_of_stream=True))
    assert effects == [BodyReply(b"data: [DONE]"), SETTLED, Finish()]


@pytest.mark.parametrize("status", [100, 301, 400, 404, 429, 500, 503])
def test_an_upstream_error_passes_and_is_released_with_its_status(status):
    exchange = forwarded(STREAM)
    assert exchange.receive(ResponseHead(status, JSON, end_of_stream=False)) == [HeadReply(QUOTA)]
    settlement = close_of(exchange.receive(ResponseBody(b"{}", end_of_stream=True)), [BodyReply()])
    assert settlement == Settlement(Outcome.RELEASED, NO_USAGE, 0, "upstream_error", status)


def test_recorded_errors_are_released():
    for name, status in (("vllm-404", 404), ("vllm-400-too-long", 400)):
        out, settlement = drive(answering(status=status), [recorded(f"{name}.body")])
        assert out == recorded(f"{name}.body")
        assert (settlement.outcome, settlement.status) == (Outcome.RELEASED, status)


def test_an_answer_without_a_body_is_settled_with_its_head():
    effects = forwarded().receive(ResponseHead(204, {}, end_of_stream=True))
    assert close_of(effects, [HeadReply(QUOTA)]) == Settlement(
        Outcome.ESTIMATED, Usage(20, 0, total=20), 20, "empty", 204, capped=True
    )
    effects = forwarded().receive(ResponseHead(500, {}, end_of_stream=True))
    assert close_of(effects, [HeadReply(QUOTA)]).outcome is Outcome.RELEASED


@pytest.mark.parametrize("kind", [JSON, SSE])
def test_a_compressed_answer_passes_and_is_estimated(kind):
    exchange = forwarded(STREAM)
    answer_head = ResponseHead(200, kind | {"content-encoding": "gzip"}, end_of_stream=False)
    assert exchange.receive(answer_head) == [HeadReply(QUOTA)]
    settlement = close_of(
        exchange.receive(ResponseBody(b"\x1f\x8b" + b"x" * 38, end_of_stream=True)), [BodyReply()]
    )
    assert (settlement.reason, settlement.charge) == ("encoded", 30)


def test_the_tightest_bucket_is_the_one_that_a_client_reads_about():
    limits = (DAILY, Limit(Scope.TENANT, Window.MINUTE, 200))
    tight = admitted(reservation(Cost(20, 30), limits), [Count(100, 0), Count(100, 0)])
    exchange = asked()
    exchange.receive(Decided(tight, NOW))
    (reply,) = exchange.receive(ResponseHead(200, JSON, end_of_stream=False))
    assert dict(reply.set_headers)["x-ratelimit-limit-tokens"] == "200"


def test_the_operators_ratio_is_what_estimates_are_made_with():
    exchange = answering(rules=replace(RULES, bytes_per_output_token=1))
    body = b'{"choices":[{"message":{"content":"abc"}}]}'
    assert close_of(exchange.receive(ResponseBody(body, end_of_stream=True)), [BodyReply()]).charge == 20 + 3


@pytest.mark.parametrize("with_end", [True, False])
def test_an_answer_may_end_with_trailers_and_its_last_event_is_read_all_the_same(with_end):
    exchange = answering(STREAM, SSE)
    exchange.receive(ResponseBody(piece("a"), end_of_stream=False))
    exchange.receive(ResponseBody(usage_chunk() if with_end else usage_chunk()[:-2], end_of_stream=False))
    assert exchange.receive(ResponseTrailers()) == [TrailersReply(), SETTLED, Finish()]


def test_a_plain_answer_may_end_with_trailers():
    exchange = answering()
    exchange.receive(ResponseBody(PLAIN, end_of_stream=False))
    assert exchange.receive(ResponseTrailers()) == [TrailersReply(), SETTLED, Finish()]


@pytest.mark.parametrize("prefix", [[], [head()], [head(), RequestBody(b"{", end_of_stream=False)]])
def test_an_answer_of_envoys_own_before_any_decision_passes(prefix):
    exchange = Exchange(RULES)
    for event in prefix:
        exchange.receive(event)
    assert exchange.receive(ResponseHead(408, {}, end_of_stream=False)) == [HeadReply(), Finish()]


# ---------------------------------------------------------------- ends


def test_a_client_that_leaves_before_the_decision_holds_nothing():
    for exchange in (Exchange(RULES), asked()):
        assert exchange.receive(StreamClosed()) == [Finish()]


def test_a_client_that_leaves_before_the_answer_pays_for_the_prompt():
    assert close_of(forwarded().receive(StreamClosed())) == Settlement(
        Outcome.ESTIMATED, Usage(20, 0, total=20), 20, "left_before_answer", capped=True
    )


def test_a_request_that_could_not_be_forwarded_costs_nothing():
    assert close_of(forwarded().receive(StreamClosed(delivered=False))) == Settlement(
        Outcome.RELEASED, NO_USAGE, 0, "not_forwarded", forwarded=False
    )


@pytest.mark.parametrize("delivered", [True, False])
def test_a_client_that_leaves_in_mid_answer_pays_for_what_was_seen(delivered):
    exchange = answering(STREAM, SSE)
    exchange.receive(ResponseBody(piece("abcdef"), end_of_stream=False))
    assert close_of(exchange.receive(StreamClosed(delivered))) == Settlement(
        Outcome.ESTIMATED, Usage(20, 2, total=22), 22, "cut_off", 200, capped=True
    )


def test_what_comes_after_the_end_has_no_effect():
    exchange = answering()
    exchange.receive(ResponseBody(PLAIN, end_of_stream=True))
    for event in (
        head(),
        RequestBody(b"", False),
        RequestTrailers(),
        ResponseHead(200, {}, False),
        ResponseBody(b"", True),
        ResponseTrailers(),
        StreamClosed(),
        StreamClosed(False),
    ):
        assert exchange.receive(event) == []


@pytest.mark.parametrize(
    ("start", "event"),
    [
        (lambda: Exchange(RULES), RequestBody(b"", end_of_stream=True)),
        (lambda: Exchange(RULES), RequestTrailers()),
        (lambda: Exchange(RULES), ResponseBody(b"", end_of_stream=True)),
        (lambda: Exchange(RULES), ResponseTrailers()),
        (asked, head()),
        (asked, RequestBody(b"", end_of_stream=True)),
        (asked, RequestTrailers()),
        (asked, ResponseBody(b"", end_of_stream=True)),
        (forwarded, head()),
        (forwarded, RequestBody(b"{}", end_of_stream=True)),
        (forwarded, ResponseBody(b"", end_of_stream=True)),
        (forwarded, ResponseTrailers()),
        (answering, head()),
        (answering, ResponseHead(200, {}, end_of_stream=False)),
    ],
)
def test_events_in_an_order_that_http_does_not_have_are_a_fault_and_the_hold_is_still_closed(start, event):
    exchange = start()
    with pytest.raises(ProtocolError, match=re.escape(type(event).__name__)):
        exchange.receive(event)
    closed = [effect for effect in exchange.receive(StreamClosed()) if isinstance(effect, Close)]
    assert len(closed) == (start in (forwarded, answering))


# ---------------------------------------------------------------- a caller's own quota


def test_a_caller_may_ask_what_is_left_for_it():
    exchange = Exchange(RULES)
    (inspect,) = exchange.receive(head(__path="/v1/quota?model=gpt%2D4", __method="GET", end_of_stream=True))
    assert inspect == Inspect(CALLER, Subject("gpt-4"))
    for path in ("/v1/quota?endpoint=nonsense", "/v1/quota?model=m&endpoint=quota"):
        refused = rejection(Exchange(RULES).receive(head(__path=path, __method="GET")))
        error = json.loads(refused.body)["error"]
        assert (refused.status, error["param"], error["code"]) == (400, "endpoint", "invalid_value")
        assert "chat_completions" in error["message"]
    asked_about = Exchange(RULES).receive(head(__path="/v1/quota?endpoint=embeddings", __method="GET"))
    assert asked_about == [Inspect(CALLER, Subject(endpoint=Endpoint.EMBEDDINGS))]
    state = BucketState(HELD.buckets[0], Count(5, 7))
    answer = rejection(exchange.receive(Inspected(Insight(CALLER, ((DAILY, state),)), NOW)))
    assert (answer.status, answer.reason) == (200, "quota")
    document = json.loads(answer.body)
    assert (document["service_account"], document["limits"][0]["remaining"]) == (CALLER.service_account, 11_988)


@pytest.mark.parametrize("query", ["", "?", "?x=1", "?model=", "?endpoint=", "?model=" + "x" * 5000])
def test_a_question_that_names_no_model_is_about_all_that_do_not_need_one(query):
    (inspect,) = Exchange(RULES).receive(head(__path="/v1/quota" + query, __method="GET", end_of_stream=True))
    assert inspect.subject == Subject()


def test_the_quota_is_only_read():
    answer = rejection(Exchange(RULES).receive(head(__path="/v1/quota")))
    assert (answer.status, dict(answer.headers)["allow"]) == (405, "GET")
    nobody = head(__path="/v1/quota", __method="GET", claims={"sub": 5})
    assert rejection(Exchange(RULES).receive(nobody)).status == 403


def test_a_quota_that_can_not_be_read_is_said_so():
    exchange = Exchange(RULES)
    exchange.receive(head(__path="/v1/quota", __method="GET"))
    assert rejection(exchange.receive(Inspected(Unavailable(), NOW))).status == 503


def test_an_answer_about_a_quota_that_nobody_waits_for_is_a_fault():
    with pytest.raises(ProtocolError, match="Inspected in phase"):
        asked().receive(Inspected(Unavailable(), NOW))


# ---------------------------------------------------------------- suspended callers


def test_a_suspended_caller_reads_why():
    answer = rejection(asked().receive(Decided(Suspended("unpaid bill"), NOW)))
    assert answer.status == 403
    assert b"unpaid bill" in answer.body


def test_what_a_strict_limit_can_not_hold_for_is_refused():
    answer = rejection(asked().receive(Decided(Unbounded(), NOW)))
    assert (answer.status, answer.reason) == (400, "unbounded_prompt")
    assert json.loads(answer.body)["error"]["code"] == "unbounded_prompt"


def test_a_request_without_a_model_is_told_that_a_limit_needs_it():
    answer = rejection(asked().receive(Decided(Unnamed(), NOW)))
    error = json.loads(answer.body)["error"]
    assert (answer.status, answer.reason) == (400, "unnamed_model")
    assert (error["code"], error["param"]) == ("model_required", "model")
    assert "limit that counts by model" in error["message"]


# ---------------------------------------------------------------- strict limits

STRICT = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 12_000, mode=Mode.STRICT)
BOUNDED = reservation(Cost(20, 30), (STRICT,), bound=Bound(60, 40, least=5))


def strictly(body=STREAM, headers=SSE, output=25):
    """An exchange in the middle of an answer whose output bound was lowered to `output`; and the body sent."""
    exchange = asked(body)
    _, *replies = exchange.receive(Decided(admitted(BOUNDED, [Count(100, 0)], output), NOW))
    exchange.receive(ResponseHead(200, headers, end_of_stream=False))
    return exchange, b"".join(reply.data for reply in replies)


@pytest.mark.parametrize("body", [CHAT, STREAM, STREAM_WITH_USAGE])
def test_the_bound_that_was_granted_is_written_into_the_request(body):
    _, sent = strictly(body)
    assert json.loads(sent)["max_tokens"] == 25


def test_the_bound_is_written_where_the_operator_says():
    named = replace(BOUNDED, bound=replace(BOUNDED.bound, field="max_completion_tokens"))
    exchange = asked(STREAM)
    _, reply = exchange.receive(Decided(admitted(named, [Count(100, 0)], 25), NOW))
    assert json.loads(reply.data).items() >= {"max_completion_tokens": 25}.items()
    assert "max_tokens" not in json.loads(reply.data)


def test_what_an_upstream_generates_beyond_its_bound_is_never_charged():
    exchange, _ = strictly(CHAT, JSON)
    *_, close, finish = exchange.receive(
        ResponseBody(PLAIN.replace(b'"completion_tokens":16', b'"completion_tokens":3000'), end_of_stream=True)
    )
    assert finish == Finish()
    assert (close.settlement.charge, close.settlement.reason) == (60 + 25, "overran")
    assert close.settlement.usage.output == 3000


@pytest.mark.parametrize(("output", "reason"), [(25, "usage"), (26, "overran"), (60, "overran")])
def test_an_upstream_that_ignores_its_bound_is_flagged_where_the_prompt_left_room_for_it(output, reason):
    exchange, _ = strictly(CHAT, JSON)
    answer = PLAIN.replace(b'"completion_tokens":16', b'"completion_tokens":%d' % output)
    *_, close, _ = exchange.receive(ResponseBody(answer, end_of_stream=True))
    assert (close.settlement.charge, close.settlement.reason) == (10 + output, reason)
    assert close.settlement.charge < close.reservation.held


def test_leaving_a_stream_that_ignores_its_bound_stays_a_leaving():
    exchange, _ = strictly(STREAM_WITH_USAGE)
    exchange.receive(ResponseBody(piece("x") + usage_chunk(10, 40), end_of_stream=False))
    close, _ = exchange.receive(StreamClosed())
    assert close.settlement.reason == "cut_off"


def test_a_stream_that_ignores_its_bound_is_cut_off():
    exchange, _ = strictly()
    (reply,) = exchange.receive(ResponseBody(piece("x") * 60, end_of_stream=False))
    assert reply.data.count(b'"content"') <= 25 + 8
    assert reply.data.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in reply.data
    assert exchange.receive(ResponseBody(piece("y"), end_of_stream=False)) == [BodyReply(b"")]


# ---------------------------------------------------------------- answers that outgrow their hold


def test_the_hold_of_a_stream_grows_with_it_and_what_was_generated_is_charged():
    exchange = answering(STREAM, SSE)
    assert exchange.receive(ResponseBody(piece("x") * 29, end_of_stream=False)) == [BodyReply()]
    grow, reply = exchange.receive(ResponseBody(piece("x"), end_of_stream=False))
    assert reply == BodyReply()  # after it: what the client gets is held
    assert grow == Grow(replace(HELD, extra_output=64))
    assert (grow.reservation.held, grow.reservation.output_held) == (50 + 64, 30 + 64)
    assert exchange.receive(ResponseBody(piece("x") * 50, end_of_stream=False)) == [BodyReply()]
    close, finish = exchange.receive(StreamClosed())
    assert finish == Finish()
    assert close.reservation == grow.reservation
    assert close.settlement.charge == 20 + 80


def test_a_large_hold_doubles():
    wide = admitted(reservation(Cost(20, 100)), [Count(0, 0)])
    exchange = asked(STREAM)
    exchange.receive(Decided(wide, NOW))
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    grow, _ = exchange.receive(ResponseBody(piece("x") * 110, end_of_stream=False))
    assert (grow.reservation.cost, grow.reservation.output_held) == (Cost(20, 100), 210)
    again, _ = exchange.receive(ResponseBody(piece("x") * 100, end_of_stream=False))
    assert again.reservation.output_held == 420


def test_an_answer_as_long_as_its_client_allowed_holds_no_more_than_that():
    exchange = answering(json.dumps(json.loads(STREAM) | {"max_tokens": 30}).encode(), SSE)
    assert exchange.receive(ResponseBody(piece("x") * 30, end_of_stream=False)) == [BodyReply()]
    grow, _ = exchange.receive(ResponseBody(piece("x"), end_of_stream=False))
    assert grow.reservation.output_held == 31 + 64


def test_a_hold_that_is_a_bound_does_not_grow():
    exchange, _ = strictly(output=25)
    assert exchange.receive(ResponseBody(piece("x") * 25, end_of_stream=False)) == [BodyReply()]


# A plain answer without a bound: its text, then what follows it.
UNBOUNDED = json.dumps({"model": "tiny", "messages": []}).encode()
TEXT = "a word " * 1000
SAID = json.dumps({"choices": [{"message": {"content": TEXT}, "logprobs": {"content": [{"token": "a"}] * 900}}]})
AT = SAID.index('"logprobs"')


def left(body, answer, headers=JSON, *, size=500, rules=RULES):
    """The effects of a plain answer that comes in pieces of `size` and that the client leaves at its end."""
    exchange = answering(body, headers, rules=rules)
    effects = []
    for at in range(0, len(answer), size):
        effects += exchange.receive(ResponseBody(answer[at : at + size], end_of_stream=False))
    return effects + exchange.receive(StreamClosed())


def test_a_plain_answer_that_is_left_after_its_text_is_charged_for_it_and_held_it_first():
    *effects, close, finish = left(UNBOUNDED, SAID[:AT].encode())
    assert finish == Finish()
    grown = [effect for effect in effects if isinstance(effect, Grow)]
    assert 1 <= len(grown) <= 4
    assert close.reservation.held >= grown[-1].reservation.held
    assert close.settlement.usage.output == 2000  # words: more than a quarter of the bytes
    assert close.settlement.charge == 20 + 2000 <= close.reservation.held
    assert (close.settlement.outcome, close.settlement.reason) == (Outcome.ESTIMATED, "cut_off")


def test_of_a_small_answer_that_is_left_the_hold_grows_at_the_end():
    *effects, close, _ = left(UNBOUNDED, SAID[:3000].encode())
    assert not any(isinstance(effect, Grow) for effect in effects)
    assert 700 < close.settlement.usage.output < 900
    assert close.settlement.charge <= close.reservation.held


def test_what_follows_the_text_of_a_plain_answer_adds_nothing():
    close = left(UNBOUNDED, SAID.encode())[-2]
    assert close.settlement.charge == 20 + 2000


def test_a_plain_answer_is_never_estimated_above_the_bound_of_its_client():
    *effects, close, _ = left(CHAT, SAID.encode())
    assert not any(isinstance(effect, Grow) for effect in effects)
    assert close.settlement.charge == 20 + 30


def test_usage_that_was_delivered_before_the_client_left_is_charged():
    answer = SAID[:-1] + ', "usage": {"prompt_tokens": 10, "completion_tokens": 1600}, "prompt_logprobs": [1, 2'
    close = left(UNBOUNDED, answer.encode())[-2]
    assert (close.settlement.outcome, close.settlement.reason) == (Outcome.SETTLED, "cut_off")
    assert close.settlement.charge == 1610 <= close.reservation.held


def test_a_claim_holds_no_more_than_there_can_be():
    exchange = answering(CHAT, SSE)
    grow, _ = exchange.receive(ResponseBody(piece("x") + usage_chunk(10, 9_999_990), end_of_stream=False))
    assert grow.reservation.output_held < 10_000
    close, _ = exchange.receive(StreamClosed())
    assert close.settlement.reason == "implausible"
    assert close.settlement.charge <= 10 + 4096 + 60


LONG = "a word " * 200


@pytest.mark.parametrize(
    ("path", "field", "fields"),
    [
        ("/v1/chat/completions", "truncate_prompt_tokens", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/completions", "truncate_prompt_tokens", {"prompt": LONG}),
        ("/v1/embeddings", "truncate_prompt_tokens", {"input": LONG}),
        ("/v2/embed", "max_tokens", {"texts": [LONG]}),
        ("/v1/rerank", "truncate_prompt_tokens", {"query": "x", "documents": [LONG]}),
        ("/v2/rerank", "max_tokens_per_doc", {"query": "x", "documents": [LONG]}),
    ],
)
def test_the_input_of_a_prompt_that_was_to_be_cut_is_believed(path, field, fields):
    answer = b'{"choices":[{"text":"x"}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}}'
    for extra, reason in (({field: 2}, "usage"), ({}, "partial"), ({field: None}, "partial")):
        exchange = Exchange(RULES)
        exchange.receive(head(__path=path))
        body = json.dumps({"model": "tiny", **fields, **extra}).encode()
        exchange.receive(RequestBody(body, end_of_stream=True))
        exchange.receive(Decided(ADMITTED, NOW))
        exchange.receive(ResponseHead(200, JSON, end_of_stream=False))
        settlement = close_of(exchange.receive(ResponseBody(answer, end_of_stream=True))[1:])
        assert settlement.reason == reason
        assert (settlement.charge == 3) is (reason == "usage")


BOUNDED_STREAM = json.dumps(json.loads(STREAM_WITH_USAGE) | {"max_tokens": 30}).encode()


@pytest.mark.parametrize("body", [STREAM_WITH_USAGE, BOUNDED_STREAM])
def test_a_prompt_that_is_longer_than_its_estimate_is_held_and_charged_to_who_leaves(body):
    exchange = answering(body, SSE)
    seen = piece("x", usage={"prompt_tokens": 150, "completion_tokens": 1, "total_tokens": 151})
    grow, reply = exchange.receive(ResponseBody(seen, end_of_stream=False))
    assert reply == BodyReply()
    assert grow == Grow(replace(HELD, extra_output=(150 - 20) + 1 - 30 + 64))
    more = piece("x", usage={"prompt_tokens": 150, "completion_tokens": 21, "total_tokens": 171})
    assert exchange.receive(ResponseBody(more, end_of_stream=False)) == [BodyReply()]
    close, _ = exchange.receive(StreamClosed())
    assert (close.settlement.charge, close.settlement.usage.input) == (150 + 21, 150)
    assert close.settlement.charge <= close.reservation.held


def test_a_prompt_beyond_its_estimate_needs_no_more_where_the_whole_hold_suffices():
    exchange = answering(STREAM_WITH_USAGE, SSE)
    assert exchange.receive(ResponseBody(piece("x") + usage_chunk(48, 1), end_of_stream=False)) == [BodyReply()]


def test_the_input_that_opens_a_stream_of_messages_is_charged_to_who_leaves():
    exchange = Exchange(RULES)
    exchange.receive(head(__path="/v1/messages"))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 30, "stream": True}
    exchange.receive(RequestBody(json.dumps(body).encode(), end_of_stream=True))
    exchange.receive(Decided(ADMITTED, NOW))
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    opening = {"type": "message_start", "message": {"usage": {"input_tokens": 150, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
    start, delta = (f"data: {json.dumps(said)}\n\n".encode() for said in (opening, text))
    exchange.receive(ResponseBody(start + delta * 3, end_of_stream=False))
    close, _ = exchange.receive(StreamClosed())
    assert (close.settlement.charge, close.settlement.reason) == (150 + 3, "cut_off")


def test_a_plain_answer_whose_usage_comes_first_is_charged_its_input_to_who_leaves():
    answer = '{"usage": {"prompt_tokens": 900, "completion_tokens": 40}, "choices": [{"message": {"content": "'
    close = left(UNBOUNDED, (answer + "a word " * 700).encode())[-2]
    assert close.settlement.usage.input == 900
    assert 900 + 40 <= close.settlement.charge <= close.reservation.held


def test_the_hold_of_what_generates_nothing_does_not_grow():
    exchange = Exchange(RULES)
    exchange.receive(head(__path="/v1/embeddings"))
    exchange.receive(RequestBody(json.dumps({"model": "tiny", "input": "x"}).encode(), end_of_stream=True))
    exchange.receive(Decided(ADMITTED, NOW))
    exchange.receive(ResponseHead(200, JSON, end_of_stream=False))
    data = ResponseBody(b'{"data":[{"embedding":"' + b"A" * 9000, end_of_stream=False)
    assert exchange.receive(data) == [BodyReply()]


# ---------------------------------------------------------------- vectors as bytes

VECTORS = json.dumps({"model": "tiny", "input": "x", "encoding_format": "bytes_only"}).encode()


def test_vectors_whose_usage_nobody_would_tell_are_refused_unless_that_is_allowed():
    exchange = Exchange(RULES)
    exchange.receive(head(__path="/v1/embeddings"))
    answer = rejection(exchange.receive(RequestBody(VECTORS, end_of_stream=True)))
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["param"], error["code"]) == (400, "encoding_format", "answer_without_usage")
    exchange = Exchange(replace(RULES, refuse_without_usage=False))
    exchange.receive(head(__path="/v1/embeddings"))
    (reserve,) = exchange.receive(RequestBody(VECTORS, end_of_stream=True))
    assert isinstance(reserve, Reserve)


# ---------------------------------------------------------------- requests that only count as one

UNCOUNTED = admitted(replace(HELD, cost=Cost(0, 0), endpoint=Endpoint.PREDICT), [Count(100, 0)])


def predicting() -> Exchange:
    exchange = Exchange(RULES)
    exchange.receive(head(__path="/v1/models/iris:predict"))
    (reserve,) = exchange.receive(RequestBody(b"\x00any", end_of_stream=False))
    assert (reserve.ask.endpoint, reserve.ask.facts.model) == (Endpoint.PREDICT, "iris")
    assert exchange.receive(Decided(UNCOUNTED, NOW)) == [FORWARDED, BodyReply()]
    return exchange


def test_what_is_not_read_passes_in_any_number_of_pieces_and_costs_a_request():
    exchange = predicting()
    assert exchange.receive(RequestBody(b"thing", end_of_stream=True)) == [BodyReply()]
    exchange.receive(ResponseHead(200, JSON, end_of_stream=False))
    reply, close, _ = exchange.receive(ResponseBody(b'{"predictions":[1]}', end_of_stream=True))
    assert reply == BodyReply()
    assert close.settlement == Settlement(Outcome.SETTLED, NO_USAGE, 0, "request", 200)


def test_a_prediction_that_fails_costs_a_request_all_the_same():
    exchange = predicting()
    exchange.receive(ResponseHead(500, JSON, end_of_stream=False))
    *_, close, _ = exchange.receive(ResponseBody(b"{}", end_of_stream=True))
    assert close.settlement == Settlement(Outcome.RELEASED, NO_USAGE, 0, "upstream_error", 500)
    assert close.settlement.forwarded


# ---------------------------------------------------------------- anything at all

BODIES = st.sampled_from([CHAT, STREAM, STREAM_WITH_USAGE, b"", b"{}", b"[", CHAT[:9], b" " * 2001])
ANSWERS = st.sampled_from(
    [PLAIN, b"", b"{}", b'{"error":{}}', piece("abc"), usage_chunk(10, 9000), usage_chunk()[:40]]
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [":path", ":method", "content-encoding", "content-length", "oc_sa", "x-tenant", "content-type"]
    ),
    st.text(max_size=6)
    | st.sampled_from(["/v1/chat/completions", "POST", "identity", "gzip", "10", "text/event-stream"]),
)
DECISIONS = st.builds(
    lambda used, held, prompt, output: decide(reservation(Cost(prompt, output)), [Count(used, held)]),
    st.integers(0, 20_000),
    st.integers(0, 20_000),
    st.integers(0, 60),
    st.integers(0, 60),
) | st.sampled_from([Unavailable(), Suspended("unpaid"), Unbounded()])
EVENTS = st.one_of(
    st.just(head()),
    st.builds(
        RequestHead,
        HEADERS,
        st.dictionaries(st.sampled_from(["sub", "tenant"]), st.text()),
        st.text(),
        st.booleans(),
    ),
    st.builds(RequestBody, BODIES | mutated(BODIES) | st.binary(), st.booleans()),
    st.just(RequestTrailers()),
    st.builds(Decided, DECISIONS, st.just(NOW)),
    st.builds(
        ResponseHead,
        st.sampled_from([200, 204, 404, 500, 0, -1]),
        st.sampled_from([JSON, SSE, {}]) | HEADERS,
        st.booleans(),
    ),
    st.builds(ResponseBody, ANSWERS | mutated(ANSWERS) | st.binary(), st.booleans()),
    st.just(ResponseTrailers()),
    st.just(Resumed()),
    st.builds(StreamClosed, st.booleans()),
)


@st.composite
def courses(draw) -> list:
    """A course that HTTP can take, with a few events put in, left out or exchanged."""
    body, answer = draw(BODIES), b"".join(draw(st.lists(ANSWERS, max_size=4)))
    events = [
        head(),
        *(RequestBody(chunk, False) for chunk in parts(body, draw(CUTS))),
        RequestTrailers(),
        Decided(draw(DECISIONS), NOW),
        ResponseHead(draw(st.sampled_from([200, 200, 500])), draw(st.sampled_from([JSON, SSE])), False),
        *(ResponseBody(chunk, False) for chunk in parts(answer, draw(CUTS))),
        ResponseTrailers(),
    ]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(events)))
        events[place : place + draw(st.integers(0, 2))] = draw(st.lists(EVENTS, max_size=2))
    return events


@FUZZ
@given(courses() | st.lists(EVENTS, max_size=12))
def test_any_course_of_events_ends_each_hold_exactly_once_and_nothing_follows_the_end(events):
    exchange, held, closed, finished = Stepwise(RULES), [], [], False
    for event in [*events, StreamClosed()]:
        try:
            effects = exchange.receive(event)
        except ProtocolError:
            continue
        assert not (finished and effects)
        if isinstance(event, Decided) and not isinstance(
            event.decision, Denied | Unavailable | Suspended | Unbounded
        ):
            held.append(event.decision.reservation)
        kinds = [type(effect) for effect in effects]
        finished = finished or Finish in kinds
        assert Finish not in kinds[:-1]
        for close in effects:
            if isinstance(close, Grow):
                held[-1] = close.reservation
            if isinstance(close, Close):
                closed.append(close.reservation)
                settlement, most = close.settlement, close.reservation.cost.total
                assert settlement.charge >= 0
                assert (
                    isinstance(event, ResponseHead | ResponseBody | ResponseTrailers) or settlement.charge <= most
                )
    assert finished
    assert closed == held


# ---------------------------------------------------------------- in steps


LONG_STREAM = piece("x") * 300 + usage_chunk()


def steps_of(exchange, event):
    """The effects of an event, and how often the exchange paused before."""
    effects, pauses = exchange.receive(event), 0
    while effects == [Pause()]:
        effects, pauses = exchange.receive(Resumed()), pauses + 1
    return effects, pauses


def stepwise(body, headers):
    exchange = Stepwise(RULES)
    for event in (head(), RequestBody(body, True), Decided(ADMITTED, NOW), ResponseHead(200, headers, False)):
        exchange.receive(event)
    return exchange


@pytest.mark.parametrize("body", [STREAM, STREAM_WITH_USAGE])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_long_piece_of_an_answer_is_read_in_steps_and_answered_once(body, pack):
    headers = SSE | ({"content-encoding": "gzip"} if pack is gzip.compress else {})
    effects, pauses = steps_of(stepwise(body, headers), ResponseBody(pack(LONG_STREAM), end_of_stream=True))
    hidden = body is STREAM and pack is bytes
    reply, close, finish = effects
    assert reply == BodyReply(piece("x") * 300 if hidden else None)
    assert (close.settlement.usage, finish) == (Usage(10, 16, total=26), Finish())
    assert pauses > len(LONG_STREAM) // 4096


def test_a_short_piece_of_an_answer_needs_no_step():
    assert steps_of(stepwise(STREAM, SSE), ResponseBody(piece("x") * 15, end_of_stream=False))[1] == 0


def test_a_short_piece_that_is_read_at_once_has_the_same_effects():
    at_once, one_by_one = stepwise(STREAM, SSE), stepwise(STREAM, SSE)
    for data in (piece("a") * 15, piece("b")[:20], piece("b")[20:], usage_chunk()):
        event = ResponseBody(data, end_of_stream=False)
        assert at_once.read_at_once(event) == one_by_one.receive(event)
    assert at_once.receive(StreamClosed()) == one_by_one.receive(StreamClosed())


@pytest.mark.parametrize("body", [STREAM, UNBOUNDED])
def test_pieces_that_are_alike_have_the_same_effects_and_the_hold_grows_with_them(body):
    at_once, one_by_one = stepwise(body, SSE), stepwise(body, SSE)
    alike = b'data: {"id":"chatcmpl-0123456789abcdef0123456789","choices":[{"delta":{"content":"%b"}}]}\n\n'
    grown = 0
    for number in range(200):
        event = ResponseBody(alike % (b"a" * (1 + number % 3)), end_of_stream=False)
        effects = list(at_once.read_at_once(event))
        assert effects == one_by_one.receive(event)
        grown += any(isinstance(effect, Grow) for effect in effects)
    assert 1 <= grown <= 3
    assert at_once.receive(StreamClosed()) == one_by_one.receive(StreamClosed())


def test_what_may_need_long_or_ends_an_answer_is_not_read_at_once():
    exchange = stepwise(STREAM, SSE)
    assert exchange.read_at_once(ResponseBody(LONG_STREAM, end_of_stream=False)) is None
    assert exchange.read_at_once(ResponseBody(piece("a"), end_of_stream=True)) is None
    assert forwarded().read_at_once(ResponseBody(piece("a"), end_of_stream=False)) is None
    assert exchange.receive(ResponseBody(piece("a"), end_of_stream=True))[0] == BodyReply()


@pytest.mark.parametrize("steps", range(5))
def test_a_client_that_leaves_between_two_steps_pays_for_what_was_read(steps):
    exchange = stepwise(STREAM, SSE)
    assert exchange.receive(ResponseBody(LONG_STREAM, end_of_stream=True)) == [Pause()]
    for _ in range(steps):
        assert exchange.receive(Resumed()) == [Pause()]
    close, finish = exchange.receive(StreamClosed())
    read = steps * 4096 // len(piece("x"))
    # The piece did not reach the client: the hold has not grown by it.
    assert (close.settlement.usage.output, finish) == (min(30, read), Finish())
    assert exchange.receive(Resumed()) == exchange.receive(StreamClosed()) == []


def test_while_a_piece_is_read_nothing_else_can_come():
    exchange = stepwise(STREAM, SSE)
    exchange.receive(ResponseBody(LONG_STREAM, end_of_stream=False))
    for event in (ResponseBody(b"", end_of_stream=True), ResponseHead(200, SSE, False), ResponseTrailers()):
        with pytest.raises(ProtocolError):
            exchange.receive(event)
    with pytest.raises(ProtocolError):
        asked().receive(Resumed())


def test_a_request_that_never_begins_is_given_up_with_an_answer():
    exchange = Exchange(RULES)
    assert exchange.awaits_request
    reject, finish = exchange.give_up()
    assert (reject.rejection.status, finish) == (408, Finish())
    assert not exchange.awaits_request


# What is called something else than it is.


@pytest.mark.parametrize("headers", [JSON, {}, {"content-type": "application/octet-stream"}])
def test_a_stream_under_another_name_has_its_usage_hidden_and_no_length_is_promised(headers):
    exchange = forwarded(STREAM)
    (reply,) = exchange.receive(ResponseHead(200, headers | {"content-length": "9"}, end_of_stream=False))
    assert reply.remove_headers == ("content-length",)
    assert exchange.receive(ResponseBody(b"\n", end_of_stream=False)) == [BodyReply()]
    assert exchange.receive(ResponseBody(piece("ab"), end_of_stream=False)) == [BodyReply()]
    assert exchange.receive(ResponseBody(usage_chunk(), end_of_stream=False)) == [BodyReply(b"")]
    close_of(exchange.receive(ResponseBody(b"", end_of_stream=True)), [BodyReply()])


def test_json_that_is_called_a_stream_is_settled_on_its_usage():
    exchange = answering(CHAT, SSE)
    assert exchange.receive(ResponseBody(PLAIN[:20], end_of_stream=False)) == [BodyReply()]
    settlement = close_of(exchange.receive(ResponseBody(PLAIN[20:], end_of_stream=True)), [BodyReply()])
    assert settlement == SETTLED.settlement


# Gateway timeouts.


@pytest.mark.parametrize("details", ["response_timeout", "stream_idle_timeout", ""])
@pytest.mark.parametrize("end", [True, False])
def test_a_timeout_of_envoys_own_is_charged_its_prompt(details, end):
    exchange = forwarded()
    effects = exchange.receive(ResponseHead(504, JSON, end_of_stream=end, details=details))
    if not end:
        assert effects == [HeadReply(QUOTA)]
        effects = exchange.receive(ResponseBody(b"upstream request timeout", end_of_stream=True))
    settlement = close_of(effects, effects[:-2])
    usage = Usage(20, 0, total=20)
    assert settlement == Settlement(Outcome.ESTIMATED, usage, 20, "gateway_timeout", 504, capped=True)


@pytest.mark.parametrize(("status", "details"), [(504, "via_upstream"), (503, "upstream_reset"), (500, "")])
def test_an_error_that_the_upstream_gave_is_released(status, details):
    effects = forwarded().receive(ResponseHead(status, JSON, end_of_stream=True, details=details))
    assert close_of(effects, effects[:-2]).outcome is Outcome.RELEASED
