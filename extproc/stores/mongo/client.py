"""Connect to MongoDB, name its collections, and translate the driver's exceptions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bson.binary import UUID_SUBTYPE, Binary
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from extproc.ports.base import StoreError

TENANTS: Final = "tenantLimitation"
DAILY: Final = "sa_ip_usage_daily"
DAILY_ASIDE: Final = "sa_ip_usage_daily_aside"
ROLLUPS: Final = "usage_rollups"
ACCOUNT_MONTHS: Final = "usage_account_months"
CLOSED: Final = "usage_closed"
CLOSED_ROWS: Final = "usage_closed_rows"
LEDGER: Final = "token_ledger"
OPEN: Final = "token_open"
REPLICAS: Final = "token_replicas"
REPLICA_MARKS: Final = "token_replica_marks"
BUCKETS: Final = "token_bucket_usage"
AUDIT: Final = "admin_audit"
TOKENS: Final = "admin_tokens"
MIGRATIONS: Final = "token_migrations"
GENERATION: Final = "token_ledger_generation"

# The document of `MIGRATIONS` that says whether daily usage is kept by tenant.
DAILY_BY_TENANT: Final = "daily_usage_by_tenant"

# A heartbeat with this mark is of a replica that keeps daily usage by tenant. Version 0.1 writes no mark.
BY_TENANT: Final = {"daily_usage": "by_tenant"}

# A heartbeat with this mark is of a replica that adds its entries to rollups. Versions 0.1 and 0.2 write no mark.
WITH_ROLLUPS: Final = {"rollups": True}

# An acknowledged write is on a majority and in the journal. Weaker settings were seen to lose writes. A
# transaction does not inherit this from its collections, so it is passed explicitly.
WRITE: Final = WriteConcern("majority", j=True)

DUPLICATE: Final = 11000

# Sessions that are begun before they are needed, so that others know them before the first transaction: more
# than one process writes in at a time, unless its shards are many.
_SESSIONS_READY: Final = 4
# Sessions whose transactions others may have to end. Further ones make the earliest unknown.
_SESSIONS_AT_MOST: Final = 16

# Permanent failures, because the request itself is wrong: bad values, types and field names, unknown commands,
# documents that break a rule or are too large, duplicate keys. Missing rights and wrong passwords are not among
# them: an operator can correct those, and the waiting writes must still be there then.
_PERMANENT_CODES = frozenset({2, 9, 14, 16, 28, 52, 55, 56, 57, 59, 72, 115, 121, 10334, 11000, 17419, 17420})

Collection = AsyncCollection[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MongoOptions:
    """Configure the connection. `url` may contain user, password and TLS options. `timeout_s` bounds every
    call. `current_url` returns the URL as it is now.
    """

    url: str
    database: str = "modelToken"
    timeout_s: float = 5.0
    current_url: Callable[[], str] | None = None


class Mongo:
    """Hold one client and its collections. Replace the client when the URL changes: a password may rotate."""

    def __init__(self, options: MongoOptions) -> None:
        self._options = options
        self._url = options.url
        self._closing: set[asyncio.Task[None]] = set()
        self._sessions: dict[bytes, None] = {}
        self._idle: list[AsyncClientSession] = []
        self._connect()

    def _connect(self) -> None:
        options = self._options
        milliseconds = int(options.timeout_s * 1000)
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            self._url,
            appname="tokenweir",
            connectTimeoutMS=milliseconds,
            serverSelectionTimeoutMS=milliseconds,
            timeoutMS=milliseconds,
            tz_aware=True,
            # Other programs write here too: a date or text that Python can't represent must not make all data
            # unreadable.
            datetime_conversion=DatetimeConversion.DATETIME_AUTO,
            unicode_decode_error_handler="replace",
        )
        self._collections: dict[str, Collection] = {}
        self._database = self._client.get_database(
            options.database,
            write_concern=WRITE,
            read_concern=ReadConcern("majority"),
        )

    @property
    def client(self) -> AsyncMongoClient[dict[str, Any]]:
        """Return the client of the present URL. Ask for it again for each operation."""
        self._follow()
        return self._client

    def collection(self, name: str) -> Collection:
        """Return a collection of the present client. Ask for it again for each operation."""
        self._follow()
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = self._database[name]
        return found

    def _follow(self) -> None:
        current = self._options.current_url
        if current is None or (url := current()) == self._url:
            return
        self._url = url
        closing = asyncio.get_running_loop().create_task(self._close_later(self._client))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._connect()

    async def _close_later(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Let the operations in hand end: each is bounded by `timeout_s`."""
        try:
            await asyncio.sleep(2 * self._options.timeout_s)
        finally:
            await client.close()

    @asynccontextmanager
    async def writing_session(self) -> AsyncIterator[AsyncClientSession]:
        """Lend a session for a transaction. The same few are lent again, so that others can know them."""
        self._drop_former_sessions()
        session = self._idle.pop() if self._idle else self.client.start_session()
        self._remember(session)
        try:
            yield session
        finally:
            if session.in_transaction:  # it was cancelled: nobody could write in this session again
                await session.end_session()
            else:
                self._idle.append(session)

    def ready_sessions(self) -> list[Binary]:
        """Return the ids of the sessions in which this process writes transactions, now and next, the latest ones.

        Begins sessions, so that a few are always idle: who notes their ids has noted them before they are used.
        """
        self._drop_former_sessions()
        while len(self._idle) < _SESSIONS_READY:
            session = self.client.start_session()
            self._remember(session)
            self._idle.insert(0, session)  # those that are known already are lent first
        return [Binary(each, UUID_SUBTYPE) for each in self._sessions]

    def _remember(self, session: AsyncClientSession) -> None:
        session_id = bytes(session.session_id["id"])
        self._sessions.pop(session_id, None)
        self._sessions[session_id] = None
        while len(self._sessions) > _SESSIONS_AT_MOST:
            del self._sessions[next(iter(self._sessions))]

    def _drop_former_sessions(self) -> None:
        """Keep no session of a client that was replaced."""
        client = self.client
        self._idle = [each for each in self._idle if each.client is client]

    async def ping(self) -> None:
        """Return when the server answers. Raise `StoreError`."""
        async with translated():
            await self.client.admin.command("ping")

    async def has_transactions(self) -> bool:
        """Return whether the server is a replica set member or a mongos. Raise `StoreError`."""
        async with translated():
            hello = await self.client.admin.command("hello")
        return "setName" in hello or hello.get("msg") == "isdbgrid"

    async def aclose(self) -> None:
        """Close all connections."""
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._client.close()


