"""List answers that are cheap to send and dear to read: what an upstream, or the model of an attacker, may answer.

Each entry makes the messages of one exchange. The list grows: a new fault is a new entry.
"""

import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from tests.envoy.messages import CHAT, header_map, request_body, request_head
from tests.sizes import sized

from .stalls import Shape

MIB = 1 << 20
# More takes longer, and shows no more.
SIZE = sized(2 * MIB, 8 * MIB) - 256
EVENTS, JSON = "text/event-stream", "application/json"
PACK = {"gzip": partial(gzip.compress, mtime=0), "deflate": zlib.compress}


def head(kind: str, coding: str = "") -> pb.ProcessingRequest:
    headers = {":status": "200", "content-type": kind} | ({"content-encoding": coding} if coding else {})
    return pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=header_map(headers)))


def exchange(
    kind: str, body: bytes, *, coding: str = "", piece: int = MIB, path: str = "/v1/chat/completions"
) -> list[pb.ProcessingRequest]:
    """Return one exchange whose answer is `body`, in messages of `piece` bytes: in one, if it is small enough."""
    body = PACK[coding](body) if coding else body
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    messages = [pb.ProcessingRequest(response_body=pb.HttpBody(body=data)) for data in pieces]
    messages.append(pb.ProcessingRequest(response_body=pb.HttpBody(end_of_stream=True)))
    asked = CHAT | {"stream": kind == EVENTS}
    return [request_head(path=path), request_body(asked), head(kind, coding), *messages]


