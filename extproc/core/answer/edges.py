"""Usage out of the edges of a JSON answer that is too large to keep: a batch of embeddings, an image.

Servers write usage before all the data or after it. That it stands at the top level, and in no string, follows
from what is at the edge, provided that the answer is JSON and complete:

- The first bytes, up to the comma before a member, are an object of their own once a brace closes them. So the
  comma is at the top level.
- The last bytes, from the key of a member on, are an object of their own once a brace opens them. So the brace
  that ends them ends the answer. A comma stands before the key: inside a string, the quote that follows it would
  end the string, and what comes then would be no JSON.
"""

from collections.abc import Iterator
from typing import Final

from extproc.core.answer.reading import read_answer
from extproc.core.answer.usage_reader import Absence
from extproc.core.quota.usage import Usage

EDGE_BYTES: Final = 64 << 10
# What usage is in, at the end, and what it stands before, at the beginning.
_LAST: Final = (b'"usage"', b'"meta"', b'"prompt_eval_count"')
_DATA: Final = (b'"data"', b'"embeddings"', b'"results"')
# A name may stand in the answer more than once; how often it is tried is bounded.
_TRIES: Final = 4
_SPACE: Final = b" \t\r\n"


class Edges:
    """The first and the last `EDGE_BYTES` of what is fed, at least."""

    __slots__ = ("_head", "_tail")

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes. Cost is linear in the bytes fed, however they are split."""
        self._head += chunk[: EDGE_BYTES - len(self._head)]
        self._tail += chunk[-EDGE_BYTES:]
        if len(self._tail) > 2 * EDGE_BYTES:
            del self._tail[:-EDGE_BYTES]

    def usage(self) -> Usage | Absence:
        """The usage in an answer that has come to its end."""
        found: Absence = Absence.UNREADABLE
        for text in (*_ends(bytes(self._tail)), *_beginnings(bytes(self._head))):
            usage = read_answer(text).usage
            if isinstance(usage, Usage):
                return usage
            found = usage if usage in {Absence.ABSURD, Absence.OTHER_UNIT} else found
        return found


def _ends(tail: bytes) -> Iterator[bytes]:
    for name in _LAST:
        at = len(tail)
        for _ in range(_TRIES):
            at = tail.rfind(name, 0, at)
            if at < 0:
                break
            if tail[:at].rstrip(_SPACE).endswith(b","):
                yield b"{" + tail[at:]


def _beginnings(head: bytes) -> Iterator[bytes]:
    for name in _DATA:
        before = head[: max(0, head.find(name))].rstrip(_SPACE)
        if before.endswith(b","):
            yield before[:-1] + b"}"
