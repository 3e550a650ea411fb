"""Find the largest service accounts of all tenants without reading all of them.

The months of service accounts can be read from the largest on. Of each month that the dates touch, and each slot,
the rows with at least a share of the total are read: as many at most as the share says. No other account has more
than these bounds together, and those that were read have at most what their rows and the bounds add up to.
Accounts are summed exactly in the order of what they have at most, until no other one can be among the largest.
If that takes too many, because all accounts use about the same, nothing is found: all of them have to be summed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from extproc.ports.reports import Grain, Measure, Sums, UsageRow
from extproc.stores.mongo.client import ACCOUNT_MONTHS, ROLLUPS, Mongo, Named
from extproc.stores.mongo.report_spans import Span
from extproc.stores.mongo.rollups import CORRECTED, grain_name

_SHARES: Final = (256, 2048, 16384)
_MOST: Final = 500  # accounts that are summed
_AT_ONCE: Final = 4
# Of so few days, all accounts are summed sooner than those that may be the largest of the whole month.
_FEW_DAYS: Final = 3

Account = tuple[str, str]  # tenant and name
SumOf = Callable[[str, str], Awaitable[Sums]]


@dataclass(frozen=True, slots=True)
class _Listed:
    """Hold rows of a month and slot: all that have at least `least`, and how much each of them has."""

    least: int
    rows: Mapping[Account, int]


class TopAccounts:
    """Find the largest service accounts."""

    _accounts = Named(ACCOUNT_MONTHS)
    _rollups = Named(ROLLUPS)

    def __init__(self, mongo: Mongo, sum_of: SumOf) -> None:
        """Sum a service account over the dates by `sum_of`, which takes its tenant and its name."""
        self._mongo = mongo
        self._sum_of = sum_of

    async def largest(self, span: Span, measure: Measure, at_most: int) -> list[UsageRow] | None:
        """Return the rows, the largest first; None if all accounts have to be summed.

        Raises the driver's exceptions.
        """
        if (span.last - span.first).days < _FEW_DAYS:
            return None
        totals = await self._totals(span, measure)
        found: dict[Account, Sums] = {}
        for share in _SHARES:
            lists = [await self._listed(at, slot, measure, total, share) for (at, slot), total in totals.items()]
            unseen = sum(each.least - 1 for each in lists)
            upper = _upper_bounds(lists, unseen)
            if not await self._sum_largest(upper, found, measure, at_most):
                return None
            rows = _in_order(found, measure)[:at_most]
            if len(rows) == at_most and getattr(rows[-1].sums, measure) > unseen:
                return rows
            if not unseen:
                return None  # others have nothing, but belong to the rows
        return None

    async def _totals(self, span: Span, measure: Measure) -> dict[tuple[str, int], int]:
        """Return the total of each month and slot that may have rows. Sums that were made again have their own."""
        months = {"$gte": f"{span.first:%Y-%m}", "$lte": f"{span.last:%Y-%m}"}
        wanted = {"grain": grain_name(Grain.MONTH, None), "at": months}
        totals: defaultdict[tuple[str, int], int] = defaultdict(int)
        async for row in self._rollups.find(wanted, {"at": 1, "slot": 1, measure.value: 1}):
            total = row.get(measure.value)
            total = total if isinstance(total, int) else 0
            totals[row["at"], row["slot"]] += total
            totals[row["at"], CORRECTED] += total
        return dict(totals)

    async def _listed(self, at: str, slot: int, measure: Measure, total: int, share: int) -> _Listed:
        least = max(1, -(-total // share))
        wanted = {"at": at, "slot": slot, measure.value: {"$gte": least}}
        fields = {"_id": 0, "tenant_id": 1, "serviceAccount": 1, measure.value: 1}
        rows = {
            (str(row["tenant_id"]), str(row["serviceAccount"])): int(row[measure.value])
            async for row in self._accounts.find(wanted, fields)
        }
        return _Listed(least, rows)

    async def _sum_largest(
        self, upper: Sequence[tuple[int, Account]], found: dict[Account, Sums], measure: Measure, at_most: int
    ) -> bool:
        """Sum accounts until no other one that was read can be among the largest. Return False for too many."""
        for start in range(0, len(upper), _AT_ONCE):
            some = upper[start : start + _AT_ONCE]
            known = sorted((getattr(sums, measure) for sums in found.values()), reverse=True)
            if len(known) >= at_most and some[0][0] < known[at_most - 1]:
                return True
            missing = [account for _, account in some if account not in found]
            if len(found) + len(missing) > _MOST:
                return False
            found.update(
                zip(missing, await asyncio.gather(*(self._sum_of(*each) for each in missing)), strict=True)
            )
        return True


def _upper_bounds(lists: Sequence[_Listed], unseen: int) -> list[tuple[int, Account]]:
    """Return what each account that was read has at most, the largest first."""
    above: defaultdict[Account, int] = defaultdict(int)
    for each in lists:
        for account, value in each.rows.items():
            above[account] += value - (each.least - 1)
    return sorted(((unseen + more, account) for account, more in above.items()), reverse=True)


def _in_order(found: Mapping[Account, Sums], measure: Measure) -> list[UsageRow]:
    rows = [UsageRow(None, name, tenant, sums) for (tenant, name), sums in found.items()]
    return sorted(rows, key=lambda row: (-getattr(row.sums, measure), row.name, row.tenant or ""))