class Named:
    """Give a store one collection, of the client that is in force when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, store: "_OnMongo", _owner: type) -> Collection:
        return store._mongo.collection(self._name)  # noqa: SLF001


class _OnMongo(Protocol):
    _mongo: Mongo


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn the driver's exceptions into `StoreError`."""
    try:
        yield
    except (ConnectionFailure, ExecutionTimeout) as error:
        raise StoreError(f"MongoDB can't be reached: {_brief(error)}", transient=True) from error
    except OperationFailure as error:
        raise StoreError(f"MongoDB refused: {_brief(error)}", transient=_passes(error)) from error
    except InvalidOperation as error:
        # The client was replaced in the middle of an operation: the next try has the new one.
        raise StoreError(f"MongoDB: {_brief(error)}", transient=True) from error
    except PyMongoError as error:
        transient = getattr(error, "timeout", False)
        raise StoreError(f"MongoDB: {_brief(error)}", transient=bool(transient)) from error
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        raise StoreError(f"not a value that MongoDB can hold: {_brief(error)}", transient=False) from error


def only_duplicates(error: BulkWriteError) -> bool:
    """Return whether all refused writes are duplicates."""
    details: Mapping[str, Any] = error.details or {}
    failed = details.get("writeErrors") or []
    return bool(failed) and not details.get("writeConcernErrors") and all(f["code"] == DUPLICATE for f in failed)


def _passes(error: OperationFailure) -> bool:
    if error.has_error_label("TransientTransactionError"):
        return True
    failed = (error.details or {}).get("writeErrors") or []  # of a bulk write
    return _PERMANENT_CODES.isdisjoint({error.code, *(each.get("code") for each in failed)})


def _brief(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    # Cut off the driver's text about timeouts and topology.
    return text.partition(" (configured timeouts")[0].partition(", Timeout:")[0][:300]
