"""Declare the usage reports: sums of the ledger by tenant, caller, model and endpoint, per hour, day and month."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from extproc.core.quota.ledger import Entry
from extproc.core.quota.settlement import Outcome
from extproc.ports.audit import Actor
from extproc.ports.base import StoreError


class SlowReportError(StoreError):
    """Report that a report took longer than it may. Other calls are not affected."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"the report took longer than {limit_s:g} s: narrow it by --tenant, --since and --until, or raise "
            "mongo.report_timeout_s",
            transient=False,
        )


class Grain(StrEnum):
    """Select the length of a report's periods. Hours are UTC; days and months are the tenant's local dates."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def period(self, entry: Entry) -> str:
        """Return the period of an entry, such as `2026-01-31T13`, `2026-01-31` or `2026-01`."""
        match self:
            case Grain.HOUR:
                return f"{entry.admitted_at.astimezone(UTC):%Y-%m-%dT%H}"
            case Grain.DAY:
                return entry.date
            case Grain.MONTH:
                return entry.date[:7]


class By(StrEnum):
    """Select what a report has a row for. The names of service accounts count within their tenant only."""

    SERVICE_ACCOUNT = "service-account"
    CLIENT_IP = "client-ip"
    TENANT = "tenant"
    MODEL = "model"
    ENDPOINT = "endpoint"

    def key(self, entry: Entry) -> "Key":
        """Return the name of an entry's row, and the tenant of a service account."""
        who = entry.identity
        match self:
            case By.SERVICE_ACCOUNT:
                return who.service_account, who.tenant
            case By.CLIENT_IP:
                return who.client_ip, None
            case By.TENANT:
                return who.tenant, None
            case By.MODEL:
                return entry.model, None
            case By.ENDPOINT:
                return entry.endpoint, None


Key = tuple[str, str | None]  # a name, and its tenant if it is a service account


class Place(NamedTuple):
    """Name a row's place in a report: its period ('' without one), its name, and the tenant of an account."""

    period: str
    name: str
    tenant: str | None


# The row of models and endpoints that have no sums of their own: each period has some hundreds at the most.
OTHER = "(other)"


class Measure(StrEnum):
    """Select the sum by which rows are ranked."""

    USAGE = "usage"
    PRICE = "price"
    REQUESTS = "requests"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Sums:
    """Sum entries, in tokens and requests; `price` as in `Entry`. `usage` is what was charged."""

    usage: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    requests: int = 0
    denied: int = 0
    estimated: int = 0
    price: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in SUM_NAMES))


SUM_NAMES: tuple[str, ...] = tuple(each.name for each in fields(Sums))


def sums_of(entry: Entry) -> Sums:
    """Return what an entry adds to the sums."""
    return Sums(*values_of(entry))


def values_of(entry: Entry) -> tuple[int, ...]:
    """Return what an entry adds to the sums, in the order of `SUM_NAMES`."""
    if entry.outcome is Outcome.DENIED:
        return (0, 0, 0, 0, 0, entry.count, 0, 0)
    usage, estimated = entry.usage, entry.outcome is Outcome.ESTIMATED
    return (entry.charge, usage.input, usage.output, usage.cached, 1, 0, int(estimated), entry.price)


