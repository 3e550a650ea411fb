"""Define what a check finds: what is so, its consequence, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Grade a finding. Only an `error` makes a check fail."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # it works, until something else happens
    ERROR = "error"  # limits do not hold, usage is lost, or requests fail


@dataclass(frozen=True, slots=True)
class Finding:
    """Say what was found of a `part`. `consequence` and `fix` are empty if nothing is wrong."""

    level: Level
    part: str
    what: str
    consequence: str = ""
    fix: str = ""


def ok(part: str, what: str) -> Finding:
    return Finding(Level.OK, part, what)


def note(part: str, what: str, consequence: str = "", fix: str = "") -> Finding:
    return Finding(Level.NOTE, part, what, consequence, fix)


def warning(part: str, what: str, consequence: str, fix: str) -> Finding:
    return Finding(Level.WARNING, part, what, consequence, fix)


def error(part: str, what: str, consequence: str, fix: str) -> Finding:
    return Finding(Level.ERROR, part, what, consequence, fix)
