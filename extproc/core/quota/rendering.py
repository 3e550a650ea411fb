"""Bound how much longer a chat template can make the client's JSON when it writes the JSON anew.

Templates write tools, documents and the arguments of tool calls as JSON of their own, some with an indent of four:
with spaces after commas and colons, a line for each element, numbers without an exponent. The bytes that were sent
are then no bound, but the bytes of the longest such form are.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

# Fields that templates write as JSON, and the fields of messages that contain such fields.
_STRUCTURED: Final = ("tools", "functions", "documents", "response_format", "text")
_MESSAGES: Final = ("messages", "input", "previous_input_messages")
# Strings that contain JSON, which a template may parse.
_ARGUMENTS: Final = re.compile(rb"arguments|\\u00")
_TOOL_USE: Final = re.compile(rb"tool_use|\\u00")
# A cheap test before messages are parsed. A field's name may be written with escapes.
_HINT: Final = re.compile(rb'"(?:tool_calls|function_call|tool_use|arguments)"|\\u00')
_STRING: Final = re.compile(rb'"(?>[^"\\]+|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_INDENT: Final = 4
# A number such as 1e15 is written with all its digits; no float has more characters than this.
_NUMBER_BYTES: Final = 25
# A text with more of these is not parsed, because that would block other requests. It counts as if all of it stood
# outside of strings, at the greatest depth that JSON readers accept.
_MARKS: Final = (b'"', b"\\", b"[", b"{")
_MANY: Final = 20_000
_WORST_DEPTH: Final = 1000


class _Message(msgspec.Struct, gc=False):
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()
    arguments: Raw = Raw()  # of an item in a response's input
    content: Raw = Raw()


_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_messages: Final = msgspec.json.Decoder(list[_Message]).decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def rendering_bytes(prompt: bytes) -> int:
    """Return the most bytes that a template's own JSON can add to `prompt` (a JSON object).

    Takes linear time. Overestimates: every separator counts as if it stood at the deepest place. Text in messages
    adds nothing. A prompt that can't be read counts whole.
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
    """Yield the parts of messages that templates write as JSON: tool calls, and content made of them."""
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
    # A string that is parsed, or stands alone, is JSON again: none of it may be left out.
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
