"""Convert ledger entries to documents and back, and compute the increments of daily usage."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from math import isfinite
from operator import attrgetter
from typing import Any

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Charge, Entry, RefusedBy
from extproc.core.quota.reservation import ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.ports.ledger import DailyUsage, UsageFilter

DayKey = tuple[str, str, str, str]  # the values of DAY_FIELDS: the unique key of daily usage
_USAGE = Usage.__struct_fields__
_usage_of = attrgetter(*_USAGE)
_OK = range(200, 300)
DAY_FIELDS = ("tenant_id", "serviceAccount", "clientIP", "date")
FORMER_DAY_FIELDS = DAY_FIELDS[1:]  # the unique key in version 0.1
SHARED = "shared"  # marks a row that was added to for another tenant than its own
_OF_REQUESTS = {"input": 0, "output": 0, "cached": 0, "requests": 0, "price": 0, "estimated": 0}
SUMS = ("usage", "input", "output", "cached", "requests", "denied", "estimated", "price")


def entry_document(entry: Entry, *, summed: bool = True) -> dict[str, Any]:
    """Return the ledger document. The `_id` is the reservation id, so writing the document again changes nothing.

    If its charges are not `summed` per bucket, the document says until when they count, so that a query can find
    them.
    """
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
        "usage": dict(zip(_USAGE, _usage_of(entry.usage), strict=True)),
        "status": entry.status,
        "request_id": entry.request_id,
        "cost": {"prompt": entry.cost.prompt, "output": entry.cost.output},
        **({"shadow": list(entry.shadow)} if entry.shadow else {}),
        **({"price": entry.price} if entry.price else {}),
        **({"count": entry.count} if entry.count > 1 else {}),
        **_charges(entry.charges, summed=summed),
        **({"refused_by": _refused_by(entry.refused_by)} if entry.refused_by is not None else {}),
        "admitted_at": entry.admitted_at,
        "ended_at": entry.ended_at,
    }


def document_entry(document: dict[str, Any]) -> Entry:
    """Return the entry of a document that this or an earlier version of `entry_document` made."""
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
        charges=tuple(map(_charge, document.get("charges", ()))),
        count=_count(document.get("count", 1)),
        refused_by=_refusal(document.get("refused_by")),
    )


def readable_entries(documents: Iterable[dict[str, Any]]) -> list[Entry]:
    """Return the entries of documents. Leaves out documents of other programs that are no entries."""
    entries: list[Entry] = []
    for document in documents:
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            entries.append(document_entry(document))
    return entries


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"no count of requests: {value!r}")
    return value


def _stored(charge: Charge) -> dict[str, Any]:
    stored = {"k": charge.key, "u": charge.until, "n": charge.amount}
    return stored if charge.limit is None else stored | {"l": charge.limit}


def _charge(stored: dict[str, Any]) -> Charge:
    return Charge(stored["k"], stored["u"], stored["n"], stored.get("l"))


_REFUSAL = {"k": "key", "u": "until", "l": "limit", "used": "used", "held": "held", "needed": "needed"}


def _refused_by(refusal: RefusedBy) -> dict[str, Any]:
    return {short: getattr(refusal, name) for short, name in _REFUSAL.items()}


def _refusal(stored: dict[str, Any] | None) -> RefusedBy | None:
    return RefusedBy(**{name: stored[short] for short, name in _REFUSAL.items()}) if stored else None


def _charges(charges: Sequence[Charge], *, summed: bool) -> dict[str, Any]:
    if not charges:
        return {}
    stored = {"charges": [_stored(each) for each in charges]}
    return stored if summed else stored | {"counts_until": max(each.until for each in charges)}


def bucket_sums(entries: Sequence[Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    """Sum the charges of entries per bucket: (tenant, key) -> (amount, end of the window)."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in entries:
        for charge in entry.charges:
            bucket = (entry.identity.tenant, charge.key)
            amount, until = sums.get(bucket, (0, 0))
            sums[bucket] = (amount + charge.amount, max(until, charge.until))
    return sums


