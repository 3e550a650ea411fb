"""Documents of daily usage that can't be added to: sums that are no numbers, documents that are full.

Other programs write there too. The ledger is the source of truth, so what they broke must not keep an entry out
of it: the document is set aside as it was, in a collection of its own, and what can't be added to is summed anew
from the ledger. What is a number stays: it may count what this ledger never knew.
"""

import logging
from collections.abc import Iterable
from math import isfinite
from typing import Any, Final

from bson import ObjectId, encode
from pymongo.asynchronous.client_session import AsyncClientSession

from extproc.stores.mongo.client import DAILY, DAILY_ASIDE, LEDGER, WRITE, Mongo
from extproc.stores.mongo.documents import (
    DAY_FIELDS,
    SUMS,
    DayKey,
    ModelNames,
    increments,
    readable_entries,
)

# A document may have 16 MiB; one that is near that and was refused is full. Ours has some ten KiB.
_FULL: Final = 15 * 1024 * 1024
# A sum that is larger than this is none of ours, and adding to it may overflow.
_MOST: Final = 2**62

_log = logging.getLogger(__name__)


class Mending:
    """Mends documents of daily usage."""

    def __init__(self, mongo: Mongo, *, transactions: bool) -> None:
        self._mongo = mongo
        self._transactions = transactions
        self._ledger = mongo.collection(LEDGER)
        self._daily = mongo.collection(DAILY)
        self._aside = mongo.collection(DAILY_ASIDE)

    async def mend(self, keys: Iterable[DayKey]) -> bool:
        """Whether one of the days had to be mended. Raises the driver's exceptions."""
        mended = False
        for key in dict.fromkeys(keys):
            day = {name: {"$eq": value} for name, value in zip(DAY_FIELDS, key, strict=True)}
            document = await self._daily.find_one(day)
            if document is None or not is_broken(document):
                continue
            await self._mend(day)
            mended = True
            _log.error(
                "a document of daily usage could not be added to: set aside, and summed anew from the ledger",
                extra={"document": str(document["_id"]), "date": key[2], "aside": DAILY_ASIDE},
            )
        return mended

    async def _mend(self, day: dict[str, Any]) -> None:
        async def write(session: AsyncClientSession | None) -> None:
            document = await self._daily.find_one(day, session=session)
            if document is None or not is_broken(document):
                return  # somebody else was faster
            await self._aside.insert_one(document | {"_id": ObjectId()}, session=session)
            whole = await self._ledger.find(day, session=session).to_list()
            sums = increments(readable_entries(whole), ModelNames())
            ledger = next(iter(sums.values()))[1] if sums else {"usage": 0}
            await self._daily.replace_one({"_id": document["_id"]}, mended(document, ledger), session=session)

        if not self._transactions:
            await write(None)
            return
        async with self._mongo.client.start_session() as session:
            await session.with_transaction(write, write_concern=WRITE)


def is_broken(document: dict[str, Any]) -> bool:
    """Whether it can't be added to."""
    models = document.get("models", {})
    return (
        any(name in document and not _is_sum(document[name]) for name in SUMS)
        or not isinstance(models, dict)
        or not all(map(_is_sum, models.values()))
        or len(encode(document)) > _FULL
    )


def mended(document: dict[str, Any], ledger: dict[str, int]) -> dict[str, Any]:
    """The document with the ledger's sums in place of what can't be added to. A full one keeps only our fields."""
    full = len(encode(document)) > _FULL
    kept = {"_id", "tenant_id", *DAY_FIELDS, *SUMS}
    result = {name: value for name, value in document.items() if not full or name in kept}
    for name in SUMS:
        if name in document and not _is_sum(document[name]):
            result[name] = ledger.get(name, 0)
    models = document.get("models", {})
    if full or not isinstance(models, dict) or not all(map(_is_sum, models.values())):
        prefix = "models."
        result["models"] = {n.removeprefix(prefix): v for n, v in ledger.items() if n.startswith(prefix)}
    return result


def _is_sum(value: object) -> bool:
    """Whether it is a number that can be added to."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and isfinite(value) and abs(value) < _MOST  # type: ignore[arg-type]
