"""Define limits (scope x unit x window x amount), their buckets, and the calendar of their windows."""

import re
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, assert_never
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from msgspec import Struct

from extproc.core.by_identity import ByIdentity
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity

# Amounts and sums stay far below 2**53; above it, numbers in Redis' Lua lose their last digit.
MAX_AMOUNT = 10**12


class Scope(StrEnum):
    """List the identity parts that a limit counts by, joined by "+". The scope `tenant` needs no further part.

    `Scope(text)` takes the parts in any order, joined by "+", spaces or both. The member has one order, in which
    it is stored.
    """

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

    @classmethod
    def _missing_(cls, value: object) -> "Scope | None":
        parts = sorted(value.replace("+", " ").split()) if isinstance(value, str) else None
        return next((each for each in cls if sorted(each.split("+")) == parts), None)

    @property
    def label(self) -> str:
        """Return the scope's name in a denied answer."""
        return " + ".join(_LABELS.get(name, name) for name in self.split("+"))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the parts."""
        return _NAMES[self]

    def parts(self, identity: Identity, subject: "Subject") -> tuple[str, ...] | None:
        """Return the values of the scope's parts without the tenant (it is in every key); None if one is not
        known.
        """
        found = tuple(_part(name, identity, subject) for name in _NAMES[self])
        return found if None not in found else None  # type: ignore[return-value]


_LABELS = {"service_account": "serviceAccount", "client_ip": "IP"}
_NAMES = {scope: tuple(scope.split("+")) if scope is not Scope.TENANT else () for scope in Scope}


class Unit(StrEnum):
    """List the units that a limit can count."""

    TOKENS = "tokens"  # the weighted cost; the number of tokens if there are no weights
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    REQUESTS = "requests"


class Mode(StrEnum):
    """Select the rule by which a limit admits."""

    SOFT = "soft"  # used < limit
    RESERVE = "reserve"  # used + held + cost <= limit
    STRICT = "strict"  # like `reserve`, with a proven bound instead of the estimated cost


class Subject(Struct, frozen=True):
    """Name the model and endpoint kind that are asked for; None if not known."""

    model: str | None = None
    endpoint: Endpoint | None = None


NO_SUBJECT: Final = Subject()


class Window(StrEnum):
    """List the calendar intervals, in the tenant's time zone."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


# No window is longer: a month has up to 31 days, and clocks that are set back add some hours.
LONGEST_WINDOW: Final = timedelta(days=32)

_ONE_DAY: Final = timedelta(days=1)
_SECONDS: Final = {Window.MINUTE: 60, Window.HOUR: 3600}


class Limit(Struct, frozen=True):
    """Allow at most `amount` (0 <= amount <= MAX_AMOUNT) of a unit per scope and window.

    `model` (a glob with * and ?) and `endpoints` narrow the limit; without them it binds all requests. A `shadow`
    limit never denies. A shadow limit counts in a bucket of its own, and records the requests that it would have
    denied.
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
        """Return an id of everything but amount and mode. Two limits of one kind share their buckets."""
        kind = f"{self.scope}:{self.window}"
        if self.unit is not Unit.TOKENS:
            kind += f"~{self.unit}"
        if self.model is not None:
            # "~" separates the parts of a kind, and `quote` does not escape it.
            kind += f"~m={quote(self.model, safe='').replace('~', '%7E')}"
        if self.endpoints:
            kind += f"~e={','.join(sorted(self.endpoints))}"
        return kind + "~shadow" if self.shadow else kind

    @property
    def is_general(self) -> bool:
        """Return whether the limit binds requests for any model and endpoint."""
        return self.model is None and not self.endpoints

    def binds(self, subject: Subject) -> bool:
        """Return whether the limit counts the subject. A narrowed limit does not bind an unknown model or
        endpoint.
        """
        if self.model is not None and (subject.model is None or not matches(self.model, subject.model)):
            return False
        return not self.endpoints or subject.endpoint in self.endpoints


class Interval(Struct, frozen=True):
    """Hold a window's bounds in seconds since the epoch: start inclusive, end exclusive."""

    start: int
    end: int


class Bucket(Struct, frozen=True):
    """Identify one counter: one limit x one concrete identity x one window."""

    limit: Limit
    parts: tuple[str, ...]
    interval: Interval

    @property
    def key(self) -> str:
        """Return the bucket's key, unique within a tenant. Parts are escaped, so two identities never share a key.

        The amount is not part of it: a limit raised in mid-window keeps its counter.
        """
        return _KEYS.of(self)


def _key_of(bucket: Bucket) -> str:
    escaped = ":".join(quote(part, safe="@") for part in bucket.parts)
    return f"{bucket.limit.kind}:{bucket.interval.start}:{escaped}"


_KEYS: Final = ByIdentity(_key_of)  # the next requests of a caller have the same buckets


class BucketName(Struct, frozen=True):
    """Say what a bucket's key tells: the kind of its limit, the parts of an identity, and the start of its window
    in seconds since the epoch. A route's bucket has more parts than its scope has names.
    """

    scope: Scope
    window: Window
    unit: Unit
    model: str | None
    endpoints: tuple[str, ...]
    shadow: bool
    start: int
    parts: tuple[str, ...]


def read_key(key: str) -> BucketName | None:
    """Read `Bucket.key`. Return None for a text that is no key."""
    try:
        scope, kind, start, parts = key.split(":", 3)
        window, *filters = kind.split("~")
        units = [Unit(each) for each in filters if each != "shadow" and "=" not in each]
        named = dict(each.split("=", 1) for each in filters if "=" in each)
        return BucketName(
            scope=Scope(scope),
            window=Window(window),
            unit=units[0] if units else Unit.TOKENS,
            model=unquote(named["m"]) if "m" in named else None,
            endpoints=tuple(named["e"].split(",")) if "e" in named else (),
            shadow="shadow" in filters,
            start=int(start),
            parts=tuple(map(unquote, parts.split(":"))) if parts else (),
        )
    except ValueError:
        return None


def matches(glob: str, name: str) -> bool:
    """Return whether a glob (* any text, ? any character, nothing else is special) matches a whole name, in any
    case.

    Some servers ignore the letter case of names. A client must not bypass a limit by a spelling that the server
    takes for the same model.
    """
    return _compiled(glob).fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _compiled(glob: str) -> re.Pattern[str]:
    # Each star matches as little as possible, without backtracking: linear in the name for every glob.
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in re.sub(r"\*+", "*", glob).split("*"))
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL | re.IGNORECASE)


def interval_at(window: Window, now: datetime, zone: ZoneInfo) -> Interval:
    """Return the window that contains `now` (aware). Windows of a kind follow each other without gap or overlap.

    Days and longer windows run from local midnight to local midnight, so they have 23 or 25 hours where the clocks
    change. If the clocks jump over midnight, the window starts at the jump; if midnight comes twice, the first one
    counts (PEP 495, fold=0). Weeks start on Monday. Minutes and hours are counted from the start of their day;
    they equal clock hours, except after a clock change of less than an hour, for the rest of that day.
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
    """Return the tenant's calendar date at `now` as YYYY-MM-DD: the date of daily usage and of the day's
    buckets.
    """
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
    # Clocks that are put back across midnight show a past date again. That day stays over.
    return tomorrow if _epoch(now) >= _midnight(tomorrow, zone) else today


def _midnight(day: date, zone: ZoneInfo) -> int:
    return _epoch(datetime(day.year, day.month, day.day, tzinfo=zone))


def _epoch(instant: datetime) -> int:
    return int(instant.timestamp())
