"""Delete entries of the ledger by age, and tell which may be gone.

MongoDB deletes entries by a TTL index on `ended_at`. An entry that was deleted can't be told from one that was
never there. So no entry is written that may have been deleted, whatever the settings of the replica:

- `gone_before` comes from the index itself, and from a note about earlier indexes that deleted more.
- No entry is deleted sooner than `SHORTEST_RETENTION` after its end, so most entries need no look.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

import pymongo
from pymongo.errors import OperationFailure

from extproc.core.quota.ledger import SHORTEST_RETENTION, Entry
from extproc.ports.base import StoreError
from extproc.stores.mongo.client import DAILY_BY_TENANT, LEDGER, MIGRATIONS, Mongo, Named, translated

INDEX: Final = "ledger_retention"
_FIELD: Final = "ended_at"
_NOTE: Final = "ledger_retention"  # the document of `MIGRATIONS`
# Entries are refused so long before they may be deleted. More than wrong clocks and a tenant's day together: while
# any entry of a day is taken, none of that day is deleted.
_EARLIER: Final = timedelta(days=2)
_NEVER_GONE: Final = SHORTEST_RETENTION - _EARLIER
# An index of a large collection takes longer than the time-out of a usual call.
_PATIENCE_S: Final = 3600.0
_RETRY_S: Final = 5.0
_TRIES: Final = 5
# Another replica was faster, or an index is in the way.
_CONFLICTS: Final = frozenset({26, 27, 85, 86})
_NO_RIGHT: Final = frozenset({13, 8000})
_NOT_CONVERTED: Final = 72  # MongoDB below 5.1 makes no TTL index of another one

_log = logging.getLogger(__name__)


class LedgerRetention:
    """Keep the TTL index as the settings say: `days`, or None for no index."""

    _ledger = Named(LEDGER)
    _state = Named(MIGRATIONS)

    def __init__(self, mongo: Mongo, days: int | None = None, *, retry_s: float = _RETRY_S) -> None:
        self._mongo = mongo
        self._seconds = None if days is None else days * 24 * 3600
        self._retry_s = retry_s

    async def run(self) -> None:
        """Apply the setting once. Repeat that until MongoDB takes or refuses it."""
        while True:
            try:
                if await self.apply():
                    return
            except StoreError as error:
                _log.warning("mongodb: ledger retention not applied yet: tried again", extra={"error": str(error)})
            await asyncio.sleep(self._retry_s)

    async def apply(self) -> bool:
        """Make, change or remove the index. Return False if nothing may be deleted yet.

        A missing right, or another index that is in the way, is logged. Raise `StoreError`.
        """
        async with translated():
            if self._seconds is not None and not await self._is_split():
                return False
            with pymongo.timeout(_PATIENCE_S):
                await self._apply()
        return True

    async def gone_before(self, now: datetime) -> datetime | None:
        """Return the instant before which entries that ended may be deleted; None if none ever was."""
        async with translated():
            note = await self._state.find_one({"_id": _NOTE}) or {}
            indexes = _indexes(await self._ledger.index_information())
        found = [note["gone_before"]] if isinstance(note.get("gone_before"), datetime) else []
        found += [now - timedelta(seconds=each) for each in indexes.values() if each is not None]
        return max(found, default=None)

    async def refuse_gone(self, entries: Iterable[Entry]) -> None:
        """Raise a permanent `StoreError` if the ledger may have had any of these entries, and deleted it."""
        now = datetime.now(UTC)
        # By admission: a reservation whose end nobody knew ends a second time, at another instant.
        oldest = min(entry.admitted_at for entry in entries)
        if oldest > now - _NEVER_GONE:
            return
        gone = await self.gone_before(now)
        if gone is not None and oldest < gone + _EARLIER:
            raise StoreError(
                f"admitted at {oldest:%Y-%m-%dT%H:%M:%SZ}: entries before {gone:%Y-%m-%d} are gone by ledger "
                "retention, and this may be one of them",
                transient=False,
            )

    async def _is_split(self) -> bool:
        """Tell whether daily usage is kept by tenant: else it is still split by the ledger's entries."""
        return await self._state.find_one({"_id": DAILY_BY_TENANT, "done": True}, {"_id": 1}) is not None

    async def _apply(self) -> None:
        for tries_left in reversed(range(_TRIES)):
            indexes = _indexes(await self._ledger.index_information())
            name = INDEX if INDEX in indexes else next(iter(indexes), None)
            present = indexes[name] if name is not None else None
            right = self._right_to_change(name, present)
            if right is None:
                return
            try:
                if present is not None:
                    await self._note(datetime.now(UTC) - timedelta(seconds=present))
                await self._change(right, name)
            except OperationFailure as error:
                if error.code in _CONFLICTS and tries_left:
                    continue
                if error.code not in _CONFLICTS | _NO_RIGHT | {_NOT_CONVERTED}:
                    raise
                _log_refusal(right, name, error)
            else:
                _log.info("mongodb: ledger retention changed", extra={"seconds": self._seconds, "before": present})
            return

    def _right_to_change(self, name: str | None, present: float | None) -> str | None:
        """Return the right that the change of an index needs; None if the index stays as it is."""
        if present == self._seconds:
            return None
        if self._seconds is not None:
            return "createIndex" if name is None else "collMod"
        if name == INDEX:
            return "dropIndex"
        _log.warning(
            "mongodb: an index that Tokenweir did not make deletes entries of the ledger",
            extra={"index": name, "seconds": present},
        )
        return None

    async def _change(self, right: str, name: str | None) -> None:
        if right == "createIndex":
            await self._ledger.create_index(_FIELD, name=INDEX, expireAfterSeconds=self._seconds)
        elif right == "collMod":
            changed = {"name": name, "expireAfterSeconds": self._seconds}
            await self._ledger.database.command("collMod", LEDGER, index=changed)
        else:
            await self._ledger.drop_index(INDEX)

    async def _note(self, gone_before: datetime) -> None:
        """Note what the present index may have deleted: the next one may not tell."""
        await self._state.update_one({"_id": _NOTE}, {"$max": {"gone_before": gone_before}}, upsert=True)


def _indexes(information: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the indexes on the end of an entry alone, and after how many seconds each deletes; None: never."""
    found: dict[str, float | None] = {}
    for name, index in information.items():
        if [field for field, _ in index["key"]] == [_FIELD] and "partialFilterExpression" not in index:
            seconds = index.get("expireAfterSeconds")
            usable = isinstance(seconds, (int, float)) and isfinite(seconds)
            found[name] = seconds if usable else None
    return found


def _log_refusal(right: str, name: str | None, error: OperationFailure) -> None:
    extra: dict[str, object] = {"collection": LEDGER, "error": str(error)[:200]}
    if error.code in _NO_RIGHT:
        _log.warning(
            f"mongodb: the user lacks the right {right} on {LEDGER}: ledger retention stays as it was",
            extra=extra,
        )
    else:
        _log.warning(
            "mongodb: an index is in the way: ledger retention stays as it was; drop the index, and restart",
            extra={"index": name or INDEX, **extra},
        )
