"""Decode header blocks (RFC 7541). The dynamic table is used as far as we allow it."""

from collections import deque
from typing import Final

from extproc.http2.huffman import HuffmanError, decode

Header = tuple[bytes, bytes]

# The size that a peer may use before it has acknowledged our settings, which forbid the table.
DEFAULT_TABLE_BYTES: Final = 4096
_ENTRY_OVERHEAD: Final = 32
# 5 bytes of 7 bits and a prefix: no length, index or size in a block of our size needs more.
_MAX_SHIFT: Final = 28
_INDEXED: Final = 0x80
_INCREMENTAL: Final = 0x40
_SIZE_UPDATE: Final = 0x20
_HUFFMAN: Final = 0x80
_CONTINUES: Final = 0x80

_STATIC_TEXT: Final = """
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204
:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|accept-encoding gzip, deflate
accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control
content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since
last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after
server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate
"""


def _entry(text: str) -> Header:
    name, _, value = text.partition(" ")
    return name.encode(), value.encode()


STATIC: Final = tuple(_entry(text) for text in _STATIC_TEXT.strip().replace("\n", "|").split("|"))
"""Hold the static table; index 1 is the first."""


class HeaderBlockError(Exception):
    """Report a block that can't be decoded: the state of the connection's compression is lost."""


class HeaderListError(Exception):
    """Report decoded headers that are larger than allowed. The state of the compression is intact."""


class _Table:
    """Hold the dynamic table, newest first."""

    __slots__ = ("bytes", "entries", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.bytes = 0
        self.entries: deque[Header] = deque()

    def add(self, header: Header) -> None:
        self.entries.appendleft(header)
        self.bytes += _size(header)
        self._shrink()

    def resize(self, size: int) -> None:
        self.size = size
        self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self.size:
            self.bytes -= _size(self.entries.pop())


class Decoder:
    """Decode the blocks of one connection, in their order."""

    __slots__ = ("_limit", "_list_bytes", "_table")

    def __init__(self, list_bytes: int) -> None:
        """Create a decoder for lists of `list_bytes` at the most: names, values, and 32 bytes for each header."""
        self._list_bytes = list_bytes
        self._limit = DEFAULT_TABLE_BYTES
        self._table = _Table(DEFAULT_TABLE_BYTES)

    def forbid_table(self) -> None:
        """Allow no dynamic table any more: the peer has acknowledged the setting."""
        self._limit = 0
        self._table.resize(0)

    @property
    def stateless(self) -> bool:
        """Tell whether equal blocks mean equal headers, whatever came before."""
        return self._table.size == 0

    def decode(self, block: bytes) -> list[Header]:
        """Decode a whole block. Raise `HeaderBlockError` or `HeaderListError`."""
        try:
            return self._decode(block)
        except IndexError:
            raise HeaderBlockError from None
        except HuffmanError:
            raise HeaderBlockError from None

    def _decode(self, block: bytes) -> list[Header]:
        found: list[Header] = []
        room, offset, end, table = self._list_bytes, 0, len(block), self._table
        while offset < end:
            first = block[offset]
            if first & _INDEXED:
                index, offset = _integer(block, offset, 0x7F)
                header = self._indexed(index)
            elif first & _INCREMENTAL:
                header, offset = self._literal(block, offset, 0x3F)
                table.add(header)
            elif first & _SIZE_UPDATE:
                if found or room != self._list_bytes:
                    raise HeaderBlockError
                size, offset = _integer(block, offset, 0x1F)
                if size > self._limit:
                    raise HeaderBlockError
                table.resize(size)
                continue
            else:
                header, offset = self._literal(block, offset, 0x0F)
            room -= _size(header)
            if room >= 0:
                found.append(header)
        if room < 0:
            raise HeaderListError
        return found

    def _indexed(self, index: int) -> Header:
        if not index:
            raise HeaderBlockError
        return STATIC[index - 1] if index <= len(STATIC) else self._table.entries[index - len(STATIC) - 1]

    def _literal(self, block: bytes, offset: int, mask: int) -> tuple[Header, int]:
        index, offset = _integer(block, offset, mask)
        if index:
            name = self._indexed(index)[0]
        else:
            name, offset = _string(block, offset)
        value, offset = _string(block, offset)
        return (name, value), offset


def _size(header: Header) -> int:
    return len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD


def _integer(block: bytes, offset: int, mask: int) -> tuple[int, int]:
    """Return the integer with this prefix, and the offset behind it."""
    value = block[offset] & mask
    offset += 1
    if value < mask:
        return value, offset
    shift = 0
    while True:
        byte = block[offset]
        offset += 1
        value += (byte & 0x7F) << shift
        if not byte & _CONTINUES:
            return value, offset
        shift += 7
        if shift > _MAX_SHIFT:
            raise HeaderBlockError


def _string(block: bytes, offset: int) -> tuple[bytes, int]:
    coded = block[offset] & _HUFFMAN
    size, offset = _integer(block, offset, 0x7F)
    end = offset + size
    if end > len(block):
        raise HeaderBlockError
    text = block[offset:end]
    return (decode(text) if coded else text), end
