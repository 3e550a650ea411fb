"""Cut long reads into pages: a bound on the rows, and a cursor that says where the next page begins."""

import base64
import binascii
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from extproc.admin.errors import AdminError

T = TypeVar("T")
K = TypeVar("K")

# A page is for a reader; who wants more follows the cursor.
MAX_PAGE: Final = 10_000
_MAX_CURSOR_CHARS: Final = 4096


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Hold some rows, and the cursor of the page after them; None: these are the last ones."""

    rows: tuple[T, ...]
    cursor: str | None = None


def cursor_of(key: object) -> str:
    """Return the sort key of a page's last row as opaque text. The key consists of what JSON can hold."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def key_of(cursor: str, kind: type[K]) -> K:
    """Return the sort key of a cursor. Raise `AdminError` for text that is no cursor of this kind of read."""
    try:
        padded = cursor[:_MAX_CURSOR_CHARS].encode("ascii") + b"=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise AdminError("the cursor can't be read: use the one that the page before gave, as it is") from None


def checked_page(at_most: int) -> int:
    """Return the bound on the rows. Raise `AdminError` if it is not from 1 to `MAX_PAGE`."""
    if not 1 <= at_most <= MAX_PAGE:
        raise AdminError(f"the number of rows must be from 1 to {MAX_PAGE}")
    return at_most
