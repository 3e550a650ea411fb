"""Read documents that people wrote: typed values from mappings, and messages that name the wrong field.

A document is read strictly, or it is repaired: then a value that can't be used is replaced by the last good one.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, TypeGuard, TypeVar
from zoneinfo import ZoneInfo

from extproc.core.request.identity import MAX_NAME_CHARS, is_name

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")
# The most items of a list in a document; each one costs time on every request.
MAX_ITEMS = 100


class FieldError(Exception):
    """Report a field that can't be used. The message names it and says what it must be."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Repair a mapping while it is read.

    `values` is a copy of the mapping, which is changed. `last` has the last good values; None if there are none.
    `problems` gets a message for each value that can't be used.
    """

    values: dict[str, object]
    last: Mapping[str, object] | None
    problems: list[str]

    def replace(self, name: str, default: object = None) -> None:
        """Replace a value by the last good one, else by the default; None removes it."""
        value = self.last.get(name) if self.last is not None else default
        self.values.pop(name, None)
        if value is not None:
            self.values[name] = value


@dataclass(frozen=True, slots=True)
class Items(Generic[T]):
    """Hold the items of a list that could be read. `unknown`: there was an item of which nothing is known."""

    found: tuple[T, ...]
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """Wrap a mapping and its place in the document. Getters return None for a value that is absent or null.

    A getter raises `FieldError` for a value that can't be used. With `repair` it uses the last good value instead.
    """

    values: Mapping[str, object]
    path: str = ""
    repair: Repair | None = None

    @classmethod
    def repaired(
        cls, values: Mapping[str, object], path: str, last: Mapping[str, object] | None, problems: list[str]
    ) -> "Fields":
        """Return fields that repair a copy of the mapping."""
        copy = dict(values)
        return cls(copy, path, Repair(copy, last, problems))

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse fields that are not known: a misspelled limit must not be ignored silently."""
        for name in self.values:
            if name not in known:
                raise FieldError(f"'{self.path}{name}' is no field here; use {', '.join(sorted(known))}")

    @property
    def strict(self) -> "Fields":
        """Return the same fields without the repair: for what tells which item of a list an item is."""
        return Fields(self.values, self.path)

    @property
    def problems(self) -> list[str]:
        """Return the list for what a repair finds."""
        return self.repair.problems if self.repair is not None else []

    def drop_unknown(self, known: Collection[str]) -> None:
        """Refuse fields that are not known. In a repair, drop them, and keep the last good values of fields that
        are absent: one of them may be the one that was meant.
        """
        try:
            self.refuse_unknown(known)
        except FieldError as error:
            repair = self.note(error)
            for name in self.values.keys() - set(known):
                del repair.values[name]
            for name, value in (repair.last or {}).items():
                repair.values.setdefault(name, value)

    def note(self, error: FieldError) -> Repair:
        """Raise the error; in a repair, only note it, and return the repair."""
        if self.repair is None:
            raise error
        self.repair.problems.append(str(error))
        return self.repair

    def _read(self, name: str, read: Callable[[object], T], default: object = None) -> T | None:
        """Return a value as `read` reads it. In a repair, `default` replaces one that was never good."""
        value = self.values.get(name)
        if value is None:
            return None
        try:
            return read(value)
        except FieldError as error:
            repair = self.note(error)
        repair.replace(name, default)
        value = repair.values.get(name)
        return read(value) if value is not None else None

    def bad(self, name: str, rule: str) -> FieldError:
        return FieldError(f"'{self.path}{name}' {rule}")

    def whole(self, name: str, most: int, what: str) -> int | None:
        """Return a whole number >= 0. Takes whole floats, because the legacy mongo shell writes every number as a
        double.
        """

        def read(value: object) -> int:
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if isinstance(value, bool) or not whole or not 0 <= value <= most:  # type: ignore[operator]
                raise self.bad(name, f"must be a whole number of {what} from 0 to {most}")
            return int(value)  # type: ignore[call-overload, no-any-return]

        return self._read(name, read)

    def thousandths(self, name: str, most: int) -> int | None:
        """Return a number with up to three decimals, in thousandths."""

        def read(value: object) -> int:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Check the range first: a value outside it may be too large to calculate with, or not a number.
            exact = round(value * 1000) if number and 0 <= value <= most // 1000 else -1  # type: ignore[operator]
            if exact < 0 or abs(exact - value * 1000) > 1e-6:  # type: ignore[operator]  # noqa: PLR2004
                raise self.bad(name, f"must be a number from 0 to {most // 1000} with at most three decimals")
            return exact

        return self._read(name, read)

    def flag(self, name: str) -> bool:
        def read(value: object) -> bool:
            if not isinstance(value, bool):
                raise self.bad(name, "must be true or false")
            return value

        return self._read(name, read) or False

    def name(self, name: str) -> str | None:
        return self._read(name, lambda value: self._text(name, value))

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not is_name(value):
            raise self.bad(name, f"must be a printable string of 1 to {MAX_NAME_CHARS} characters")
        return value

    def needed(self, name: str) -> str:
        found = self.name(name)
        if found is None:
            raise self.bad(name, "must be given")
        return found

    def reason(self, name: str) -> str | None:
        """Return a reason; `true` means that none was given.

        In a repair, a value that was never good is a reason unless it is empty or 0: it was meant to be one.
        """

        def read(value: object) -> str | None:
            if value is True:
                return "suspended"
            return None if value is False else self._text(name, value)

        return self._read(name, read, default=bool(self.values.get(name)))

    def chosen(self, name: str, kind: type[E]) -> E | None:
        def read(value: object) -> E:
            try:
                return kind(value if isinstance(value, str) else "")
            except ValueError:
                raise self.bad(name, f"must be one of {', '.join(kind)}") from None

        return self._read(name, read)

    def choice(self, name: str, kind: type[E], default: E | None = None) -> E:
        found = self.chosen(name, kind)
        if found is None:
            found = default
        if found is None:
            raise self.bad(name, f"must be one of {', '.join(kind)}")
        return found

    def choices(self, name: str, allowed: Iterable[E]) -> tuple[E, ...]:
        """Return one or several of the allowed values, in the order of their names."""
        known = list(allowed)

        def read(value: object) -> tuple[E, ...]:
            found = [value] if isinstance(value, str) else value
            if not isinstance(found, list) or not found or any(v not in known for v in found):
                raise self.bad(name, f"must be one or a list of {', '.join(known)}")
            return tuple(sorted({known[known.index(v)] for v in found}))

        return self._read(name, read) or ()

    def instant(self, name: str) -> float:
        """Return a database date, or RFC 3339 text, as seconds since the epoch. Without an offset it is UTC."""
        found = self._read(name, lambda value: self._seconds(name, value))
        if found is None:
            raise self._no_instant(name)
        return found

    def _seconds(self, name: str, value: object) -> float:
        try:
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime):
                return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass
        raise self._no_instant(name)

    def _no_instant(self, name: str) -> FieldError:
        return self.bad(name, "must be an instant such as 2026-03-01T00:00:00Z")

    def zone(self, name: str, default: ZoneInfo) -> ZoneInfo:
        def read(value: object) -> ZoneInfo:
            if not isinstance(value, str) or not value:
                raise self.bad(name, "must be an IANA time zone")
            try:
                return ZoneInfo(value)
            except (KeyError, ValueError, OSError):  # unknown, malformed, or the name of a directory
                rule = "is no IANA time zone that this host knows; use one such as 'Europe/Berlin'"
                raise self.bad(name, rule) from None

        return self._read(name, read) or default

    def section(self, name: str) -> "Fields | None":
        def read(value: object) -> Mapping[str, object]:
            if not _is_object(value):
                raise self.bad(name, "must be an object")
            return value

        found, path = self._read(name, read), f"{self.path}{name}."
        if found is None or self.repair is None:
            return Fields(found, path) if found is not None else None
        last = self.repair.last.get(name) if self.repair.last is not None else None
        inner = Fields.repaired(found, path, last if _is_object(last) else None, self.problems)
        self.repair.values[name] = inner.values
        return inner

    def items(
        self,
        name: str,
        read: "Callable[[Fields], T]",
        key: Callable[[Mapping[str, object]], Hashable],
        most: int = MAX_ITEMS,
    ) -> Items[T]:
        """Read the objects of a list.

        In a repair, `key` tells which of the last good items an item is. If nothing is known of an item, all last
        good items that are not in the list any more stay, because it may be one of them.
        """
        had = self.values.get(name) is not None
        given = self._read(name, lambda value: self._list(name, value, most))
        if self.repair is None:
            return Items(tuple(read(self._item(name, i, value)) for i, value in enumerate(given or ())))
        if given is None:
            return Items((), unknown=had)
        before = self.repair.last.get(name) if self.repair.last is not None else None
        last = dict(_numbered(before if isinstance(before, Sequence) else (), key))
        found: dict[Hashable, tuple[Mapping[str, object], T]] = {}
        unknown = False
        for i, (which, value) in enumerate(_numbered(given, key)):
            if (readable := self._repaired(f"{name}[{i}]", value, last.get(which), read)) is not None:
                found[which] = readable
            unknown |= readable is None
        for which, value in last.items() if unknown else ():
            if which not in found and (readable := self._repaired(name, value, value, read)) is not None:
                found[which] = readable
        self.repair.values[name] = [values for values, _ in found.values()]
        return Items(tuple(item for _, item in found.values()), unknown and not last)

    def _repaired(
        self, name: str, value: object, last: Mapping[str, object] | None, read: "Callable[[Fields], T]"
    ) -> tuple[Mapping[str, object], T] | None:
        """Read an item, or else its last good form. Return its values too; None if neither can be used."""
        for each in (value, last):
            try:
                if not _is_object(each):
                    raise self.bad(name, "must be an object")
                item = Fields.repaired(each, f"{self.path}{name}.", last, self.problems)
                return item.values, read(item)
            except FieldError as error:
                if each is value:
                    self.note(error)
        return None

    def _item(self, name: str, number: int, value: object) -> "Fields":
        if not _is_object(value):
            raise self.bad(f"{name}[{number}]", "must be an object")
        return Fields(value, f"{self.path}{name}[{number}].")

    def _list(self, name: str, value: object, most: int) -> Sequence[object]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) > most:
            raise self.bad(name, f"must be a list of at most {most} objects")
        return value


def _is_object(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _numbered(
    items: Sequence[object], key: Callable[[Mapping[str, object]], Hashable]
) -> Iterator[tuple[Hashable, Any]]:
    """Yield each item with its key and the number of items before it that have the same key."""
    seen: Counter[Hashable] = Counter()
    for item in items:
        which = key(item) if _is_object(item) else None
        yield (which, seen[which]), item
        seen[which] += 1