@dataclass(frozen=True, slots=True)
class ReportFilter:
    """Select what is summed. None: any value. Dates are YYYY-MM-DD, both inclusive: the tenant's, and UTC in a
    report by hour.
    """

    tenant: str | None = None
    service_account: str | None = None
    client_ip: str | None = None
    model: str | None = None
    endpoint: str | None = None
    since: str | None = None
    until: str | None = None

    def fits(self, entry: Entry, grain: Grain = Grain.DAY) -> bool:
        """Return whether an entry is summed in a report of that grain."""
        who, period = entry.identity, (Grain.HOUR if grain is Grain.HOUR else Grain.DAY).period(entry)
        return (
            self.tenant in (None, who.tenant)
            and self.service_account in (None, who.service_account)
            and self.client_ip in (None, who.client_ip)
            and self.model in (None, entry.model)
            and self.endpoint in (None, entry.endpoint)
            and (self.since or "") <= period[:10] <= (self.until or "9999")
        )


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Hold the sums of one period and one name. A row over all dates has no period."""

    period: str | None
    name: str
    tenant: str | None
    sums: Sums

    @property
    def place(self) -> Place:
        return Place(self.period or "", self.name, self.tenant)


@dataclass(frozen=True, slots=True)
class Missing:
    """Tell what the sums lack for now. `entries`: some entries of the ledger are not added yet."""

    entries: bool


class UsageSums(Protocol):
    """Report sums of the ledger. Every call raises `StoreError`; a `SlowReportError` if it took too long."""

    async def report(
        self, by: By, grain: Grain, wanted: ReportFilter, at_most: int, after: Place | None = None
    ) -> list[UsageRow]:
        """Return the rows behind `after`: the newest period first, then by name and tenant."""

    async def top(self, by: By, wanted: ReportFilter, measure: Measure, at_most: int) -> list[UsageRow]:
        """Return the largest rows over all dates that are wanted, the largest first, then by name and tenant."""

    async def total(self, wanted: ReportFilter) -> Sums:
        """Return the sums of all that is wanted."""

    async def missing(self) -> Missing:
        """Return what the sums of this moment lack."""


class RollupRepair(Protocol):
    """Compare the sums that reports read with the ledger, and correct them. Every call raises `StoreError`."""

    async def rebuild(self, date: str, *, dry_run: bool) -> Sums:
        """Correct the sums of a date (hours: of that date in UTC). Return what they lacked; negative: too much.

        Entries that are not added yet do not count. With `dry_run` nothing is written.
        """

    async def rebuild_month(self, month: str, *, dry_run: bool) -> Sums:
        """Correct the sums of a month (YYYY-MM) by those of its dates. Return as `rebuild`."""

    async def rebuild_accounts(self, month: str, *, dry_run: bool) -> Sums:
        """Correct the sums of service accounts in a month (YYYY-MM) by their daily usage. Return as `rebuild`."""


@dataclass(frozen=True, slots=True)
class ClosedErasure:
    """Say that a service account of a closed month became a pseudonym, and what the checksum was and became.

    `before` and `after` are equal if the rows had lost their checksum before: an erasure does not make it right.
    """

    at: datetime
    pseudonym: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ClosedMonth:
    """Hold a frozen report: its rows as they were at the close, and their checksum.

    Only the erasure of a person changes names of rows. `erasures` has all of them; sums never change.
    """

    month: str
    closed_at: datetime
    closed_by: Actor
    note: str | None
    currency: str
    checksum: str
    rows: int
    total: Sums
    erasures: tuple[ClosedErasure, ...] = ()

    @property
    def checksum_now(self) -> str:
        """Return the checksum that the rows have now."""
        return self.erasures[-1].after if self.erasures else self.checksum


class ClosedMonths(Protocol):
    """Keep closed months. Nothing deletes one, and only an erasure changes one. Every call raises `StoreError`."""

    async def add(self, closed: ClosedMonth, rows: Sequence[UsageRow]) -> bool:
        """Keep a closed month and its rows. Return False, and change nothing, if it is closed already."""

    async def all(self, at_most: int, after: str | None = None) -> list[ClosedMonth]:
        """Return the closed months behind `after`, the newest first."""

    async def find(self, month: str) -> ClosedMonth | None:
        """Return a closed month, without its rows."""

    async def rows(self, month: str, at_most: int, after: Place | None = None) -> list[UsageRow]:
        """Return its rows behind `after`, by name and tenant."""

    async def months_of(self, tenant: str, names: Sequence[str]) -> list[str]:
        """Return the closed months with a row of one of these service accounts of a tenant, sorted."""

    async def erase(self, month: str, tenant: str, name: str, erasure: ClosedErasure) -> bool:
        """Note an erasure, once for each pseudonym, and rename the service account's row.

        Return False, and change nothing, if the month's checksum is not `erasure.before` (any more).
        """
