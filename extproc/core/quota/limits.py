"""Limits and the calendar: scope x unit x window x amount, and the bucket that each counts in."""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, assert_never
from urllib.parse import quote
from zoneinfo import ZoneInfo

from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity

# Amounts and sums stay far below 2**53, where numbers in Redis' Lua lose their last digit.
MAX_AMOUNT = 10**12


class Scope(StrEnum):
    """The identity parts that a limit counts by, joined by "+"; the tenant's bucket has none."""

    TENANT = "tenant"
    SERVICE_ACCOUNT = "service_account"
    CLIENT_IP = "client_ip"
    SERVICE_ACCOUNT_IP = "service_account+client_ip"
    MODEL = "model"
    SERVICE_ACCOUNT_MODEL = "service_account+model"
    CLIENT_IP_MODEL = "client_ip+model"
    SERVICE_ACCOUNT_IP_MODEL = "service_account+client_ip+model"
    ENDPOINT = "endpoint"
    SERVICE_ACCOUNT_ENDPOINT = "service_account+endpoint"
    CLIENT_IP_ENDPOINT = "client_ip+endpoint"
    SERVICE_ACCOUNT_IP_ENDPOINT = "service_account+client_ip+endpoint"

    @property
    def label(self) -> str:
        """The scope's name in a denied answer; the talk's words."""
        return " + ".join(_LABELS.get(name, name) for name in self.split("+"))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts."""
        return _NAMES[self]

    def parts(self, identity: Identity, subject: "Subject") -> tuple[str, ...] | None:
        """The concrete parts of this scope, the tenant left out (it is in every key); None: one is not known."""
        found = tuple(_part(name, identity, subject) for name in _NAMES[self])
        return found if None not in found else None  # type: ignore[return-value]


_LABELS = {"service_account": "serviceAccount", "client_ip": "IP"}
_NAMES = {scope: tuple(scope.split("+")) if scope is not Scope.TENANT else () for scope in Scope}


class Unit(StrEnum):
    """What a limit counts."""

    TOKENS = "tokens"  # the weighted cost; without weights all tokens
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    REQUESTS = "requests"


class Mode(StrEnum):
    """How a limit admits."""

    SOFT = "soft"  # used < limit
    RESERVE = "reserve"  # used + held + cost <= limit
    STRICT = "strict"  # the same with a proven bound of the cost


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked for: a model and an endpoint kind; None where that is not known."""

    model: str | None = None
    endpoint: Endpoint | None = None


NO_SUBJECT: Final = Subject()


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
    """At most `amount` (0 <= amount <= MAX_AMOUNT) of a unit per scope and window.

    `model` (a glob: * and ?) and `endpoints` narrow it to what they name; without them it binds everything. One
    that is `shadow` never denies: it counts what it would have denied, in a bucket of its own.
    """

    scope: Scope
    window: Window
    amount: int
    unit: Unit = Unit.TOKENS
    mode: Mode = Mode.RESERVE
    shadow: bool = False
    model: str | None = None
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def kind(self) -> str:
        """What tells limits apart but for their amount and mode: two of one kind share their buckets."""
        kind = f"{self.scope}:{self.window}"
        if self.unit is not Unit.TOKENS:
            kind += f"~{self.unit}"
        if self.model is not None:
            # "~" is what parts a kind, and quote leaves it as it is.
            kind += f"~m={quote(self.model, safe='').replace('~', '%7E')}"
        if self.endpoints:
            kind += f"~e={','.join(sorted(self.endpoints))}"
        return kind + "~shadow" if self.shadow else kind

    @property
    def is_general(self) -> bool:
        """Whether it binds requests for any model and endpoint."""
        return self.model is None and not self.endpoints

    def binds(self, subject: Subject) -> bool:
        """Whether it counts what is asked for. What is not known is not bound by a limit that narrows it."""
        if self.model is not None and (subject.model is None or not matches(self.model, subject.model)):
            return False
        return not self.endpoints or subject.endpoint in self.endpoints


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
        return f"{self.limit.kind}:{self.interval.start}:{escaped}"


def matches(glob: str, name: str) -> bool:
    """Whether a glob (* any text, ? any character; nothing else is special) matches a whole name, in any case.

    Some servers take names in any case: what is another name to us and none to them must be no way past a limit.
    """
    return _compiled(glob).fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _compiled(glob: str) -> re.Pattern[str]:
    # Each star gives up nothing once the text after it matched: linear in the name for every glob.
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in re.sub(r"\*+", "*", glob).split("*"))
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL | re.IGNORECASE)


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


def _part(name: str, identity: Identity, subject: Subject) -> str | None:
    match name:
        case "service_account":
            return identity.service_account
        case "client_ip":
            return identity.client_ip
        case "model":
            return subject.model.casefold() if subject.model is not None else None
        case _:
            return subject.endpoint


def _date_at(now: datetime, zone: ZoneInfo) -> date:
    today = now.astimezone(zone).date()
    tomorrow = today + _ONE_DAY
    # Clocks that are put back across midnight show a day again that is over. It stays over.
    return tomorrow if _epoch(now) >= _midnight(tomorrow, zone) else today


def _midnight(day: date, zone: ZoneInfo) -> int:
    return _epoch(datetime(day.year, day.month, day.day, tzinfo=zone))


def _epoch(instant: datetime) -> int:
    return int(instant.timestamp())