def day_key(entry: Entry) -> DayKey:
    who = entry.identity
    return (who.tenant, who.service_account, who.client_ip, entry.date)


def day_filter(key: DayKey) -> dict[str, Any]:
    """Return the filter of a row. All values are text, so a name can't be an operator."""
    return dict(zip(DAY_FIELDS, key, strict=True))


def former_filter(key: DayKey) -> dict[str, Any]:
    """Return the filter of a row by the key of version 0.1, which has no tenant."""
    return dict(zip(FORMER_DAY_FIELDS, key[1:], strict=True))


class ModelNames:
    """Select the models with a sum of their own in a date's daily usage; all after the first `most` share one.

    Clients can send any model name. Without a bound, made-up names would let a document grow until it can't be
    written. The ledger has every name.
    """

    OTHER = "(other)"
    _DATES = 8  # more than the dates at one instant in all time zones, and some for late entries

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._fields: dict[str, dict[str, str]] = {}  # by date and model

    def field(self, date: str, model: str) -> str:
        """Return the name of the model's field."""
        known = self._fields.setdefault(date, {})
        if len(self._fields) > self._DATES:
            del self._fields[min(self._fields)]
        field = known.get(model)
        if field is None:
            if len(known) >= self._most:
                return self.OTHER
            field = known[model] = _field_name(model)
        return field


def increments(entries: Iterable[Entry], models: ModelNames) -> dict[DayKey, dict[str, int]]:
    """Return the increments of daily usage: the sums of each row, per model too."""
    days: dict[DayKey, dict[str, int]] = {}
    for entry in entries:
        sums = days.setdefault(day_key(entry), {"usage": 0})
        if entry.outcome is Outcome.DENIED:
            sums["denied"] = sums.get("denied", 0) + entry.count
            continue
        if "requests" not in sums:
            sums |= _OF_REQUESTS
        usage, charge = entry.usage, entry.charge
        sums["usage"] += charge
        sums["input"] += usage.input
        sums["output"] += usage.output
        sums["cached"] += usage.cached
        sums["requests"] += 1
        sums["price"] += entry.price
        sums["estimated"] += entry.outcome is Outcome.ESTIMATED
        if charge and entry.status in _OK:  # a request that the upstream refused counts for no model
            field = f"models.{models.field(entry.date, entry.model)}"
            sums[field] = sums.get(field, 0) + charge
    return days


def total(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sum of several rows' sums."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update(row)
    return {"usage": 0} | dict(sums)


def daily_usage(document: dict[str, Any], tenant_of: Callable[[str], str | None]) -> DailyUsage:
    """Read a daily document. The short form with `usage` only is accepted too: its account leads to its tenant."""
    tenant = document.get("tenant_id")
    return DailyUsage(
        tenant=str(tenant if tenant is not None else tenant_of(str(document.get("serviceAccount", ""))) or ""),
        service_account=str(document.get("serviceAccount", "")),
        client_ip=str(document.get("clientIP", "")),
        date=str(document.get("date", "")),
        **{name: _tokens(document.get(name)) for name in SUMS},
    )


def query(wanted: UsageFilter) -> dict[str, Any]:
    """Return the filter as a query. Values only stand behind `$eq`, so a name can't inject an operator."""
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
    """Return the filter as a query that an index on `admitted_at` serves.

    A date is a tenant's local date: in UTC it begins up to 14 hours earlier and ends up to 12 hours later.
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
    """Return a stored sum. The legacy shell writes doubles. A value that is no number counts as 0."""
    return int(value) if isinstance(value, (int, float)) and isfinite(value) else 0


def _field_name(model: str) -> str:
    """Return a model's name as a field name: dots and dollars are escaped, and it is never empty."""
    if not model:
        return "(none)"
    return model.replace("%", "%25").replace(".", "%2E").replace("$", "%24").replace("\0", "%00")
