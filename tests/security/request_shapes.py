"""List requests that are cheap to send and dear to read: what a client may send.

Each entry makes the messages of one exchange up to its body. The list grows: a new fault is a new entry.
"""

import json
from collections.abc import Callable, Sequence

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from tests.envoy.messages import request_body, request_head

from .stalls import Shape

MIB = 1 << 20
SIZE = 4 * MIB - 4096
PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
    "messages": "/v1/messages",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "speech": "/v1/audio/speech",
    "transcription": "/v1/audio/transcriptions",
}


def filled(unit: str, size: int = SIZE) -> str:
    """Return a JSON list of many `unit`."""
    return "[" + ",".join([unit] * (size // (len(unit) + 1))) + "]"


def fields(unit: str, size: int = SIZE) -> str:
    """Return a JSON object of many fields."""
    return "{" + ",".join([unit] * (size // (len(unit) + 1))) + "}"


def chat(content: str, **more: str) -> bytes:
    further = "".join(f',"{name}":{value}' for name, value in more.items())
    return f'{{"model":"m","messages":[{{"role":"user","content":{content}}}]{further}}}'.encode()


def nested(beside: str, depth: int) -> bytes:
    """Return a chat with content in content, and a picture behind what is large, at the innermost level."""
    inner = f'[{{"type":"text","text":"x","beside":{beside}}},{{"type":"image_url","image_url":{{"url":"u"}}}}]'
    return chat('[{"type":"tool_result","content":' * depth + inner + "}]" * depth)


def small(count: int, piece: str) -> bytes:
    return chat("[" + ",".join([piece] * count) + "]")


def form(disposition: str, data: bytes) -> bytes:
    head = f"--B\r\ncontent-disposition: {disposition}\r\n\r\n".encode()
    model = b'--B\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
    return head + data + b"\r\n" + model


_PICTURE = '{"type":"image_url","image_url":{"url":"u"}}'
_FILE = 'form-data; name="file"; filename="f"'
CHATS: dict[str, Callable[[], bytes]] = {
    "empty strings, ten deep": lambda: nested(filled('""'), 10),
    "empty objects, ten deep": lambda: nested(filled("{}"), 10),
    "empty lists, four deep": lambda: nested(filled("[]"), 4),
    "names of media, ten deep": lambda: nested(filled('"file"'), 10),
    "letters of a name, ten deep": lambda: nested('"' + "l" * SIZE + '"', 10),
    "fields, ten deep": lambda: nested(fields('"":0'), 10),
    "content of empty strings": lambda: chat(filled('""')[:-1] + "," + _PICTURE + "]"),
    "messages of nothing": lambda: b'{"model":"m","messages":' + filled("{}").encode() + b"}",
    "chats of nothing": lambda: b'{"model":"m","messages":' + filled("[]").encode() + b"}",
    "lists in lists": lambda: chat("[" * (SIZE // 2) + "]" * (SIZE // 2)),
    "tools of nothing": lambda: chat('"x"', tools=filled("{}")),
    "options of nothing": lambda: chat('"x"', stream_options=fields('"":0')),
    "thoughts of nothing": lambda: chat('"x"', thinking=fields('"":0'), max_tokens="9", stream="true"),
    "a field of many digits": lambda: chat('"x"', n="1" * SIZE),
    "escapes": lambda: chat('"' + "\\u0041" * (SIZE // 6) + '"'),
    "white space": lambda: b" " * SIZE + chat('"x"'),
    "fields at the top": lambda: b'{"model":"m","messages":[],' + fields('"":0').encode()[1:],
    "pictures in 60 kB": lambda: small(1250, _PICTURE),
    "parts of nothing in 60 kB": lambda: small(18_000, "{}")[:-4] + b',{"image_url":0}]}]}',
}
OTHERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "prompts of nothing": ("completion", lambda: b'{"model":"m","prompt":' + filled('""').encode() + b"}"),
    "lists of token ids": ("completion", lambda: b'{"model":"m","prompt":' + filled("[1]").encode() + b"}"),
    "token ids": ("completion", lambda: b'{"model":"m","prompt":' + filled("1").encode() + b"}"),
    "items of nothing": ("response", lambda: b'{"model":"m","input":' + filled("{}").encode() + b"}"),
    "a system prompt of parts": (
        "messages",
        lambda: b'{"model":"m","messages":[],"system":' + filled('{"source":{}}').encode() + b"}",
    ),
    "texts of nothing": ("embedding", lambda: b'{"model":"m","input":' + filled('""').encode() + b"}"),
    "documents of nothing": (
        "rerank",
        lambda: b'{"model":"m","query":"q","documents":' + filled("{}").encode() + b"}",
    ),
    "pictures to speak": ("speech", lambda: b'{"model":"m","input":"x","image":' + filled('""').encode() + b"}"),
    "line ends in a file": ("transcription", lambda: form(_FILE, b"\r\n" * (SIZE // 2))),
    "beginnings of a boundary": ("transcription", lambda: form(_FILE, b"\r\n--" * (SIZE // 4))),
    "a field of a form, again and again": (
        "transcription",
        lambda: (
            b"".join(
                b'--B\r\ncontent-disposition: form-data; name="x"\r\n\r\n' + b"y" * (SIZE // 130) + b"\r\n"
                for _ in range(120)
            )
            + form(_FILE, b"x")
        ),
    ),
    "parts with many options": (
        "transcription",
        lambda: b"".join(
            b"--B\r\ncontent-disposition: form-data; name=x" + b"; a=b" * 380 + b"\r\n\r\n\r\n" for _ in range(120)
        ),
    ),
}
# What people send.
HONEST: dict[str, Callable[[], bytes]] = {
    "a picture of 3 MB": lambda: chat(
        '[{"type":"text","text":"What is it?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,'
        + "iVBORw0KGgo" * (SIZE // 11)
        + '"}}]'
    ),
    "4 MB of text": lambda: chat(json.dumps('The quick brown fox; "quoted",\nand more. ' * (SIZE // 46))),
    "4 MB of text in a stream": lambda: chat(
        json.dumps('The quick brown fox; "quoted",\nand more. ' * (SIZE // 46)), stream="true"
    ),
    "a long conversation": lambda: (
        b'{"model":"m","messages":['
        + b",".join([b'{"role":"user","content":"' + b"tell me more about it " * 18 + b'"}'] * 9000)
        + b"]}"
    ),
}


def exchange(body: bytes, path: str = PATHS["chat"], kind: str = "application/json") -> list[pb.ProcessingRequest]:
    return [request_head([("content-type", kind)], path=path), request_body(body)]


def _shape(make: Callable[[], bytes], kind: str = "chat", **options: int) -> Shape:
    content_type = "multipart/form-data; boundary=B" if kind == "transcription" else "application/json"

    def messages() -> Sequence[pb.ProcessingRequest]:
        return exchange(make(), PATHS[kind], content_type)

    return Shape(messages, **options)


DEAR = {name: _shape(make, attackers=2) for name, make in CHATS.items()} | {
    name: _shape(make, kind, attackers=2) for name, (kind, make) in OTHERS.items()
}
ORDINARY = {name: _shape(make, times=4) for name, make in HONEST.items()}
