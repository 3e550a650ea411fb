"""Keep rollups: sums of the ledger per tenant, and of all tenants, by hour, day and month, with models.

A row of `usage_rollups` is one grain, period, tenant (null: all tenants) and slot. The grains of all tenants have
names of their own (`all-day`): each query is a grain and a range of periods. A report adds the slots up. All
replicas that serve a tenant add to its rows, so each transaction writes in a slot of its own where it can, and in
another one if it fails. Slot 8 is of the job that adds the entries of earlier versions, slot 9 of corrections.

Every entry that is in the rollups has the mark `r`. A standalone server has no transactions: there entries are
written with the mark `unrolled`, and the job adds them afterwards.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.errors import PyMongoError

from extproc.core.quota.ledger import Entry
from extproc.ports.reports import OTHER, SUM_NAMES, Grain, values_of
from extproc.stores.mongo.client import ROLLUPS, Mongo, Named

STATE: Final = "usage_rollups"  # the document of `MIGRATIONS` about the entries that are added later

ROLLED: Final = "r"
UNROLLED: Final = "unrolled"

SLOTS: Final = 8
ADDED_LATER: Final = 8
CORRECTED: Final = 9

RowKey = tuple[Grain, str, str | None]  # grain, period, and tenant (None: all of them)
_HOUR_S: Final = 3600
_NO_NAME: Final = "(none)"
_OK: Final = range(200, 300)
_ESCAPES: Final = (("%", "%25"), (".", "%2E"), ("$", "%24"), ("\0", "%00"))


class RollupNames:
    """Select the models and endpoints with sums of their own in a period; all others share `OTHER`.

    Clients can send any model name. Names that an upstream confirmed have a bound of their own, so made-up ones
    displace none of them.
    """

    _PERIODS = 8  # more than the periods at one instant in all time zones, and some for late entries

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._known: dict[tuple[Grain, bool], dict[str, dict[str, str]]] = {}

    def field(self, grain: Grain, period: str, model: str, *, confirmed: bool) -> str:
        """Return the name of the field of a model."""
        periods = self._known.setdefault((grain, confirmed), {})
        names = periods.setdefault(period, {})
        if len(periods) > self._PERIODS:
            del periods[min(periods)]
        found = names.get(model)
        if found is None:
            if len(names) >= self._most:
                return OTHER
            found = names[model] = field_name(model)
        return found


class Slots:
    """Lend slots to the transactions of this process: the same one, as long as no transaction fails in it."""

    def __init__(self) -> None:
        self._first = random.randrange(SLOTS)
        self._busy: set[int] = set()

    @contextmanager
    def lent(self) -> Iterator[int]:
        """Lend a slot that no other transaction of this process is in, if there is one.

        After a failure another one is preferred: somebody else may use this one, or one of its rows may be broken.
        """
        order = [(self._first + step) % SLOTS for step in range(SLOTS)]
        slot = next((each for each in order if each not in self._busy), self._first)
        self._busy.add(slot)
        try:
            yield slot
        except PyMongoError:
            self._first = (slot + random.randrange(1, SLOTS)) % SLOTS
            raise
        finally:
            self._busy.discard(slot)


class RollupIndexes:
    """Make what the queries of rollups need."""

    _rollups = Named(ROLLUPS)

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def create(self) -> None:
        """Create missing indexes. Raises the driver's exceptions."""
        await self._rollups.create_index([("tenant_id", ASCENDING), ("grain", ASCENDING), ("at", DESCENDING)])
        await self._rollups.create_index([("grain", ASCENDING), ("at", DESCENDING)])


def rollup_sums(entries: Iterable[Entry], names: RollupNames) -> dict[RowKey, dict[str, int]]:
    """Return what entries add to each row: the row's sums, and those of each model and endpoint."""
    rows: dict[RowKey, dict[str, int]] = {}
    for kind, sums in _summed(entries).items():
        hour = f"{datetime.fromtimestamp(kind.hour * _HOUR_S, UTC):%Y-%m-%dT%H}"
        added = [(name, value) for name, value in zip(SUM_NAMES, sums, strict=True) if value]
        endpoint = f"endpoints.{field_name(kind.endpoint)}."
        for grain, period in ((Grain.HOUR, hour), (Grain.DAY, kind.date), (Grain.MONTH, kind.date[:7])):
            model = f"models.{names.field(grain, period, kind.model, confirmed=kind.confirmed)}."
            for tenant in (kind.tenant, None):
                row = rows.setdefault((grain, period, tenant), {})
                for name, value in added:
                    for field in (name, model + name, endpoint + name):
                        row[field] = row.get(field, 0) + value
    return {key: row for key, row in rows.items() if row}


class _Kind(NamedTuple):
    """Tell the entries of a batch apart as far as rollups do: a batch has few kinds."""

    tenant: str
    hour: float  # since the epoch
    date: str
    model: str
    confirmed: bool
    endpoint: str


def _summed(entries: Iterable[Entry]) -> dict[_Kind, list[int]]:
    """Sum the entries of each kind, in the order of `SUM_NAMES`."""
    kinds: dict[_Kind, list[int]] = {}
    for entry in entries:
        confirmed = entry.charge > 0 and entry.status in _OK
        hour = entry.admitted_at.timestamp() // _HOUR_S
        kind = _Kind(entry.identity.tenant, hour, entry.date, entry.model, confirmed, entry.endpoint)
        sums = kinds.get(kind)
        if sums is None:
            sums = kinds[kind] = [0] * len(SUM_NAMES)
        for place, value in enumerate(values_of(entry)):
            sums[place] += value
    return kinds


def row_id(key: RowKey, slot: int) -> str:
    """Return the `_id` of a row. Only the tenant, which stands last, can have any characters."""
    grain, period, tenant = key
    return f"{grain_name(grain, tenant)}|{period}|{slot}|{tenant or ''}"


def row_fields(key: RowKey, slot: int) -> dict[str, Any]:
    """Return the fields of a row that never change."""
    grain, period, tenant = key
    return {"grain": grain_name(grain, tenant), "at": period, "tenant_id": tenant, "slot": slot}


def grain_name(grain: Grain, tenant: str | None) -> str:
    """Return the grain of a tenant's row, or of a row of all tenants (None)."""
    return grain.value if tenant is not None else f"all-{grain.value}"


def rollup_updates(rows: Mapping[RowKey, Mapping[str, int]], slot: int) -> list[UpdateOne]:
    """Return the updates that add to rows, in the same order for all writers."""
    return [
        UpdateOne(
            {"_id": row_id(key, slot)},
            {"$inc": dict(rows[key]), "$setOnInsert": row_fields(key, slot)},
            upsert=True,
        )
        for key in sorted(rows, key=lambda key: (key[0], key[1], key[2] or ""))
    ]


def field_name(name: str) -> str:
    """Return the name as a field name that no other name has: escaped, and never empty."""
    if not name:
        return _NO_NAME
    for plain, escaped in _ESCAPES:
        name = name.replace(plain, escaped)
    return f"%28{name[1:]}" if name in (_NO_NAME, OTHER) else name


def name_of(field: str) -> str:
    """Return the name of a field name; that of the shared row as it is."""
    if field == _NO_NAME:
        return ""
    field = field.replace("%28", "(")
    for plain, escaped in reversed(_ESCAPES):
        field = field.replace(escaped, plain)
    return field
