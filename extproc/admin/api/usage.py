"""Serve reports of usage."""

from typing import Annotated

from msgspec import Meta, Struct

from extproc.admin.access import Role
from extproc.admin.api.operation import MAX_ROWS, Call, Operation, Parameters, Reply, Tenancy
from extproc.admin.service import By, Ranked
from extproc.core.request.identity import MAX_NAME_CHARS
from extproc.ports.ledger import DailyUsage, UsageFilter

_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Date = Annotated[str, Meta(pattern=_DATE, description="YYYY-MM-DD, inclusive.")]


class WhichUsage(Parameters, kw_only=True):
    tenant: Name | None = None
    service_account: Name | None = None
    client_ip: Annotated[str, Meta(max_length=64)] | None = None
    since: Date | None = None
    until: Date | None = None
    at_most: Annotated[int, Meta(ge=1, le=MAX_ROWS, description="Rows at most.")] = 100


class TopUsage(WhichUsage, kw_only=True):
    by: Annotated[By, Meta(description="What is ranked.")] = By.SERVICE_ACCOUNT


class Days(Struct):
    """Hold the usage of days, newest first."""

    rows: list[DailyUsage]


class Ranking(Struct):
    """Hold the largest users, the largest first."""

    rows: list[Ranked]


async def daily(call: Call) -> Reply:
    return Reply(Days(await call.services.admin.daily(_filter(call.query), call.query.at_most)))


async def top(call: Call) -> Reply:
    query: TopUsage = call.query
    return Reply(Ranking(await call.services.admin.top(_filter(query), query.by, query.at_most)))


def _filter(query: WhichUsage) -> UsageFilter:
    return UsageFilter(query.tenant, query.service_account, query.client_ip, query.since, query.until)


OPERATIONS = (
    Operation(
        "dailyUsage", "GET", "/v1/usage/daily", "Show usage by service account, client IP and date.",
        Role.VIEWER, Tenancy.QUERY, daily, Days, WhichUsage, tag="usage",
    ),
    Operation(
        "topUsage", "GET", "/v1/usage/top", "Rank service accounts, client IPs or tenants by their usage.",
        Role.VIEWER, Tenancy.QUERY, top, Ranking, TopUsage, tag="usage",
    ),
)  # fmt: skip
