"""Mend documents of daily usage that can't be incremented: sums that are no numbers, documents that are full.

Other programs write to daily usage too. The ledger is the source of truth, so a broken document must not keep an
entry out of it. The broken document is copied to a collection of its own, and the sums that can't be incremented
are computed again from the ledger. Valid sums stay: they may include usage that this ledger never had.
"""

import logging
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final

from bson import ObjectId, encode
from pymongo.asynchronous.client_session import AsyncClientSession

from extproc.stores.mongo.client import DAILY, DAILY_ASIDE, LEDGER, WRITE, Mongo, Named
from extproc.stores.mongo.documents import (
    DAY_FIELDS,
    SHARED,
    SUMS,
    ModelNames,
    increments,
    readable_entries,
    total,
)

# A document may have 16 MiB. A refused document near that size is full. Ours have some ten KiB.
_FULL: Final = 15 * 1024 * 1024
# A larger sum is not ours, and adding to it may overflow.
_MOST: Final = 2**62

_log = logging.getLogger(__name__)


class Mending:
    """Mend documents of daily usage."""

    _ledger = Named(LEDGER)
    _daily = Named(DAILY)
    _aside = Named(DAILY_ASIDE)

    def __init__(self, mongo: Mongo, *, transactions: bool) -> None:
        self._mongo = mongo
        self._transactions = transactions

    async def mend(self, days: Iterable[Mapping[str, Any]]) -> bool:
        """Mend the broken ones of the rows that these filters find. Return whether there was one.

        Raises the driver's exceptions.
        """
        mended = False
        for day in days:
            document = await self._daily.find_one(day)
            if document is None or not is_broken(document):
                continue
            await self._mend(day)
            mended = True
            _log.error(
                "mongodb: a daily usage document can't be incremented: copied aside and summed from the ledger",
                extra={"document": str(document["_id"]), "date": str(document["date"]), "aside": DAILY_ASIDE},
            )
        return mended

    async def _mend(self, day: Mapping[str, Any]) -> None:
        async def write(session: AsyncClientSession | None) -> None:
            document = await self._daily.find_one(day, session=session)
            if document is None or not is_broken(document):
                return  # another process was faster
            await self._aside.insert_one(document | {"_id": ObjectId()}, session=session)
            whole = await self._ledger.find(day, session=session).to_list()
            ledger = total(increments(readable_entries(whole), ModelNames()).values())
            await self._daily.replace_one({"_id": document["_id"]}, mended(document, ledger), session=session)

        if not self._transactions:
            await write(None)
            return
        async with self._mongo.writing_session() as session:
            await session.with_transaction(write, write_concern=WRITE)


def is_broken(document: dict[str, Any]) -> bool:
    """Return whether the document can't be incremented."""
    models = document.get("models", {})
    return (
        any(name in document and not _is_sum(document[name]) for name in SUMS)
        or not isinstance(models, dict)
        or not all(map(_is_sum, models.values()))
        or len(encode(document)) > _FULL
    )


def mended(document: dict[str, Any], ledger: dict[str, int]) -> dict[str, Any]:
    """Return the document with the ledger's sums instead of unusable ones. A full document keeps only our
    fields.
    """
    full = len(encode(document)) > _FULL
    kept = {"_id", *DAY_FIELDS, *SUMS, SHARED}
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
    """Return whether the value is a number that can be added to."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and isfinite(value) and abs(value) < _MOST  # type: ignore[arg-type]
