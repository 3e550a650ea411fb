"""How much longer a chat template can make the JSON that a client sent, when it writes it anew.

Templates write tools, documents and the arguments of tool calls as JSON of their own, some with an indent of four:
spaces after commas and colons, a line for each element, numbers without an exponent. Where that is so, the bytes
that were sent bound nothing, but those of the longest form that they can be given do.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

# Fields that templates write as JSON, and where messages are that have some inside.
_STRUCTURED: Final = ("tools", "functions", "documents", "response_format", "text")
_MESSAGES: Final = ("messages", "input", "previous_input_messages")
# Strings that hold JSON themselves, which a template may take apart.
_ARGUMENTS: Final = re.compile(rb"arguments|\\u00")
_TOOL_USE: Final = re.compile(rb"tool_use|\\u00")
# A cheap look before messages are opened. A field's name may be written with escapes.
_HINT: Final = re.compile(rb'"(?:tool_calls|function_call|tool_use|arguments)"|\\u00')
_STRING: Final = re.compile(rb'"(?>[^"\\]+|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_INDENT: Final = 4
# A number such as 1e15 is written with all its digits; no float has more characters than this.
_NUMBER_BYTES: Final = 25
# With more of these the text is not taken apart, which would keep other requests waiting: all of it counts as if
# it stood outside of strings, at the worst depth that JSON readers take.
_MARKS: Final = (b'"', b"\\", b"[", b"{")
_MANY: Final = 20_000
_WORST_DEPTH: Final = 1000


class _Message(msgspec.Struct, gc=False):
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()
    arguments: Raw = Raw()  # of an item of a response's input
    content: Raw = Raw()


_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_messages: Final = msgspec.json.Decoder(list[_Message]).decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def rendering_bytes(prompt: bytes) -> int:
    """Bytes that a template's own way to write JSON can add to `prompt` (an object), at the most.

    Linear in the size. An overestimate: every separator is taken to stand at the deepest place. Text in messages
    adds nothing; a prompt that can't be read counts whole.
    """
    try:
        fields = _fields(prompt)
    except _UNREADABLE:
        return _added(prompt)
    structured = [fields[name] for name in _STRUCTURED if name in fields]
    for name in _MESSAGES:
        if name in fields:
            structured += _inside(fields[name])
    return sum(_added(bytes(raw)) for raw in structured)


def _inside(messages: Raw) -> Iterator[Raw]:
    """What templates write as JSON out of messages: calls of tools, and content that is made of them."""
    if _HINT.search(messages) is None:
        return
    try:
        read = _messages(messages)
    except _UNREADABLE:
        yield messages
        return
    for message in read:
        yield from (raw for raw in (message.tool_calls, message.function_call, message.arguments) if len(raw))
        if bytes(memoryview(message.content)[:1]) == b"[" and _TOOL_USE.search(message.content) is not None:
            yield message.content


def _added(text: bytes) -> int:
    simple = all(text.count(mark) <= _MANY for mark in _MARKS)
    # A string that is taken apart, or stands on its own, is JSON again: nothing of it may be left out.
    whole = not simple or _ARGUMENTS.search(text) is not None or text.startswith(b'"')
    outside = text if whole else _STRING.sub(b"", text)
    separators = sum(outside.count(mark) for mark in (b",", b":", b"[", b"]", b"{", b"}"))
    exponents = outside.count(b"e") + outside.count(b"E")
    return separators * (2 + _INDENT * (_depth(outside) if simple else _WORST_DEPTH)) + exponents * _NUMBER_BYTES


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
