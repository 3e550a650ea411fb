"""Weigh a prompt by what its text is: a byte of one script or kind becomes more tokens than a byte of another.

A weighed byte stands for about a quarter of a token, whatever the text: English, Chinese, code, digits or base64.
The weights are a common fit to the byte-level tokenizers of several families, so they suit none exactly; what a
model's own tokenizer makes of a weighed byte is learned.
"""

import zlib
from typing import Final

# The weights are in tenths of a byte. Outside of ASCII, the first byte of a character stands for the whole
# character.
_TENTHS: Final = 10
_SYNTAX, _PUNCTUATION, _CONTROL, _BACKSLASH, _DIGIT, _UPPER, _LOWER = 5, 10, 16, 30, 34, 44, 8
_REST_OF_CHARACTER: Final = 1
_FIRST_BYTES: Final = (
    (0xC0, 33),  # Western European letters
    (0xC4, 55),  # other Latin letters
    (0xCA, 19),  # Greek
    (0xD0, 12),  # Cyrillic
    (0xD4, 16),  # Hebrew, Arabic
    (0xE0, 19),  # the scripts of India, Thai
    (0xE1, 24),  # Vietnamese letters, Georgian
    (0xE2, 24),  # quotation marks, dashes, symbols
    (0xE3, 28),  # Japanese syllables, Chinese punctuation
    (0xE4, 29),  # Chinese characters
    (0xEA, 30),  # Korean
    (0xEE, 30),  # wide punctuation
    (0xF0, 60),  # emoji
)
# The sums of this many weights fit into the lower half of an Adler-32 checksum.
_BLOCK: Final = 1024
# The most that is looked at: pieces from all over a larger prompt stand for the whole.
_BLOCKS: Final = 64
# JSON in ASCII writes other scripts as escapes. Few of them in a text make no difference.
_ESCAPE: Final = b"\\u"
_ESCAPE_BYTES: Final = 6
_FEW: Final = 20


def _weights() -> bytes:
    weights = bytearray([_CONTROL] * 0x20 + [_PUNCTUATION] * 0x60 + [_REST_OF_CHARACTER] * 0x40 + [0] * 0x40)
    for first, weight in _FIRST_BYTES:
        weights[first:] = bytes([weight]) * (len(weights) - first)
    for characters, weight in (
        (b"abcdefghijklmnopqrstuvwxyz ", _LOWER),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", _UPPER),
        (b"0123456789", _DIGIT),
        (b'"{}[]:,', _SYNTAX),
        (b"\\", _BACKSLASH),
    ):
        for character in characters:
            weights[character] = weight
    return bytes(weights)


_WEIGHTS: Final = _weights()


def weighed_bytes(text: bytes, size: int) -> int:
    """Return the weight of `size` bytes of which `text` (JSON) is typical, in bytes: 0 or more.

    Looks at 64 KiB at the most. Takes less than 2 µs for a text of 200 bytes.
    """
    if not text:
        return size
    looked_at = text if len(text) <= _BLOCK * _BLOCKS else _pieces(text)
    shown = _read(looked_at) if _ESCAPE in looked_at else looked_at
    return size * _weight(shown) // (_TENTHS * len(looked_at))


def _weight(text: bytes) -> int:
    """Return the sum of the bytes' weights. Adler-32 is the way to sum bytes without a loop over them."""
    weights = text.translate(_WEIGHTS)
    if len(weights) <= _BLOCK:
        return (zlib.adler32(weights) & 0xFFFF) - 1
    starts = range(0, len(weights), _BLOCK)
    return sum(zlib.adler32(weights[start : start + _BLOCK]) & 0xFFFF for start in starts) - len(starts)


def _pieces(text: bytes) -> bytes:
    apart = len(text) // _BLOCKS
    return b"".join(text[start : start + _BLOCK] for start in range(0, apart * _BLOCKS, apart))


def _read(text: bytes) -> bytes:
    """Return the text with its escapes read, if it has many of them."""
    if text.count(_ESCAPE) * _ESCAPE_BYTES * _FEW < len(text):
        return text
    return text.decode("unicode_escape", "replace").encode("utf-8", "surrogatepass")
