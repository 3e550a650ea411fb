"""Read the values of options and arguments. An unreadable value raises `AdminError`, which names the option."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from extproc.admin.errors import AdminError
from extproc.core.quota.limits import Scope, Window
from extproc.core.quota.policies import METERED
from extproc.core.request.endpoints import Endpoint

E = TypeVar("E", bound=StrEnum)
NONE: Final = "none"
_SPANS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def amount(option: str, text: str, what: str = "tokens") -> int | None:
    """Return a whole number, or None for `none`."""
    if text == NONE:
        return None
    # Longer numbers are refused by their value anyway; Python refuses to read some thousands of digits.
    if not re.fullmatch("[0-9]{1,30}", text):
        raise AdminError(f"{option} must be a whole number of {what} or 'none', not {text[:40]!r}")
    return int(text)


def instant(option: str, text: str, now: datetime) -> datetime:
    """Return an instant: ISO 8601 (UTC without an offset), or a time from now such as +2h or +3d."""
    span = re.fullmatch(r"\+([0-9]{1,6})([mhdw])", text)
    try:
        if span is not None:
            return now.replace(microsecond=0) + timedelta(**{_SPANS[span[2]]: int(span[1])})
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise AdminError(
            f"{option} must be an instant such as 2026-03-01T00:00Z, or a time from now such as +2h or +3d, "
            f"not {text[:40]!r}"
        ) from None


def limit(text: str) -> tuple[Scope, int, Window]:
    """Read SCOPE:AMOUNT/WINDOW."""
    found = re.fullmatch(r"([^:/]+):([0-9]{1,30})/([^:/]+)", text)
    if found is None:
        raise AdminError(f"a limit is SCOPE:AMOUNT/WINDOW, such as service_account:12000/day, not {text[:80]!r}")
    return choice("SCOPE", found[1], Scope), int(found[2]), choice("WINDOW", found[3], Window)


def selector(text: str) -> tuple[Scope, Window]:
    """Read SCOPE/WINDOW."""
    scope, slash, window = text.partition("/")
    if not slash:
        raise AdminError(f"name the limit as SCOPE/WINDOW, such as service_account/day, not {text[:80]!r}")
    return choice("SCOPE", scope, Scope), choice("WINDOW", window, Window)


def choice(name: str, text: str, allowed: Iterable[E]) -> E:
    known = list(allowed)
    if text not in known:
        raise AdminError(f"{name} must be one of {', '.join(known)}, not {text[:40]!r}")
    return known[known.index(text)]  # type: ignore[arg-type]


def endpoints(names: Sequence[str] | None) -> tuple[Endpoint, ...]:
    """Return the endpoints of `--endpoint` in the order of their names: the kinds that a limit can bind."""
    return tuple(sorted({choice("--endpoint", name, METERED) for name in names or ()}))


def endpoint_names() -> list[str]:
    """List names for shell completion."""
    return list(METERED)
