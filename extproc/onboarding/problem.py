"""One thing that is wrong with values."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` is that of the value, as `layering.spell` writes it; empty: the whole."""

    path: str
    message: str
    fix: str
    level: Level


def error(path: str, message: str, fix: str) -> Problem:
    """What would not work."""
    return Problem(path, message, fix, Level.ERROR)


def warning(path: str, message: str, fix: str) -> Problem:
    """What works, and is probably not meant."""
    return Problem(path, message, fix, Level.WARNING)
