"""Read documents that people wrote: typed values from mappings, and messages that name the wrong field."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar
from zoneinfo import ZoneInfo

from extproc.core.request.identity import MAX_NAME_CHARS, is_name

E = TypeVar("E", bound=StrEnum)
# The most items of a list in a document; each one costs time on every request.
MAX_ITEMS = 100


class FieldError(Exception):
    """Report a field that can't be used. The message names it and says what it must be."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Wrap a mapping and its place in the document. Getters return None for a value that is absent or null."""

    values: Mapping[str, object]
    path: str = ""

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse fields that are not known: a misspelled limit must not be ignored silently."""
        for name in self.values:
            if name not in known:
                raise FieldError(f"'{self.path}{name}' is no field here; use {', '.join(sorted(known))}")

    def bad(self, name: str, rule: str) -> FieldError:
        return FieldError(f"'{self.path}{name}' {rule}")

    def whole(self, name: str, most: int, what: str) -> int | None:
        """Return a whole number >= 0. Takes whole floats, because the legacy mongo shell writes every number as a
        double.
        """
        value = self.values.get(name)
        if value is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not 0 <= value <= most:  # type: ignore[operator]
            raise self.bad(name, f"must be a whole number of {what} from 0 to {most}")
        return int(value)  # type: ignore[call-overload, no-any-return]

    def thousandths(self, name: str, most: int) -> int | None:
        """Return a number with up to three decimals, in thousandths."""
        value = self.values.get(name)
        if value is None:
            return None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Check the range first: a value outside it may be too large to calculate with, or not a number.
        exact = round(value * 1000) if number and 0 <= value <= most // 1000 else -1  # type: ignore[operator]
        if exact < 0 or abs(exact - value * 1000) > 1e-6:  # type: ignore[operator]  # noqa: PLR2004
            raise self.bad(name, f"must be a number from 0 to {most // 1000} with at most three decimals")
        return exact

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.bad(name, "must be true or false")
        return bool(value)

    def name(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not is_name(value):
            raise self.bad(name, f"must be a printable string of 1 to {MAX_NAME_CHARS} characters")
        return value

    def needed(self, name: str) -> str:
        found = self.name(name)
        if found is None:
            raise self.bad(name, "must be given")
        return found

    def reason(self, name: str) -> str | None:
        """Return a reason; `true` means that none was given."""
        value = self.values.get(name)
        if value is True:
            return "suspended"
        return None if value is False else self.name(name)

    def choice(self, name: str, kind: type[E], default: E | None = None) -> E:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in list(kind):
            raise self.bad(name, f"must be one of {', '.join(kind)}")
        return kind(value)

    def choices(self, name: str, allowed: Iterable[E]) -> tuple[E, ...]:
        """Return one or several of the allowed values, in the order of their names."""
        value = self.values.get(name)
        if value is None:
            return ()
        known = list(allowed)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or any(v not in known for v in found):
            raise self.bad(name, f"must be one or a list of {', '.join(known)}")
        return tuple(sorted({known[known.index(v)] for v in found}))

    def instant(self, name: str) -> float:
        """Return a database date, or RFC 3339 text, as seconds since the epoch. Without an offset it is UTC."""
        value = self.values.get(name)
        try:
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime):
                return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass
        raise self.bad(name, "must be an instant such as 2026-03-01T00:00:00Z")

    def zone(self, name: str, default: ZoneInfo) -> ZoneInfo:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise self.bad(name, "must be an IANA time zone")
        try:
            return ZoneInfo(value)
        except (KeyError, ValueError, OSError):  # unknown, malformed, or the name of a directory
            rule = "is no IANA time zone that this host knows; use one such as 'Europe/Berlin'"
            raise self.bad(name, rule) from None

    def section(self, name: str) -> "Fields | None":
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.bad(name, "must be an object")
        return Fields(value, f"{self.path}{name}.")

    def items(self, name: str, most: int = MAX_ITEMS) -> "Iterator[Fields]":
        """Yield the objects of a list."""
        value = self.values.get(name)
        if value is None:
            return
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) > most:
            raise self.bad(name, f"must be a list of at most {most} objects")
        for i, item in enumerate(value):
            if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
                raise self.bad(f"{name}[{i}]", "must be an object")
            yield Fields(item, f"{self.path}{name}[{i}].")
