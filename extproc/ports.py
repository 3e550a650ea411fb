"""What the application needs of the world: protocols that the stores implement, and the faults they may raise."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from extproc.core.binding import Policy
from extproc.core.identity import TenantId
from extproc.core.ledger import Charge, Entry
from extproc.core.limits import Bucket
from extproc.core.quota import Admitted, Count, Denied, Reservation, ReservationId
from extproc.core.settlement import Outcome


class StoreError(Exception):
    """A store did not do what was asked. `transient`: the same call may succeed later, and is safe to repeat."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class UnreadyError(StoreError):
    """The counters answer, but what they have lost is not rebuilt yet: nothing may be counted in them so far."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class ConflictError(Exception):
    """The document was changed since it was read: nothing was written. Read again."""


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a reservation, as the counters see it: what was held goes back, `charges` (one a bucket) is used.

    `watched` says of which buckets thresholds are looked at. `entry` is what the ledger has to get: it waits in
    the journal from the same moment on. None: nothing is recorded.
    """

    reservation: Reservation
    outcome: Outcome
    charges: tuple[int, ...]
    watched: tuple[bool, ...] = ()
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Crossed:
    """A bucket whose use reached a threshold (percent of its amount), for the first time in its life."""

    bucket: Bucket
    used: int
    threshold: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an entry waits in the journal."""

    partition: int
    id: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The outcome that stands, the thresholds that this end crossed, and where its entry waits.

    Without a receipt there is no entry, or it is not known to wait (any more).
    """

    outcome: Outcome
    crossed: tuple[Crossed, ...] = ()
    receipt: Receipt | None = None


class Counters(Protocol):
    """Buckets and reservations. Each call is atomic per reservation and safe to repeat; all raise `StoreError`.

    `reserve` and `close` raise `UnreadyError` where the partition of a tenant is in an epoch that is not ready, or
    that this replica did not register in (see `Epochs`). `renew` asks only for that.

    A `part` is a partition where the partitions are `apart`: on servers of their own, which fail by themselves.
    None: all of them. Where they are not, they fail together, and there is no other part.
    """

    @property
    def apart(self) -> bool:
        """Whether what happens to one partition need not happen to the others."""

    async def reserve(self, reservation: Reservation) -> Admitted | Denied:
        """Checks every bucket, then holds in all or in none.

        Repeating it with the same reservation id holds nothing more. A reservation that was closed already (a
        release that overtook it) is not opened again.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Lets open reservations live until their new deadline and hold what they now have to, never less.

        One that is not open is left alone; but one that is `local` and not known is held as it is, whatever the
        limits say. A renewal that was overtaken by a later one (with a later deadline) changes nothing.
        """

    async def close(self, closings: Sequence[Closing], thresholds: Sequence[int] = ()) -> list[Closed]:
        """Ends reservations; a second end of the same reservation changes nothing.

        Returns for each the outcome that stands, which is another one's where that came first; a repeated end
        returns what the first one did. An unknown reservation changes no bucket and puts no entry into the
        journal, unless it is `local`: then it is charged without having been held. `thresholds` are percentages,
        ascending.
        """

    async def overdue(self, now: datetime, at_most: int, part: int | None = None) -> list[Reservation]:
        """Reservations as they were granted whose deadline is before `now`, and that no replica ended."""

    async def read(self, tenant: TenantId, buckets: Sequence[Bucket]) -> list[Count]:
        """The counts as they stand; (0, 0) for a bucket that nothing was counted in yet."""

    async def time(self) -> float:
        """The store's own clock, in seconds since the epoch: the one that all replicas can agree on."""

    async def warnings(self) -> list[str]:
        """What about the store's configuration endangers the counters, for people to read."""

    async def ping(self, part: int | None = None) -> None:
        """Returns when the store answers: for one partition, or for any."""

    async def aclose(self) -> None:
        """Gives connections back."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that waits in the journal to be written to the ledger; `entry` is None where it can't be read."""

    receipt: Receipt
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Journalled:
    """What counters have to know of an entry that waits in the journal, when they are rebuilt."""

    id: ReservationId
    tenant: TenantId
    outcome: Outcome
    charges: tuple[Charge, ...]

    @classmethod
    def of(cls, entry: Entry) -> "Journalled":
        """What it has to say."""
        return cls(entry.id, entry.identity.tenant, entry.outcome, entry.charges)


