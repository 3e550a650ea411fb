"""Decode strings of header blocks that are Huffman-coded (RFC 7541, 5.2 and appendix B)."""

from functools import cache
from typing import Final

_EOS: Final = 256
_EOS_BITS: Final = 30
_MAX_PADDING_BITS: Final = 7

# Symbols by the number of bits of their codes. The code is canonical: it follows from these numbers, if codes are
# given out in the order of bits, then symbols.
_SYMBOLS: Final = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: bytes.fromhex("0024405b5d7e"),
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: bytes.fromhex("0a0d16"),
}


class HuffmanError(Exception):
    """Report bytes that are no Huffman code."""


class _Node:
    """Stand for the bits of a symbol that were read so far."""

    __slots__ = ("depth", "next", "ones")

    def __init__(self, depth: int, *, ones: bool) -> None:
        self.depth = depth
        self.ones = ones
        self.next: list[_Node | int | None] = [None, None]

    @property
    def may_end(self) -> bool:
        """Tell whether a string may end here: what was read is padding."""
        return self.ones and self.depth <= _MAX_PADDING_BITS


# For each node and each byte: the symbols that end within it, and the next node; None if there is no such code.
_Step = tuple[bytes, int]


class _Table:
    """Hold the steps from node to node, each made when it is first needed. Node 0 is the beginning of a symbol."""

    def __init__(self) -> None:
        self._nodes = [root := _Node(0, ones=True)]
        self._numbers = {id(root): 0}
        code, before = -1, 0
        pairs = [(bits, symbol) for bits, symbols in _SYMBOLS.items() for symbol in symbols]
        for bits, symbol in [*pairs, (_EOS_BITS, _EOS)]:
            code = (code + 1) << (bits - before)
            before = bits
            self._put(root, code, bits, symbol)
        self._steps: list[list[_Step | None]] = [[None] * 256 for _ in self._nodes]
        self.may_end = [node.may_end for node in self._nodes]

    def _put(self, node: _Node, code: int, bits: int, symbol: int) -> None:
        for place in range(bits - 1, 0, -1):
            bit = code >> place & 1
            found = node.next[bit]
            if not isinstance(found, _Node):
                found = node.next[bit] = _Node(node.depth + 1, ones=node.ones and bit == 1)
                self._numbers[id(found)] = len(self._nodes)
                self._nodes.append(found)
            node = found
        node.next[code & 1] = symbol

    def step(self, number: int, byte: int) -> _Step:
        """Return the symbols that end within a byte, and the next node. Raise `HuffmanError`."""
        known = self._steps[number][byte]
        if known is None:
            known = self._steps[number][byte] = self._walk(self._nodes[number], byte)
        return known

    def _walk(self, node: _Node, byte: int) -> _Step:
        symbols = bytearray()
        for place in range(7, -1, -1):
            found = node.next[byte >> place & 1]
            if isinstance(found, _Node):
                node = found
            elif found is None or found == _EOS:
                raise HuffmanError
            else:
                symbols.append(found)
                node = self._nodes[0]
        return bytes(symbols), self._numbers[id(node)]


@cache
def _table() -> _Table:
    return _Table()


def decode(coded: bytes) -> bytes:
    """Decode a whole string. Raise `HuffmanError` for codes that do not exist, and for wrong padding."""
    table, number, parts = _table(), 0, []
    for byte in coded:
        symbols, number = table.step(number, byte)
        if symbols:
            parts.append(symbols)
    if not table.may_end[number]:
        raise HuffmanError
    return b"".join(parts)
