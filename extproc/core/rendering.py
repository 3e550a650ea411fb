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
# With more of these the text is not taken apart, which would keep other requests waiting: all of it counts as if
# it stood outside of strings, at the worst depth that JSON readers take.
_MARKS: Final = (b'"', b"\\", b"[", b"{")
_MANY: Final = 20_000
_WORST_DEPTH: Final = 1000


def rendering_bytes(prompt: bytes) -> int:
    """Bytes that a template's own way to write JSON can add to `prompt`, at the most; 0 where it writes none.

    Linear in the size. An overestimate: every separator is taken to stand at the deepest place.
    """
    if _STRUCTURED.search(prompt) is None:
        return 0
    simple = all(prompt.count(mark) <= _MANY for mark in _MARKS)
    whole = not simple or _ARGUMENTS.search(prompt) is not None
    outside = prompt if whole else _STRING.sub(b"", prompt)
    separators = sum(outside.count(mark) for mark in (b",", b":", b"[", b"]", b"{", b"}"))
    exponents = outside.count(b"e") + outside.count(b"E")
    return separators * (2 + _INDENT * (_depth(outside) if simple else _WORST_DEPTH)) + exponents * _NUMBER_BYTES


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