def filled(unit: bytes, size: int = SIZE, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return `unit` over and over between `before` and `after`; `size` bytes, about."""
    return before + unit * (size // len(unit)) + after


def listed(unit: bytes, before: bytes, after: bytes, size: int = SIZE) -> bytes:
    """Return a JSON text with a list of many `unit`."""
    return before + b"[" + b",".join([unit] * (size // (len(unit) + 1))) + b"]" + after


# Events that are cheap to send: 8 MiB of each compress to 8 kB.
_EVENTS: dict[str, Callable[[], bytes]] = {
    "events of a letter": lambda: filled(b"x\n\n"),
    "events of a letter, CR": lambda: filled(b"x\r\r"),
    "events of a letter, CRLF": lambda: filled(b"x\r\n\r\n"),
    "events of nothing, LF": lambda: filled(b"\n"),
    "events of nothing, CR": lambda: filled(b"\r"),
    "events of nothing, CRLF": lambda: filled(b"\r\n"),
    "events of nothing, line ends mixed": lambda: filled(b"\r\n\r\r\n\n"),
    "comments": lambda: filled(b":\n\n"),
    "data of nothing": lambda: filled(b"data\n\n"),
    "data of a letter": lambda: filled(b"data:x\n\n"),
    "data of an empty object": lambda: filled(b"data: {}\n\n"),
    "data of a number": lambda: filled(b"data: 1\n\n"),
    "data of a list": lambda: filled(b"data:[]\n\n"),
    "data of a list of objects": lambda: filled(b"data:[{}]\n\n"),
    "data of a done": lambda: filled(b"data: [DONE]\n\n"),
    "data that is no JSON": lambda: filled(b"data: {\n\n"),
    "data of an error": lambda: filled(b'data:{"error":1}\n\n'),
    "data of usage": lambda: filled(b'data:{"usage":{"prompt_tokens":1}}\n\n'),
    "data of odd usage": lambda: filled(b'data:{"usage":{"prompt_tokens":1,"iterations":[5]}}\n\n'),
    "data of choices": lambda: filled(b'data:{"choices":[{"index":1,"delta":{"content":"x"}}]}\n\n'),
    "data of a choice with usage": lambda: filled(
        b'data:{"choices":[{"index":1,"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n'
    ),
    "data over lines of nothing": lambda: filled(b"data\n"),
    "data over lines of a letter": lambda: filled(b"data:x\n"),
    "data over lines, then an end": lambda: filled(b"data:{\n", before=b"", after=b"\n\n"),
    "lines of nothing known": lambda: filled(b"x\n"),
    "lines of a carriage return": lambda: filled(b"x\r"),
    "one long line": lambda: filled(b"x"),
    "one long line of data": lambda: filled(b"x", before=b"data: "),
    "an event of empty objects": lambda: listed(b"{}", b'data: {"choices":', b"}\n\n"),
    "an event of lists": lambda: filled(b"[]", before=b'data: {"choices":[', after=b"]}\n\n"),
    "two events, each half": lambda: 2 * listed(b"{}", b'data: {"choices":', b"}\n\n", SIZE // 2),
    "events of 60 kB": lambda: SIZE // 60_000 * listed(b"{}", b'data: {"choices":', b"}\n\n", 60_000),
    "events of 200 kB": lambda: SIZE // 200_000 * listed(b"{}", b'data: {"choices":', b"}\n\n", 200_000),
}

# JSON texts, as plain answers and as the data of one event.
_TEXTS: dict[str, Callable[[], bytes]] = {
    "passes of nothing": lambda: listed(b"{}", b'{"usage":{"input_tokens":1,"iterations":', b"}}"),
    "passes of a token": lambda: listed(b'{"input_tokens":1}', b'{"usage":{"input_tokens":1,"iterations":', b"}}"),
    "passes that are odd": lambda: listed(b"{}", b'{"usage":{"input_tokens":1,"iterations":[5,', b"]}}"),
    "passes of numbers": lambda: listed(b"1", b'{"usage":{"input_tokens":1,"iterations":', b"}}"),
    "usage of many fields": lambda: (
        b'{"usage":{' + b",".join(b'"%d":1' % n for n in range(700_000)) + b',"prompt_tokens":-1}}'
    ),
    "odd usage of one field many times": lambda: filled(
        b'"input_tokens":1,', before=b'{"usage":{', after=b'"cached_tokens":-1}}'
    ),
    "details of many fields": lambda: (
        b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":-1,'
        + b",".join(b'"%d":1' % n for n in range(600_000))
        + b"}}}"
    ),
    "choices of nothing": lambda: listed(b"{}", b'{"choices":', b"}"),
    "choices of lists": lambda: listed(b"[]", b'{"choices":', b"}"),
    "choices of numbers": lambda: listed(b"1", b'{"choices":', b"}"),
    "choices just below what is built": lambda: listed(b"{}", b'{"choices":', b"}", 3 * 262_000),
    "choices with usage": lambda: listed(b'{"index":1,"usage":{"prompt_tokens":1}}', b'{"choices":', b"}"),
    "choices with deltas": lambda: listed(b'{"index":1,"delta":{"content":"x"}}', b'{"choices":', b"}"),
    "a field many times": lambda: filled(b'"usage":1,', before=b"{", after=b'"usage":2}'),
    "choices many times": lambda: filled(b'"choices":[{}],', before=b"{", after=b'"usage":2}'),
    "many fields": lambda: b"{" + b",".join(b'"%d":1' % n for n in range(700_000)) + b"}",
    "a list of empty answers": lambda: listed(b"{}", b"", b""),
    "a list of answers with usage": lambda: listed(b'{"usage":{"prompt_tokens":1}}', b"", b""),
    "a list of numbers": lambda: listed(b"1", b"", b""),
    "nested lists": lambda: b'{"usage":' + b"[" * (4 * MIB) + b"]" * (4 * MIB - 64) + b"}",
    "nested ten deep": lambda: listed(b"[[[[[[[[[[]]]]]]]]]]", b'{"choices":[{"delta":{"content":', b"}}]}"),
    "content of lists": lambda: listed(b"[]", b'{"choices":[{"message":{"content":', b"}}]}"),
    "content of escapes": lambda: filled(b"\\n", before=b'{"choices":[{"message":{"content":"', after=b'"}}]}'),
    "content of code points": lambda: filled(
        b"\\u00e4", before=b'{"choices":[{"message":{"content":"', after=b'"}}]}'
    ),
    "content of text": lambda: filled(
        b"water ",
        4 * MIB,
        b'{"choices":[{"index":0,"message":{"content":"',
        b'"}}],"usage":{"prompt_tokens":5,"completion_tokens":700000}}',
    ),
    "log probabilities": lambda: listed(
        json.dumps({"token": "x", "logprob": -0.1, "bytes": [120], "top_logprobs": []}).encode(),
        b'{"choices":[{"message":{"content":"x"},"logprobs":{"content":',
        b'}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}',
    ),
    "deltas of lists": lambda: listed(b"[]", b'{"type":"content_block_delta","delta":', b"}"),
    "message of lists": lambda: listed(b"[]", b'{"message":{"content":', b"}}"),
    "output of objects": lambda: listed(b"{}", b'{"object":"response","output":', b"}"),
    "embeddings": lambda: listed(b"0.25", b'{"data":[{"embedding":', b'}],"usage":{"prompt_tokens":5}}'),
    "an image": lambda: filled(
        b"iVBORw0K", 5 * MIB, b'{"data":[{"b64_json":"', b'"}],"usage":{"input_tokens":5,"output_tokens":9}}'
    ),
    "white space": lambda: filled(b" "),
    "white space within": lambda: filled(b" ", before=b"{", after=b'"usage":{"prompt_tokens":1}}'),
    "meta of many fields": lambda: b'{"meta":{' + b",".join(b'"%d":1' % n for n in range(700_000)) + b"}}",
}


def _shapes() -> dict[str, Shape]:
    shapes = {}
    for name, make in _EVENTS.items():
        shapes[f"{name}, gzip"] = Shape(lambda make=make: exchange(EVENTS, make(), coding="gzip"))
        shapes[f"{name}, in pieces of 1 MiB"] = Shape(lambda make=make: exchange(EVENTS, make()))
    for name, make in _TEXTS.items():
        shapes[f"{name}, plain"] = Shape(lambda make=make: exchange(JSON, make()))
        shapes[f"{name}, gzip"] = Shape(lambda make=make: exchange(JSON, make(), coding="gzip"))
        shapes[f"{name}, as an event"] = Shape(lambda make=make: exchange(EVENTS, b"data: " + make() + b"\n\n"))
    tiny = partial(filled, b"x\n\n")
    shapes["events of a letter, deflate"] = Shape(lambda: exchange(EVENTS, tiny(), coding="deflate"))
    shapes["events of a letter, called JSON"] = Shape(
        lambda: exchange(JSON, b"data:x\n\n" + tiny(), coding="gzip")
    )
    shapes["events of a letter, in 100 chunks of gzip"] = Shape(
        lambda: exchange(EVENTS, tiny(), coding="gzip", piece=82)
    )
    shapes["events of a letter, four at once"] = Shape(
        lambda: exchange(EVENTS, tiny(4 * MIB), coding="gzip"), attackers=4
    )
    for unit, name in ((b"data: {}\n\n", "tiny events"), (b'data:{"text":1}\n\n', "tiny texts")):
        for piece in (1 << 10, 4 << 10):
            shapes[f"{name} in pieces of {piece} bytes, twenty at once"] = Shape(
                lambda unit=unit, piece=piece: exchange(EVENTS, filled(unit, 40_000), piece=piece), attackers=20
            )
    shapes["gzip of tiny events, twenty at once"] = Shape(
        lambda: exchange(EVENTS, filled(b"data: {}\n\n", 200_000), coding="gzip"), attackers=20
    )
    shapes["choices of nothing, small, twenty at once"] = Shape(
        lambda: exchange(JSON, listed(b"{}", b'{"choices":', b"}", 4_000)), attackers=20, times=10
    )
    shapes["gzip of many members"] = Shape(lambda: _members(200_000))
    shapes["gzip of zeros"] = Shape(lambda: exchange(EVENTS, bytes(60 * MIB), coding="gzip"))
    return shapes


def _members(count: int) -> list[pb.ProcessingRequest]:
    messages = exchange(EVENTS, b"")
    body = PACK["gzip"](b"") * count
    messages[2] = head(EVENTS, "gzip")
    return [*messages[:3], pb.ProcessingRequest(response_body=pb.HttpBody(body=body)), messages[-1]]


# By name.
SHAPES: dict[str, Shape] = _shapes()
# Of them, answers that real servers give.
HONEST = tuple(
    f"{name}, {form}"
    for name in ("content of text", "log probabilities", "embeddings", "an image")
    for form in ("plain", "gzip", "as an event")
)
