"""Long lists in pieces that a store takes at once."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in their order, in pieces of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
