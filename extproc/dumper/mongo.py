"""Write messages to MongoDB in batches: one document per message, deleted after `ttl_days`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson import encode
from bson.errors import BSONError
from pymongo import AsyncMongoClient
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from extproc.dumper.message import Message, identity_of, record_of
from extproc.dumper.sinks import Written
from extproc.ports.base import StoreError

_TTL_INDEX: Final = "expires"
_BY_SERVICE: Final = "service_time"
_DUPLICATE: Final = 11000
# Permanent errors of a document: it breaks a validation rule, or is too large.
_NEVER: Final = frozenset({2, 121, 10334, 17419, 17420})
_DAY_S: Final = 86_400
_MAX_TTL_S: Final = 2_147_483_647


@dataclass(frozen=True, slots=True)
class MongoSinkOptions:
    """Say where to write. `url` may contain a password and TLS options. `ttl_days` 0 keeps messages forever."""

    url: str
    database: str
    collection: str
    ttl_days: float
    timeout_s: float = 10.0


class MongoSink:
    """Write messages to a collection. `_id` is the identity of a message, so a repeated message adds nothing."""

    def __init__(self, options: MongoSinkOptions) -> None:
        milliseconds = int(options.timeout_s * 1000)
        self._options = options
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            options.url,
            appname="tokenweir-message-dumper",
            connectTimeoutMS=milliseconds,
            serverSelectionTimeoutMS=milliseconds,
            timeoutMS=milliseconds,
            tz_aware=True,
        )
        self._database = self._client[options.database]
        # A write is acknowledged once a majority has it in the journal.
        self._messages = self._database.get_collection(
            options.collection, write_concern=WriteConcern("majority", j=True)
        )

    async def prepare(self) -> None:
        """Create the indexes. Raise `StoreError`."""
        try:
            await self._messages.create_index(
                [("namespace", 1), ("inference_service", 1), ("time", -1)], name=_BY_SERVICE
            )
            await self._expire()
        except PyMongoError as error:
            raise StoreError(f"MongoDB: {_brief(error)}", transient=True) from error

    async def _expire(self) -> None:
        seconds = min(int(self._options.ttl_days * _DAY_S), _MAX_TTL_S)
        present = (await self._messages.index_information()).get(_TTL_INDEX)
        if not self._options.ttl_days:
            if present is not None:
                await self._messages.drop_index(_TTL_INDEX)
        elif present is None:
            await self._messages.create_index("received_at", name=_TTL_INDEX, expireAfterSeconds=seconds)
        elif present.get("expireAfterSeconds") != seconds:
            await self._database.command(
                "collMod",
                self._options.collection,
                index={"name": _TTL_INDEX, "expireAfterSeconds": seconds},
            )

    async def write(self, messages: Sequence[Message]) -> Sequence[Written]:
        results: list[Written] = [Written.STORED] * len(messages)
        documents, places = [], []
        for place, message in enumerate(messages):
            document = {"_id": identity_of(message), **record_of(message)}
            if _fits(document):
                documents.append(document)
                places.append(place)
            else:
                results[place] = Written.REFUSED
        if documents:
            for index, written in (await self._insert(documents)).items():
                results[places[index]] = written
        return results

    async def _insert(self, documents: list[dict[str, Any]]) -> Mapping[int, Written]:
        try:
            await self._messages.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            details = error.details or {}
            if details.get("writeConcernErrors"):
                raise StoreError(f"MongoDB: {_brief(error)}", transient=True) from error
            return {each["index"]: _result(each.get("code")) for each in details.get("writeErrors", [])}
        except PyMongoError as error:
            raise StoreError(f"MongoDB: {_brief(error)}", transient=True) from error
        return {}

    async def aclose(self) -> None:
        await self._client.close()


def _result(code: int | None) -> Written:
    if code == _DUPLICATE:
        return Written.REPEATED
    return Written.REFUSED if code in _NEVER else Written.FAILED


def _fits(document: dict[str, Any]) -> bool:
    """Return whether BSON can encode the document: it can't with a NUL in a name, for example."""
    try:
        encode(document)
    except (BSONError, OverflowError, UnicodeEncodeError):
        return False
    return True


def _brief(error: PyMongoError) -> str:
    if isinstance(error, OperationFailure):  # the text may quote documents
        return f"{type(error).__name__}, code {error.code}"
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text.partition(" (configured timeouts")[0].partition(", Timeout:")[0][:200]
