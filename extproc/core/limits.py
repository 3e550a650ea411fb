"""Limits and the calendar: scope x unit x window x amount, and the bucket that each counts in."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never
from urllib.parse import quote
from zoneinfo import ZoneInfo

from extproc.core.identity import Identity

# Amounts and sums stay far below 2**53, where numbers in Redis' Lua lose their last digit.
MAX_AMOUNT = 10**12


class Scope(StrEnum):
    """The identity parts that a limit counts by."""

    TENANT = "tenant"
    SERVICE_ACCOUNT = "service_account"
    CLIENT_IP = "client_ip"
    SERVICE_ACCOUNT_IP = "service_account+client_ip"

    @property
    def label(self) -> str:
        """The scope's name in a denied answer; the talk's words."""
        return _LABELS[self]

    def parts(self, identity: Identity) -> tuple[str, ...]:
        """The concrete identity parts of this scope, the tenant left out (it is in every key)."""
        match self:
            case Scope.TENANT:
                return ()
            case Scope.SERVICE_ACCOUNT:
                return (identity.service_account,)
            case Scope.CLIENT_IP:
                return (identity.client_ip,)
            case Scope.SERVICE_ACCOUNT_IP:
                return (identity.service_account, identity.client_ip)
            case _:
                assert_never(self)


_LABELS = {
    Scope.TENANT: "tenant",
    Scope.SERVICE_ACCOUNT: "serviceAccount",
    Scope.CLIENT_IP: "IP",
    Scope.SERVICE_ACCOUNT_IP: "serviceAccount + IP",
}


class Window(StrEnum):
    """A calendar interval in the tenant's time zone."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_ONE_DAY: Final = timedelta(days=1)
_SECONDS: Final = {Window.MINUTE: 60, Window.HOUR: 3600}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` tokens (0 <= amount <= MAX_AMOUNT) per scope and window."""

    scope: Scope
    window: Window
    amount: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A window's concrete bounds, as seconds since the epoch: start inclusive, end exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit x one concrete identity x one window: what a counter counts."""

    limit: Limit
    parts: tuple[str, ...]
    interval: Interval

    @property
    def key(self) -> str:
        """Unique within a tenant. Parts are percent-escaped, so two identities can never share a key.

        The amount is not part of it: a limit raised in mid-window keeps its counter.
        """
        escaped = ":".join(quote(part, safe="@") for part in self.parts)
        return f"{self.limit.scope}:{self.limit.window}:{self.interval.start}:{escaped}"


def interval_at(window: Window, now: datetime, zone: ZoneInfo) -> Interval:
    """The window that `now` (aware) falls into. The windows of a kind follow each other without gap or overlap.

    Days and longer run from local midnight to local midnight, so they have 23 or 25 hours where the clocks
    change; a midnight that the clocks jump over is the instant of the jump, of a midnight that comes twice the
    first one counts (PEP 495, fold=0). Weeks start on Monday. Minutes and hours are counted from the start of
    their day: clock hours, but for the rest of a day on which the clocks were put by less than an hour.
    """
    first = _date_at(now, zone)
    last = first + _ONE_DAY
    match window:
        case Window.MINUTE | Window.HOUR | Window.DAY:
            pass
        case Window.WEEK:
            first -= timedelta(days=first.weekday())
            last = first + timedelta(days=7)
        case Window.MONTH:
            first = first.replace(day=1)
            last = (first + timedelta(days=32)).replace(day=1)
        case _:
            assert_never(window)
    start, end = _midnight(first, zone), _midnight(last, zone)
    length = _SECONDS.get(window, end - start)
    start += (_epoch(now) - start) // length * length
    return Interval(start, min(start + length, end))


def local_date(now: datetime, zone: ZoneInfo) -> str:
    """The tenant's calendar date at `now`, as YYYY-MM-DD: the date of daily usage, and of the day's buckets."""
    return _date_at(now, zone).isoformat()


def _date_at(now: datetime, zone: ZoneInfo) -> date:
    today = now.astimezone(zone).date()
    tomorrow = today + _ONE_DAY
    # Clocks that are put back across midnight show a day again that is over. It stays over.
    return tomorrow if _epoch(now) >= _midnight(tomorrow, zone) else today


def _midnight(day: date, zone: ZoneInfo) -> int:
    return _epoch(datetime(day.year, day.month, day.day, tzinfo=zone))


def _epoch(instant: datetime) -> int:
    return int(instant.timestamp())
