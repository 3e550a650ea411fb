"""What streams leave behind: nothing that only the garbage collector finds, which rarely looks at everything."""

import asyncio
import gc

import pytest

from extproc.core.phase import ExchangeRules
from extproc.core.request.identity import IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.servicer import Servicer
from extproc.envoy.streams import Streams
from extproc.http2 import frames as f
from extproc.observe.metrics import Metrics
from tests.http2.wire import Calls, Wire, head, message, raw

from .messages import CHAT, NOW, Books, request_body, request_head, response_body, response_head

RULES = ExchangeRules(IdentityRules())
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
PIECES = [
    response_body(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text, end=False)
    for text in (b"a", b"of", b"words", b"b")
]
LAST = response_body(b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n')
ANSWER = [response_head(content_type="text/event-stream"), *PIECES]


class Streaming(Calls):
    """Serve each call as a stream of Envoy."""

    def __init__(self):
        super().__init__()
        self.books = Books()
        metrics = Metrics()
        servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), self.books, metrics, lambda: NOW)
        self._streams = Streams(servicer, metrics)

    async def echo(self, call):
        await self._streams.serve(call, ())


async def _say(wire, stream, messages):
    for each in messages:
        await wire.told(message(stream, each.SerializeToString()))


@pytest.mark.parametrize("end", ["its usage", "a reset", "a refusal"])
async def test_a_stream_leaves_nothing_for_the_garbage_collector(end):
    wire = Wire(Streaming())
    asks = [request_head(), request_body(STREAM if end != "a refusal" else b"{")]

    async def once(stream):
        await wire.told(head(stream))
        await _say(wire, stream, asks)
        if end != "a refusal":
            await _say(wire, stream, ANSWER)
        if end == "a reset":
            await wire.told(raw(f.RST_STREAM, 0, stream, b"\0\0\0\x08"))
            return
        if end == "its usage":
            await _say(wire, stream, [LAST])
        await wire.told(raw(f.DATA, f.END_STREAM, stream))

    await once(1)
    books = wire.calls.books
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 6):
            await once(1 + 2 * number)
        for _ in range(1000):  # a stream that took too long on a busy machine has let others go first
            await asyncio.sleep(0)
        assert len(books.closed) == (0 if end == "a refusal" else 6)
        assert gc.collect() == 0
    finally:
        gc.enable()
