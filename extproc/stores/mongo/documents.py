"""The stored form of the ledger and of daily usage: entry <-> document, entries -> increments."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, date, datetime, time, timedelta
from math import isfinite
from typing import Any

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Charge, Entry
from extproc.core.quota.reservation import ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.ports.ledger import DailyUsage, UsageFilter

DayKey = tuple[str, str, str]  # serviceAccount, clientIP, date: the unique key of daily usage
_USAGE = tuple(field.name for field in fields(Usage))
_OK = range(200, 300)
DAY_FIELDS = ("serviceAccount", "clientIP", "date")
SUMS = ("usage", "input", "output", "cached", "requests", "denied", "estimated", "price")


def entry_document(entry: Entry, *, summed: bool = True) -> dict[str, Any]:
    """The ledger document; its `_id` is the reservation id, which is what makes writing it repeatable.

    One whose charges are not `summed` up per bucket says until when they count, so that they are found.
    """
    usage = entry.usage
    return {
        "_id": entry.id,
        "tenant_id": entry.identity.tenant,
        "serviceAccount": entry.identity.service_account,
        "clientIP": entry.identity.client_ip,
        "date": entry.date,
        "endpoint": entry.endpoint,
        "model": entry.model,
        "stream": entry.stream,
        "state": entry.outcome.value,
        "reason": entry.reason,
        "held": entry.held,
        "charge": entry.charge,
        "usage": {part: getattr(usage, part) for part in _USAGE},
        "status": entry.status,
        "request_id": entry.request_id,
        "cost": {"prompt": entry.cost.prompt, "output": entry.cost.output},
        **({"shadow": list(entry.shadow)} if entry.shadow else {}),
        **({"price": entry.price} if entry.price else {}),
        **_charges(entry.charges, summed=summed),
        "admitted_at": entry.admitted_at,
        "ended_at": entry.ended_at,
    }


def document_entry(document: dict[str, Any]) -> Entry:
    """The entry of a document that `entry_document` made, or an earlier version of it."""
    cost = document.get("cost") or {"prompt": 0, "output": document["held"]}
    return Entry(
        id=ReservationId(document["_id"]),
        request_id=document["request_id"],
        identity=Identity(
            TenantId(document["tenant_id"]),
            ServiceAccount(document["serviceAccount"]),
            ClientIP(document["clientIP"]),
        ),
        date=document["date"],
        endpoint=document["endpoint"],
        model=document["model"],
        stream=document["stream"],
        outcome=Outcome(document["state"]),
        reason=document["reason"],
        held=document["held"],
        charge=document["charge"],
        usage=Usage(**{part: document["usage"].get(part, 0) for part in _USAGE}),
        status=document["status"],
        admitted_at=document["admitted_at"],
        ended_at=document["ended_at"],
        cost=Cost(cost["prompt"], cost["output"]),
        shadow=tuple(document.get("shadow", ())),
        price=document.get("price", 0),
        charges=tuple(Charge(each["k"], each["u"], each["n"]) for each in document.get("charges", ())),
    )


def readable_entries(documents: Iterable[dict[str, Any]]) -> list[Entry]:
    """The entries of documents; one that is none (somebody else wrote it) is left out."""
    entries: list[Entry] = []
    for document in documents:
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            entries.append(document_entry(document))
    return entries


def _charges(charges: Sequence[Charge], *, summed: bool) -> dict[str, Any]:
    if not charges:
        return {}
    stored = {"charges": [{"k": each.key, "u": each.until, "n": each.amount} for each in charges]}
    return stored if summed else stored | {"counts_until": max(each.until for each in charges)}


def bucket_sums(entries: Sequence[Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    """What entries add to buckets: (tenant, key) -> (amount, end of the window)."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in entries:
        for charge in entry.charges:
            bucket = (entry.identity.tenant, charge.key)
            amount, until = sums.get(bucket, (0, 0))
            sums[bucket] = (amount + charge.amount, max(until, charge.until))
    return sums


def day_key(entry: Entry) -> DayKey:
    return (entry.identity.service_account, entry.identity.client_ip, entry.date)