@dataclass(frozen=True, slots=True)
class Aside:
    """An entry that the ledger refused for good, as it was journalled (JSON), and why; where it stands."""

    text: str
    reason: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many entries wait, how many seconds the oldest has waited, and how many were set aside."""

    waiting: int
    oldest_s: float
    aside: int


class Journal(Protocol):
    """Entries between the end of their reservation and the ledger. Every call raises `StoreError`.

    It outlives epochs. What it holds is only removed when it is known to be in the ledger, or set aside.
    """

    async def written(self, receipts: Sequence[Receipt]) -> None:
        """The entries are in the ledger: forgets them. One that is gone already is fine."""

    async def waiting(self, older_than_s: float, at_most: int, partition: int | None = None) -> list[Waiting]:
        """Entries that have waited for so long, oldest first, of all partitions or of one.

        With an age of 0 all that wait, whatever the clock says that they are.
        Where more wait than are asked for, each partition's oldest ones are among them.
        """

    async def journalled(self, partition: int) -> list[Journalled]:
        """All that waits in a partition and can be read. What is removed meanwhile may be among it or not."""

    async def set_aside(self, entry: Entry | None, receipt: Receipt | None, reason: str) -> None:
        """Puts an entry where people find it and nothing tries it again; atomically with forgetting it.

        With an entry of None the journal's own text is kept.
        """

    async def aside(self, at_most: int) -> list[Aside]:
        """What was set aside, oldest first."""

    async def forget_aside(self, receipts: Sequence[Receipt]) -> None:
        """These are in the ledger after all: removes them from what was set aside. One that is gone is fine."""

    async def backlog(self) -> Backlog:
        """What waits."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A life of one partition's counters. Until it is `ready`, what the life before it lost is being rebuilt."""

    partition: int
    id: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Used:
    """What is used of a bucket, by the ledger. `until` is the end of its window, seconds since the epoch."""

    tenant: TenantId
    key: str
    until: int
    amount: int


class Epochs(Protocol):
    """The lives of the counters.

    Every call raises `StoreError` and may be repeated; those that take an epoch raise `UnreadyError` where it is
    not the partition's current one (any more).

    An epoch begins, not ready, whenever its counters may have lost anything: keys that are gone, a server that was
    restarted or took over from another. It starts with nothing in it.
    """

    async def epochs(self) -> list[Epoch]:
        """The current epoch of every partition that can be reached, in order. Begins one where it has to.

        Raises where none can be. Does not wait for one for longer than its other calls go on without it.
        """

    async def restore(self, epoch: Epoch, reservations: Sequence[Reservation]) -> None:
        """Holds what is open, whatever the limits say. One that the epoch knows, open or ended, stays as it is."""

    async def register(self, epoch: Epoch, replica: str) -> None:
        """The replica has restored all that it holds. From now on it counts in this epoch."""

    async def registered(self, epoch: Epoch) -> set[str]:
        """The replicas that did."""

    async def left_open(self, epoch: Epoch) -> list[Reservation]:
        """Reservations that were open when the epoch before was left, as far as they are still known.

        Without hits (of routes): the ledger has none of them, so nobody knows which were charged.
        """

    async def still_open(self, epoch: Epoch) -> list[Reservation]:
        """The reservations that are open in the epoch."""

    async def forget(self, epoch: Epoch, ended: Sequence[tuple[Reservation, Outcome]]) -> None:
        """These had ended before: gives back what they hold, charges nothing, remembers their outcome."""

    async def install(self, epoch: Epoch, used: Sequence[Used]) -> None:
        """Sets what is used of buckets. Only before the epoch is ready; whoever does it twice sets the same."""

    async def complete(self, epoch: Epoch) -> None:
        """Everything is rebuilt: the epoch is ready. What is left of earlier ones is cleared, some time."""


class CounterStore(Counters, Journal, Epochs, Protocol):
    """Counters and what belongs to them, as one store has it."""


class Records(Protocol):
    """What is durable beside the ledger's entries, for rebuilding counters. Every call raises `StoreError`."""

    async def outcomes(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Outcome]:
        """How reservations ended that are in the ledger."""

    async def used(self, now: datetime) -> list[Used]:
        """What the ledger's entries make of all buckets whose window is not over: the sums of their charges."""

    async def keep(self, reservations: Sequence[Reservation]) -> None:
        """Keeps open reservations as they are now; an older state of the same is replaced."""

    async def drop(self, ids: Sequence[ReservationId]) -> None:
        """They are open no more."""

    async def kept(self) -> list[Reservation]:
        """What is kept. Some of it may have ended: `outcomes` tells."""

    async def beat(self, replica: str) -> dict[str, int]:
        """The replica is alive. Returns the beats of all that are known, by name; their numbers only grow."""

    async def leave(self, replica: str) -> None:
        """It is gone, having left nothing behind, or for too long."""


class Spool(Protocol):
    """What must survive a kill of this process while the counters are away: bounded, on local disk."""

    async def opened(self, reservation: Reservation) -> None:
        """A reservation that only this process knows of. On disk when it returns; full, it raises `StoreError`."""

    def ended(self, closing: Closing) -> None:
        """How it ended. Returns at once; on disk soon."""

    def done(self, ids: Sequence[ReservationId]) -> None:
        """These are recorded elsewhere: forgets them. Returns at once."""

    async def keep(self, closings: Sequence[Closing]) -> None:
        """Ends that could not be delivered in time. On disk when it returns; raises `StoreError`."""


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
