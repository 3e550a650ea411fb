"""What the application needs of the world: protocols that the stores implement, and the faults they may raise."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.binding import Policy
from extproc.core.identity import TenantId
from extproc.core.ledger import Entry
from extproc.core.limits import Bucket
from extproc.core.quota import Admitted, Count, Denied, Reservation
from extproc.core.settlement import Outcome


class StoreError(Exception):
    """A store did not do what was asked. `transient`: the same call may succeed later, and is safe to repeat."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class ConflictError(Exception):
    """The document was changed since it was read: nothing was written. Read again."""


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a reservation, as the counters see it: what was held goes back, `charges` (one a bucket) is used.

    `watched` says of which buckets thresholds are looked at.
    """

    reservation: Reservation
    outcome: Outcome
    charges: tuple[int, ...]
    watched: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Crossed:
    """A bucket whose use reached a threshold (percent of its amount), for the first time in its life."""

    bucket: Bucket
    used: int
    threshold: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The outcome that stands, and the thresholds that this end crossed."""

    outcome: Outcome
    crossed: tuple[Crossed, ...] = ()


class Counters(Protocol):
    """Buckets and reservations. Each call is atomic per tenant and safe to repeat; all raise `StoreError`."""

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        """Checks every bucket, then holds in all or in none.

        Repeating it with the same reservation id holds nothing more. A reservation that was closed already (a
        release that overtook it) is not opened again.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Lets open reservations live until their new deadline and hold what they now have to, never less.

        One that is not open is left alone.
        """

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        """Ends reservations; a second end of the same reservation changes nothing.

        Returns for each the outcome that stands, which is another one's where that came first. An unknown
        reservation changes no bucket. `thresholds` are percentages, ascending.
        """

    async def overdue(self, now: datetime, at_most: int) -> list[Reservation]:
        """Reservations as they were granted whose deadline is before `now`, and that no replica ended."""

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        """The counts as they stand; (0, 0) for a bucket that nothing was counted in yet."""

    async def ping(self) -> None:
        """Returns when the store answers."""

    async def aclose(self) -> None:
        """Gives connections back."""


class Ledger(Protocol):
    """The record of what happened, and daily usage as its sum."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """Writes entries durably and adds them to daily usage; an entry whose id is known changes nothing.

        Raises `StoreError`; after a transient one the same entries may be appended again.
        """

    async def aclose(self) -> None:
        """Gives connections back."""


class Limits(Protocol):
    """The tenants' limits, at hand: no I/O, for the request path."""

    def policy(self, tenant: TenantId) -> Policy:
        """What binds the tenant now; the defaults where nobody configured it. Never raises."""


Document = Mapping[str, object]


class TenantStore(Protocol):
    """The stored limits of all tenants (`tenantLimitation`). Every call raises `StoreError`."""

    async def documents(self) -> list[Document]:
        """All documents, as they are stored."""

    async def document(self, tenant: TenantId) -> Document | None:
        """One tenant's document, or None."""

    async def update(self, tenant: TenantId, fields: Document, version: int | None = None) -> bool:
        """Writes fields of the tenant's document and keeps all others; one that is None goes. True: it is new.

        Each update adds 1 to the document's `version`. With `version` (0: there is no document, or it has none)
        nothing is written to any other: raises `ConflictError` then. Who edits a document by other means is only
        seen where they add to it too.
        """

    async def delete(self, tenant: TenantId) -> bool:
        """Removes the tenant; False where there was none."""

    def changes(self) -> AsyncIterator[None]:
        """Yields once at the start of watching, then whenever limits may have changed.

        An end or a `StoreError` means that watching is not possible (now): ask by polling.
        """

    async def aclose(self) -> None:
        """Gives connections back."""


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which daily usage to report; None: any. Dates are YYYY-MM-DD, both inclusive."""

    tenant: str | None = None
    service_account: str | None = None
    client_ip: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """The usage of one service account + client IP on one date, in tokens and requests; `price` as in `Entry`."""

    tenant: str
    service_account: str
    client_ip: str
    date: str
    usage: int
    input: int = 0
    output: int = 0
    cached: int = 0
    requests: int = 0
    denied: int = 0
    estimated: int = 0
    price: int = 0


class UsageReports(Protocol):
    """What was used. Every call raises `StoreError`."""

    async def daily(self, wanted: UsageFilter, at_most: int) -> list[DailyUsage]:
        """Daily usage, newest date first, then the largest usage."""

    async def entries(self, wanted: UsageFilter, at_most: int) -> list[Entry]:
        """The ledger itself, newest first."""

    def replay(self, wanted: UsageFilter) -> AsyncIterator[Entry]:
        """The ledger in the order of admission, oldest first, however long; one that asks again starts anew.

        What is appended meanwhile may or may not be among them.
        """
