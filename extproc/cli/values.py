"""Read the values of options and arguments. An unreadable value raises `AdminError`, which names the option."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeVar

from extproc.admin.errors import AdminError
from extproc.core.quota.limits import Scope, Window
from extproc.core.quota.policies import METERED
from extproc.core.request.endpoints import Endpoint

E = TypeVar("E", bound=StrEnum)
NONE: Final = "none"
# Longer numbers are refused by their value anyway; Python needs long for some thousands of digits.
_NUMBER: Final = re.compile(r"([0-9][0-9_]{0,29}(?:\.[0-9]{1,12})?)(?:[eE]\+?([0-9]{1,2}))?([kKmMgGbBtT]?)")
_POWERS: Final = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
_SPANS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def amount(option: str, text: str, what: str = "tokens") -> int | None:
    """Return a whole number, or None for `none`."""
    return None if text == NONE else whole(option, text, f"{what} (12000, 12k, 1.5M) or 'none'")


def whole(option: str, text: str, what: str = "tokens or requests (12000, 12k, 1.5M)") -> int:
    """Return a whole number as people write it: 12000, 12_000, 12k, 1.5M, 1e6."""
    found = _NUMBER.fullmatch(text)
    if found is not None:
        number = Decimal(found[1].replace("_", "")).scaleb(int(found[2] or 0) + _POWERS[found[3].lower()])
        if number == number.to_integral_value():
            return int(number)
    raise AdminError(f"{option} must be a whole number of {what}, not {text[:40]!r}")


def positive(option: str, text: str) -> int:
    """Return a whole number from 1 on."""
    found = whole(option, text)
    if found < 1:
        raise AdminError(f"{option} must be 1 or more")
    return found


def instant(option: str, text: str, now: datetime) -> datetime:
    """Return an instant: ISO 8601 (UTC without an offset), or a time from now such as +2h or -3d."""
    span = re.fullmatch(r"([+-])([0-9]{1,6})([mhdw])", text)
    try:
        if span is not None:
            away = timedelta(**{_SPANS[span[3]]: int(span[2])})
            return now.replace(microsecond=0) + (away if span[1] == "+" else -away)
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise AdminError(
            f"{option} must be an instant such as 2026-03-01T00:00Z, or a time from now such as +2h or +3d, "
            f"not {text[:40]!r}"
        ) from None


def limit(text: str) -> tuple[Scope, int, Window]:
    """Read SCOPE:AMOUNT/WINDOW."""
    found = re.fullmatch(r"([^:/]+):([^:/]+)/([^:/]+)", text)
    if found is None:
        raise AdminError(f"a limit is SCOPE:AMOUNT/WINDOW, such as service_account:12000/day, not {text[:80]!r}")
    return scope(found[1]), whole("AMOUNT", found[2]), choice("WINDOW", found[3].strip(), Window)


def selector(text: str) -> tuple[Scope, Window]:
    """Read SCOPE/WINDOW."""
    counted_by, slash, window = text.partition("/")
    if not slash:
        raise AdminError(f"name the limit as SCOPE/WINDOW, such as service_account/day, not {text[:80]!r}")
    return scope(counted_by), choice("WINDOW", window.strip(), Window)


def scope(text: str) -> Scope:
    """Read a scope, with its parts in any order, joined by `+`, spaces or both."""
    try:
        return Scope(text)
    except ValueError:
        return choice("SCOPE", text, Scope)  # which says what there is


def labels(texts: Sequence[str]) -> dict[str, str | None]:
    """Read labels NAME=VALUE; None for a label that is to be removed."""
    found: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise AdminError(
                f"a label is NAME=VALUE, such as team=search, or NAME=none to remove it, not {text[:80]!r}"
            )
        found[name] = None if value == NONE else value
    return found


def choice(name: str, text: str, allowed: Iterable[E]) -> E:
    known = list(allowed)
    if text not in known:
        raise AdminError(f"{name} must be one of {', '.join(known)}, not {text[:40]!r}")
    return known[known.index(text)]  # type: ignore[arg-type]


def endpoints(names: Sequence[str] | None) -> tuple[Endpoint, ...]:
    """Return the endpoints of `--endpoint` in the order of their names: the kinds that a limit can bind."""
    return tuple(sorted({choice("--endpoint", name, METERED) for name in names or ()}))


def scope_names() -> list[str]:
    """List names for shell completion."""
    return list(Scope)


def endpoint_names() -> list[str]:
    """List names for shell completion."""
    return list(METERED)
