"""Usage in every chunk: asked for where a model is set so, and hidden from clients that did not ask."""

import json

import pytest

from extproc.core.events import (
    BodyRead,
    BodyReply,
    Close,
    Decided,
    ReadBody,
    RequestBody,
    ResponseBody,
    ResponseHead,
    StreamClosed,
)
from extproc.core.exchange import Exchange
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.settlement import Outcome
from extproc.core.request.apart import packed, perform, unpacked
from tests.changing import replace

from .samples import NOW
from .test_exchange import ADMITTED, RULES, SSE, head


@pytest.mark.parametrize("asked", [None, {"include_usage": True}, {"continuous_usage_stats": True}])
@pytest.mark.parametrize("apart", [False, True])
def test_usage_in_every_chunk_is_asked_for_where_a_model_is_set_so_and_hidden_again(asked, apart):
    models = Models(ModelProfile(), [("tiny*", ModelProfile(continuous_usage=True))])
    exchange = Exchange(replace(RULES, models=models, direct_bytes=0 if apart else RULES.direct_bytes))
    body = {"model": "tiny", "messages": [], "stream": True} | ({"stream_options": asked} if asked else {})
    exchange.receive(head())
    (effect,) = exchange.receive(RequestBody(json.dumps(body).encode(), end_of_stream=True))
    if isinstance(effect, ReadBody):
        read = unpacked(perform(packed(effect.reading), b"".join(effect.body)))
        (effect,) = exchange.receive(BodyRead(read, NOW))
    _, forwarded = exchange.receive(Decided(ADMITTED, NOW))
    options = json.loads(b"".join([forwarded.data, *forwarded.more]))["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]%b}\n\n'
    usage = b',"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}'
    assert exchange.receive(ResponseBody(chunk % usage, end_of_stream=False)) == [BodyReply(chunk % b"")]
    (close,) = [each for each in exchange.receive(StreamClosed()) if isinstance(each, Close)]
    assert (close.settlement.reason, close.settlement.usage.total) == ("cut_off", 10)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": True}])
def test_an_upstream_that_refuses_stream_options_is_not_asked_and_its_own_usage_stays(options):
    models = Models(ModelProfile(), [("tiny*", ModelProfile(asks_for_usage=False))])
    exchange = Exchange(replace(RULES, models=models))
    body = {"model": "tiny", "messages": [], "stream": True} | (
        {} if options is None else {"stream_options": options}
    )
    exchange.receive(head())
    exchange.receive(RequestBody(json.dumps(body).encode(), end_of_stream=True))
    assert exchange.receive(Decided(ADMITTED, NOW))[1] == BodyReply()
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    assert exchange.receive(ResponseBody(chunk, end_of_stream=False)) == [BodyReply()]
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}\n\n'
    assert exchange.receive(ResponseBody(usage, end_of_stream=False)) == [BodyReply()]
    effects = exchange.receive(ResponseBody(b"data: [DONE]\n\n", end_of_stream=True))
    (close,) = [each for each in effects if isinstance(each, Close)]
    assert (close.settlement.reason, close.settlement.usage.total) == ("usage", 10)


def test_without_usage_of_its_own_such_an_answer_is_estimated():
    models = Models(ModelProfile(asks_for_usage=False))
    exchange = Exchange(replace(RULES, models=models))
    exchange.receive(head())
    exchange.receive(RequestBody(b'{"model":"tiny","messages":[],"stream":true}', end_of_stream=True))
    exchange.receive(Decided(ADMITTED, NOW))
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n'
    effects = exchange.receive(ResponseBody(chunk, end_of_stream=True))
    (close,) = [each for each in effects if isinstance(each, Close)]
    assert close.settlement.outcome is Outcome.ESTIMATED
    assert close.settlement.usage.output >= 1


def test_who_asks_for_usage_in_every_chunk_gets_it():
    models = Models(ModelProfile(continuous_usage=True))
    exchange = Exchange(replace(RULES, models=models))
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "messages": [], "stream": True, "stream_options": options}
    exchange.receive(head())
    exchange.receive(RequestBody(json.dumps(body).encode(), end_of_stream=True))
    assert exchange.receive(Decided(ADMITTED, NOW))[1] == BodyReply()
    exchange.receive(ResponseHead(200, SSE, end_of_stream=False))
    chunk = ResponseBody(
        b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"total_tokens":1}}\n\n', end_of_stream=False
    )
    assert exchange.receive(chunk) == [BodyReply()]