class ModelNames:
    """Which models have a sum of their own in a date's daily usage; the ones after the first `most` share one.

    A request names its model, and not every server minds: without a bound, somebody's made-up names would let a
    document grow until it can't be written. The ledger has every name.
    """

    OTHER = "(other)"
    _DATES = 8  # more than there are dates at one instant in all time zones, and some for entries that come late

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._names: dict[str, set[str]] = {}

    def field(self, date: str, model: str) -> str:
        """The name of the model's field."""
        names = self._names.setdefault(date, set())
        if len(self._names) > self._DATES:
            del self._names[min(self._names)]
        if model not in names:
            if len(names) >= self._most:
                return self.OTHER
            names.add(model)
        return _field_name(model)


def increments(entries: Sequence[Entry], models: ModelNames) -> dict[DayKey, tuple[str, dict[str, int]]]:
    """What entries add to daily usage: for each day its tenant and the sums, per model too."""
    days: dict[DayKey, tuple[str, Counter[str]]] = {}
    for entry in entries:
        _, sums = days.setdefault(day_key(entry), (entry.identity.tenant, Counter()))
        if entry.outcome is Outcome.DENIED:
            sums["denied"] += 1
            continue
        sums["usage"] += entry.charge
        sums["input"] += entry.usage.input
        sums["output"] += entry.usage.output
        sums["cached"] += entry.usage.cached
        sums["requests"] += 1
        sums["price"] += entry.price
        sums["estimated"] += entry.outcome is Outcome.ESTIMATED
        if entry.charge and entry.status in _OK:  # what the upstream refused has no model
            sums[f"models.{models.field(entry.date, entry.model)}"] += entry.charge
    return {key: (tenant, {"usage": 0} | dict(sums)) for key, (tenant, sums) in days.items()}


def daily_usage(document: dict[str, Any]) -> DailyUsage:
    """A daily document, the talk's short form (no more than `usage`) included."""
    return DailyUsage(
        tenant=str(document.get("tenant_id", "")),
        service_account=str(document.get("serviceAccount", "")),
        client_ip=str(document.get("clientIP", "")),
        date=str(document.get("date", "")),
        **{name: _tokens(document.get(name)) for name in SUMS},
    )


def query(wanted: UsageFilter) -> dict[str, Any]:
    """The filter as a query. Values only ever stand behind `$eq`: no name can smuggle in an operator."""
    fields = {
        "tenant_id": wanted.tenant,
        "serviceAccount": wanted.service_account,
        "clientIP": wanted.client_ip,
    }
    result: dict[str, Any] = {name: {"$eq": value} for name, value in fields.items() if value is not None}
    dates = {"$gte": wanted.since, "$lte": wanted.until}
    if bounds := {operator: value for operator, value in dates.items() if value is not None}:
        result["date"] = bounds
    return result


def admission_query(wanted: UsageFilter) -> dict[str, Any]:
    """The filter as a query that an index on `admitted_at` serves.

    A date is some tenant's: by UTC it begins up to 14 hours earlier and ends up to 12 hours later.
    """
    result = query(wanted)
    instants: dict[str, datetime] = {}
    if wanted.since is not None:
        instants["$gte"] = _midnight(wanted.since) - timedelta(days=1)
    if wanted.until is not None:
        instants["$lt"] = _midnight(wanted.until) + timedelta(days=2)
    return result | ({"admitted_at": instants} if instants else {})


def _midnight(day: str) -> datetime:
    return datetime.combine(date.fromisoformat(day), time(), UTC)


def _tokens(value: object) -> int:
    """A stored sum; the legacy shell writes doubles. What is no number counts as nothing."""
    return int(value) if isinstance(value, (int, float)) and isfinite(value) else 0


def _field_name(model: str) -> str:
    """A model's name as a field's name: dots and dollars mean something there, and it can't be empty."""
    if not model:
        return "(none)"
    return model.replace("%", "%25").replace(".", "%2E").replace("$", "%24").replace("\0", "%00")
