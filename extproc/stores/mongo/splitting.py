"""Split rows of daily usage that several tenants share: compute each tenant's row from the ledger."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from extproc.core.quota.settlement import Outcome
from extproc.stores.mongo.documents import SUMS, ModelNames

Sums = dict[str, int]  # of one row: by the names of SUMS, and by models.<model>
_MODELS = "models."
_OTHER = _MODELS + ModelNames.OTHER
_MOST_MODELS = 100


def row_sums(row: Mapping[str, Any]) -> Sums:
    """Return the sums of a row. A value that can't be added to counts as 0: the ledger's takes its place."""
    models = row.get("models")
    named = {_MODELS + model: value for model, value in models.items()} if isinstance(models, dict) else {}
    given = {name: row[name] for name in SUMS if name in row} | named
    return {name: _whole(value) for name, value in given.items()}


def row_fields(sums: Mapping[str, int]) -> dict[str, Any]:
    """Return the sums as the fields of a row."""
    models = {name.removeprefix(_MODELS): n for name, n in sums.items() if name.startswith(_MODELS) and n}
    fields: dict[str, Any] = {name: sums[name] for name in SUMS if name in sums}
    return fields | ({"models": models} if models else {})


def sums_of(day: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pipeline that sums the ledger's entries of a filter, for `ledger_sums`."""
    delivered = {"$and": [{"$gte": ["$status", 200]}, {"$lt": ["$status", 300]}]}
    group = {"tenant": "$tenant_id", "state": "$state", "model": "$model", "delivered": delivered}
    parts = {part: {"$sum": f"$usage.{part}"} for part in ("input", "output", "cached")}
    return [
        {"$match": day},  # by itself: some servers use an index for plain equality only
        {"$match": {"state": {"$in": [outcome.value for outcome in Outcome]}}},
        {
            "$group": {
                "_id": group,
                "n": {"$sum": {"$ifNull": ["$count", 1]}},
                "usage": {"$sum": "$charge"},
                "price": {"$sum": "$price"},
                **parts,
            }
        },
    ]


def ledger_sums(groups: Iterable[Mapping[str, Any]]) -> dict[str, Sums]:
    """Return the sums of each tenant's row, as `increments` would make them from the same entries."""
    tenants: dict[str, Counter[str]] = {}
    for group in groups:
        who = group["_id"]
        if not isinstance(who.get("tenant"), str):
            continue  # another program wrote these
        sums = tenants.setdefault(who["tenant"], Counter({"usage": 0}))
        if who["state"] == Outcome.DENIED.value:
            sums["denied"] += group["n"]
            continue
        for name in ("usage", "input", "output", "cached", "price"):
            sums[name] += _whole(group[name])
        sums["requests"] += group["n"]
        sums["estimated"] += group["n"] if who["state"] == Outcome.ESTIMATED.value else 0
        if group["usage"] and who["delivered"]:
            model = ModelNames().field("", str(who.get("model", "")))
            bounded = sum(name.startswith(_MODELS) for name in sums) < _MOST_MODELS
            known = _MODELS + model in sums
            sums[_MODELS + model if known or bounded else _OTHER] += _whole(group["usage"])
    return {tenant: dict(sums) for tenant, sums in tenants.items()}


def split(rows: Mapping[str, Sums], ledger: Mapping[str, Sums]) -> dict[str, Sums]:
    """Return the rows, by tenant, so that none lacks usage that the ledger has for its tenant.

    The usage that a row lacks is taken from rows that have more than the ledger has for their tenants. The sum of
    all rows stays, unless all rows together have less than the ledger.
    """
    after = {tenant: dict(rows.get(tenant, {})) for tenant in {**rows, **ledger}}
    names = dict.fromkeys(name for sums in (*rows.values(), *ledger.values()) for name in sums)
    without = 0
    for name in names:
        lacking = _fill(after, ledger, name)
        missing = _take(after, ledger, name, lacking)
        without += missing if name.startswith(_MODELS) else 0
    # A model that one row counts by its name can be among the other models of the row that had its usage.
    _take(after, ledger, _OTHER, without)
    return after


def _fill(after: Mapping[str, Sums], ledger: Mapping[str, Sums], name: str) -> int:
    """Raise the sums that lack something to the ledger's. Return how much they lacked."""
    lacking = 0
    for tenant, sums in ledger.items():
        if (missing := sums.get(name, 0) - after[tenant].get(name, 0)) > 0:
            after[tenant][name] = sums[name]
            lacking += missing
    return lacking


def _take(after: Mapping[str, Sums], ledger: Mapping[str, Sums], name: str, amount: int) -> int:
    """Take an amount from what rows have beyond the ledger, the largest first. Return the rest."""

    def beyond(tenant: str) -> int:
        return after[tenant].get(name, 0) - ledger.get(tenant, {}).get(name, 0)

    for tenant in sorted(after, key=beyond, reverse=True):
        taken = max(0, min(amount, beyond(tenant)))
        if taken:
            after[tenant][name] -= taken
            amount -= taken
    return amount


def _whole(value: object) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return int(value) if number and abs(value) < 2**62 else 0  # type: ignore[call-overload, arg-type]
