"""Correct rollups by the ledger, in use.

What rows lack of the ledger is computed from one snapshot of both, and added to rows of a slot of its own. Entries
that are added meanwhile change both alike, so they change no difference.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, time, timedelta
from datetime import date as Date  # noqa: N812
from typing import Any, Final

import pymongo
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern

from extproc.core.quota.ledger import Entry
from extproc.ports.reports import SUM_NAMES, Grain, Sums
from extproc.stores.mongo.account_months import AccountMonths
from extproc.stores.mongo.client import LEDGER, ROLLUPS, WRITE, Mongo, Named, translated
from extproc.stores.mongo.documents import readable_entries
from extproc.stores.mongo.rollups import (
    CORRECTED,
    ROLLED,
    RollupNames,
    RowKey,
    grain_name,
    rollup_sums,
    rollup_updates,
)

_DAY: Final = timedelta(days=1)
_AT_ONCE: Final = 1000
# MongoDB ends transactions after a minute.
_PATIENCE_S: Final = 60.0
_UNBOUNDED: Final = 10**9


class MongoRollupRepair:
    """Implement `ports.RollupRepair`."""

    _ledger = Named(LEDGER)
    _rollups = Named(ROLLUPS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def rebuild(self, date: str, *, dry_run: bool) -> Sums:
        async def lacking(session: AsyncClientSession | None) -> dict[RowKey, Counter[str]]:
            wanted: dict[RowKey, Counter[str]] = {}
            names = RollupNames(_UNBOUNDED)
            async for batch in self._entries(date, session):
                for key, sums in rollup_sums(batch, names).items():
                    grain, period, _ = key
                    if grain is not Grain.MONTH and period[:10] == date:
                        wanted.setdefault(key, Counter()).update(sums)
            for grain, first, last in ((Grain.DAY, date, date), (Grain.HOUR, f"{date}T00", f"{date}T23")):
                await self._take_rows(wanted, grain, first, last, session)
            return wanted

        return await self._correct(lacking, Grain.DAY, dry_run=dry_run)

    async def rebuild_month(self, month: str, *, dry_run: bool) -> Sums:
        async def lacking(session: AsyncClientSession | None) -> dict[RowKey, Counter[str]]:
            days: dict[RowKey, Counter[str]] = {}
            await self._take_rows(days, Grain.DAY, f"{month}-01", f"{month}-31", session)
            wanted: dict[RowKey, Counter[str]] = {}
            for (_, _, tenant), sums in days.items():
                wanted.setdefault((Grain.MONTH, month, tenant), Counter()).subtract(sums)
            await self._take_rows(wanted, Grain.MONTH, month, month, session)
            return wanted

        return await self._correct(lacking, Grain.MONTH, dry_run=dry_run)

    async def rebuild_accounts(self, month: str, *, dry_run: bool) -> Sums:
        async with translated():
            with pymongo.timeout(_PATIENCE_S):
                return Sums(**await AccountMonths(self._mongo).rebuild(month, dry_run=dry_run))

    async def _correct(self, lacking: Any, grain: Grain, *, dry_run: bool) -> Sums:
        """Add what rows lack. Return what the rows of all tenants and this grain lack."""
        found: dict[RowKey, dict[str, int]] = {}

        async def correct(session: AsyncClientSession | None) -> None:
            rows = {key: {n: v for n, v in sums.items() if v} for key, sums in (await lacking(session)).items()}
            found.clear()
            found.update({key: sums for key, sums in rows.items() if sums})
            if found and not dry_run:
                await self._rollups.bulk_write(rollup_updates(found, CORRECTED), session=session, ordered=False)

        async with translated():
            with pymongo.timeout(_PATIENCE_S):
                if not await self._mongo.has_transactions():
                    await correct(None)
                else:
                    async with self._mongo.writing_session() as session:
                        await session.with_transaction(
                            correct, read_concern=ReadConcern("snapshot"), write_concern=WRITE
                        )
        total: Counter[str] = Counter()
        for (its_grain, _, tenant), sums in found.items():
            if its_grain is grain and tenant is not None:
                total.update({name: sums.get(name, 0) for name in SUM_NAMES})
        return Sums(**total)

    async def _entries(self, date: str, session: AsyncClientSession | None) -> AsyncIterator[list[Entry]]:
        """Yield the entries of a date, of the tenants' or of UTC, that are in the rollups."""
        begin = datetime.combine(Date.fromisoformat(date), time(), UTC)
        admitted = {"$gte": begin - _DAY, "$lt": begin + 2 * _DAY}
        found = self._ledger.find({"admitted_at": admitted, ROLLED: 1}, session=session, batch_size=_AT_ONCE)
        while batch := await found.to_list(_AT_ONCE):
            yield readable_entries(batch)

    async def _take_rows(
        self,
        wanted: dict[RowKey, Counter[str]],
        grain: Grain,
        first: str,
        last: str,
        session: AsyncClientSession | None,
    ) -> None:
        """Take off what the rows of some periods have."""
        for name in (grain.value, grain_name(grain, None)):
            found = self._rollups.find({"grain": name, "at": {"$gte": first, "$lte": last}}, session=session)
            async for row in found:
                key = (grain, str(row["at"]), row["tenant_id"])
                wanted.setdefault(key, Counter()).subtract(dict(_flat(row)))


def _flat(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the sums of a row by the names of their fields. What is no whole number counts as 0."""
    found: list[tuple[str, Any]] = [(name, row.get(name)) for name in SUM_NAMES]
    for kind in ("models", "endpoints"):
        named = row.get(kind)
        for name, sums in named.items() if isinstance(named, dict) else ():
            found += [(f"{kind}.{name}.{each}", sums.get(each)) for each in SUM_NAMES if isinstance(sums, dict)]
    return [(name, value) for name, value in found if isinstance(value, int) and not isinstance(value, bool)]
