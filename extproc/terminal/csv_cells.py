"""Write CSV that a spreadsheet opens as it is: no cell is taken for a formula."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any, Final, TextIO

# What makes a spreadsheet take a cell for a formula, also behind spaces that it takes off.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_writer(stream: TextIO) -> Any:
    """Return a writer of lines in the form of RFC 4180, with a line feed at the end."""
    return csv.writer(stream, lineterminator="\n")


def cells(values: Iterable[object]) -> Sequence[object]:
    """Return the cells of a line. A text that could be a formula gets an apostrophe; numbers stay numbers."""
    return ["" if value is None else safe(value) if isinstance(value, str) else value for value in values]


def safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
