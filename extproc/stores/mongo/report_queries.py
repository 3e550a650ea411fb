"""Build what finds the rows of a report: a first stage that one index answers, and the rest."""

from collections.abc import Mapping
from typing import Any, Final

from extproc.ports.reports import By, Grain, Place, ReportFilter
from extproc.stores.mongo.report_spans import DAY, Span, midnight
from extproc.stores.mongo.rollups import grain_name

Stage = Mapping[str, Any]

CALLERS: Final = (By.SERVICE_ACCOUNT, By.CLIENT_IP)
SUBJECTS: Final = (By.MODEL, By.ENDPOINT)


def in_days(by: By | None, wanted: ReportFilter, grain: Grain | None) -> bool:
    """Return whether daily usage has the sums."""
    subjects = by in SUBJECTS or wanted.model is not None or wanted.endpoint is not None
    callers = by in CALLERS or wanted.service_account is not None or wanted.client_ip is not None
    return grain is not Grain.HOUR and not subjects and callers


def in_account_months(by: By | None, wanted: ReportFilter, grain: Grain | None) -> bool:
    """Return whether the months of service accounts have the sums of whole months."""
    return in_days(by, wanted, grain) and by is not By.CLIENT_IP and wanted.client_ip is None


def in_rollups(by: By | None, wanted: ReportFilter, span: Span, grain: Grain) -> dict[str, Any]:
    first, last = span.first.isoformat(), span.last.isoformat()
    match grain:
        case Grain.HOUR:
            first, last = f"{first}T00", f"{last}T23"
        case Grain.MONTH:
            first, last = first[:7], last[:7]
    at = {"at": {"$gte": first, "$lte": last}}
    if wanted.tenant is not None:
        return {"tenant_id": {"$eq": wanted.tenant}, "grain": grain.value} | at
    return {"grain": grain.value if by is By.TENANT else grain_name(grain, None)} | at


def in_daily(wanted: ReportFilter, span: Span) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an index finds, and the rest."""
    dates = {"date": {"$gte": span.first.isoformat(), "$lte": span.last.isoformat()}}
    callers = _callers(wanted)
    for name in ("serviceAccount", "clientIP", "tenant_id"):
        if name in callers:
            return {name: callers.pop(name)} | dates, callers
    return dates, {}


def in_accounts(wanted: ReportFilter, span: Span) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an index finds, and the rest."""
    months = {"at": {"$gte": f"{span.first:%Y-%m}", "$lte": f"{span.last:%Y-%m}"}}
    callers = _callers(wanted)
    for name in ("serviceAccount", "tenant_id"):
        if name in callers:
            return {name: callers.pop(name)} | months, callers
    return months, {}


def in_ledger(wanted: ReportFilter, span: Span, grain: Grain | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an index finds, and the rest. A tenant's date begins and ends up to a day apart from UTC's."""
    begin, end = midnight(span.first), midnight(span.last + DAY)
    rest = _callers(wanted)
    subjects = (("model", wanted.model), ("endpoint", wanted.endpoint))
    rest |= {name: {"$eq": value} for name, value in subjects if value is not None}
    if grain is Grain.HOUR:
        admitted = {"$gte": begin, "$lt": end}
    else:
        admitted = {"$gte": begin - DAY, "$lt": end + DAY}
        rest["date"] = {"$gte": span.first.isoformat(), "$lte": span.last.isoformat()}
    if "serviceAccount" in rest:
        return {"serviceAccount": rest.pop("serviceAccount")}, rest | {"admitted_at": admitted}
    if "tenant_id" in rest:
        ended = {"ended_at": {"$gte": admitted["$gte"]}}  # no request ends before it is admitted
        return {"tenant_id": rest.pop("tenant_id")} | ended, rest | {"admitted_at": admitted}
    return {"admitted_at": admitted}, rest


def _callers(wanted: ReportFilter) -> dict[str, Any]:
    """Return the filter's names. They only stand behind `$eq`, so a name can't inject an operator."""
    names = {
        "serviceAccount": wanted.service_account,
        "clientIP": wanted.client_ip,
        "tenant_id": wanted.tenant,
    }
    return {name: {"$eq": value} for name, value in names.items() if value is not None}


def first_stages(*matches: Mapping[str, Any]) -> list[Stage]:
    return [{"$match": each} for each in matches if each]


def behind(after: Place) -> list[dict[str, Any]]:
    same = {"_id.p": {"$eq": after.period}}
    place = [{"_id.p": {"$lt": after.period}}, same | {"_id.n": {"$gt": after.name}}]
    return (
        [*place, same | {"_id.n": {"$eq": after.name}, "_id.t": {"$gt": after.tenant}}] if after.tenant else place
    )


def is_behind(place: Place, after: Place) -> bool:
    return place.period < after.period or (place.period == after.period and place.name > after.name)
