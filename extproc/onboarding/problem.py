"""Describe one problem of values."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Grade a problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """Describe one problem. `path` is the value's, as `layering.spell` writes it; empty: the whole file."""

    path: str
    message: str
    fix: str
    level: Level


def error(path: str, message: str, fix: str) -> Problem:
    """Return a problem that will not work."""
    return Problem(path, message, fix, Level.ERROR)


def warning(path: str, message: str, fix: str) -> Problem:
    """Return a problem that works but is probably unintended."""
    return Problem(path, message, fix, Level.WARNING)
