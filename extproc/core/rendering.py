"""How much longer a chat template can make the JSON that a client sent, when it writes it anew.

Templates write tools, documents and the arguments of tool calls as JSON of their own, some with an indent of
four: spaces after commas and colons, a line for each element, numbers without an exponent. Where that is so, the
bytes that were sent bound nothing, but those of the longest form that they can be given do.
"""

import re
from typing import Final

# Keys of what templates write as JSON. Within a string each quote is escaped, so these are keys and no text.
_STRUCTURED: Final = re.compile(rb'"(?:tools|functions|documents|tool_calls|function_call|tool_use|arguments)"')
# Strings that hold JSON themselves, which a template may take apart.
_ARGUMENTS: Final = re.compile(rb'"(?:arguments|function_call)"')
_STRING: Final = re.compile(rb'"(?>[^"\\]+|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_INDENT: Final = 4
# A number such as 1e15 is written with all its digits; no float has more characters than this.
_NUMBER_BYTES: Final = 25
# With more brackets than this the depth is not looked for: it is taken for the worst that JSON readers take.
_MAX_BRACKETS: Final = 20_000
_WORST_DEPTH: Final = 1000


def rendering_bytes(prompt: bytes) -> int:
    """Bytes that a template's own way to write JSON can add to `prompt`, at the most; 0 where it writes none.

    Linear in the size. An overestimate: every separator is taken to stand at the deepest place.
    """
    if _STRUCTURED.search(prompt) is None:
        return 0
    outside = prompt if _ARGUMENTS.search(prompt) is not None else _STRING.sub(b"", prompt)
    separators = sum(outside.count(mark) for mark in (b",", b":", b"[", b"]", b"{", b"}"))
    exponents = outside.count(b"e") + outside.count(b"E")
    return separators * (2 + _INDENT * _depth(outside)) + exponents * _NUMBER_BYTES


def _depth(text: bytes) -> int:
    brackets = _BRACKET.findall(text)
    if len(brackets) > _MAX_BRACKETS:
        return _WORST_DEPTH
    depth = deepest = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
