"""Serve what helps to decide: which limits bind an identity now, and what proposed limits would have denied."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from msgspec import Meta, Struct

from extproc.admin import replay
from extproc.admin.access import Role
from extproc.admin.api.operation import Call, Operation, Parameters, Reply, Tenancy
from extproc.admin.api.parameters import Address, Date, Name
from extproc.admin.api.problems import Problem, invalid
from extproc.admin.api.services import ReplayBounds
from extproc.admin.errors import NotFoundError
from extproc.admin.explaining import MAX_TOKENS, Size, Verdict
from extproc.admin.request_story import RequestStory
from extproc.admin.service import Admin, checked_filter
from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.ledger import Entry
from extproc.core.quota.limits import Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import BucketState
from extproc.core.request.endpoints import Endpoint
from extproc.ports.documents import Document
from extproc.ports.ledger import UsageFilter


class Whom(Parameters, kw_only=True):
    service_account: Name
    client_ip: Annotated[Address, Meta(description="Without it, limits by client IP have no counts.")] | None = (
        None
    )
    model: Name | None = None
    endpoint: Endpoint | None = None
    tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS, description="Prompt, for a verdict.")] | None = None
    output_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS, description="Its output.")] = 0


class CountedLimit(Struct):
    """Describe a limit and its count now; null where it depends on what was not named. `amount` has no top-ups."""

    scope: Scope
    window: Window
    amount: int
    topped_up: int
    unit: Unit
    mode: Mode
    shadow: bool
    model: str | None
    endpoint: list[Endpoint]
    used: int | None
    held: int | None
    remaining: int | None
    resets_at: datetime | None


class ExplainedLimits(Struct):
    """Describe what binds an identity now. `limits_of_its_own`: else the defaults bind the tenant.

    `verdict` is there if tokens were given; `denials` are the last ones, null if they could not be read in time.
    """

    tenant: str
    service_account: str
    client_ip: str
    limits_of_its_own: bool
    problem: str | None
    suspended: str | None
    on_store_failure: StoreFailure
    limits: list[CountedLimit]
    verdict: Verdict | None
    denials: list[RequestStory] | None


class WhatIf(Parameters, kw_only=True):
    tenant: Name | None = None
    since: Date | None = None
    until: Date | None = None
    top: Annotated[int, Meta(ge=1, le=1000, description="Denied callers at most.")] = 20


class ProposedLimits(Struct):
    """Propose limits: documents of tenants, and a default for all others."""

    tenants: list[dict[str, Any]] | None = None
    default: dict[str, Any] | None = None


class DeniedCaller(Struct):
    """Describe a caller that a proposed limit would have denied."""

    tenant: str
    service_account: str
    client_ip: str
    limit: str
    requests: int
    tokens: int
    first: datetime
    last: datetime


class SimulatedLimits(Struct):
    """Describe what proposed limits would have denied. Entries before `entries_gone_before` are deleted."""

    requests: int
    tokens: int
    denied: int
    denied_tokens: int
    newly_admitted: int
    newly_admitted_tokens: int
    denied_callers: list[DeniedCaller]
    more_denied_callers: int
    entries_gone_before: datetime | None


async def explain(call: Call) -> Reply:
    query: Whom = call.query
    explained = await call.services.explainer.explain(
        call.tenant,
        query.service_account,
        query.client_ip,
        model=query.model,
        endpoint=query.endpoint,
        size=Size(query.tokens, query.output_tokens) if query.tokens is not None else None,
    )
    found = explained.explanation
    identity = found.identity
    pairs = zip(found.insight.limits, found.topped_up, strict=True)
    return Reply(
        ExplainedLimits(
            identity.tenant,
            identity.service_account,
            identity.client_ip,
            found.known,
            found.problem,
            found.insight.suspended,
            found.on_store_failure,
            [_counted(limit, state, topped_up) for (limit, state), topped_up in pairs],
            explained.verdict,
            list(explained.denials) if explained.denials is not None else None,
        )
    )


def _counted(limit: Limit, state: BucketState | None, topped_up: int) -> CountedLimit:
    return CountedLimit(
        limit.scope, limit.window, limit.amount - topped_up, topped_up, limit.unit, limit.mode, limit.shadow,
        limit.model, list(limit.endpoints),
        state.count.used if state is not None else None,
        state.count.held if state is not None else None,
        state.remaining if state is not None else None,
        datetime.fromtimestamp(state.bucket.interval.end, UTC) if state is not None else None,
    )  # fmt: skip


async def simulate(call: Call) -> Reply:
    query: WhatIf = call.query
    services = call.services
    admin, bounds = services.admin, services.replay
    wanted = checked_filter(UsageFilter(query.tenant, None, None, query.since, query.until))
    proposal = replay.proposal_from(call.body, services.defaults)
    if services.replaying.locked():
        headers = {"retry-after": str(int(bounds.seconds))}
        detail = "another simulation runs: one at a time is enough for this process"
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "busy", detail, headers=headers)
    async with services.replaying:
        try:
            async with asyncio.timeout(bounds.seconds):
                proposal.keep(await _stored(admin, query.tenant))
                entries = _bounded(admin.replay(wanted), bounds)
                report = await replay.simulate(entries, proposal, services.models, lambda _: None)
        except TimeoutError:
            raise _too_much(f"in {bounds.seconds:g} s") from None
    rows = replay.ranked(report)
    return Reply(
        SimulatedLimits(
            report.requests,
            report.tokens,
            report.denied,
            report.denied_tokens,
            report.newly_admitted,
            report.newly_admitted_tokens,
            [
                DeniedCaller(
                    who.tenant, who.service_account, who.client_ip, who.limit, toll.requests, toll.tokens,
                    toll.first, toll.last,
                )
                for who, toll in rows[: query.top]
            ],
            max(0, len(rows) - query.top),
            await admin.gone_before(wanted),
        )
    )  # fmt: skip


async def _stored(admin: Admin, tenant: str | None) -> list[Document]:
    """Return the documents of all tenants, or that of the only one that is replayed."""
    if tenant is None:
        return await admin.documents()
    try:
        return [(await admin.limits.detail(tenant)).document]
    except NotFoundError:
        return []


async def _bounded(entries: AsyncIterator[Entry], bounds: ReplayBounds) -> AsyncIterator[Entry]:
    taken = 0
    async for entry in entries:
        taken += 1
        if taken > bounds.entries:
            raise _too_much(f"at once: {bounds.entries} entries")
        yield entry


def _too_much(bound: str) -> Problem:
    return invalid(
        f"more of the ledger than can be replayed {bound}; give 'since' and 'until', or a 'tenant', or use "
        "'tokenweir simulate'",
        "since",
    )


OPERATIONS = (
    Operation(
        "explain", "GET", "/v1/tenants/{tenant}/explain",
        "Show the limits that bind a service account now, whether a request would pass, and the last denials.",
        Role.VIEWER, Tenancy.PATH, explain, ExplainedLimits, Whom, tag="explain",
    ),
    Operation(
        "simulate", "POST", "/v1/simulate", "Replay the ledger against proposed limits. Nothing is changed.",
        Role.VIEWER, Tenancy.QUERY, simulate, SimulatedLimits, WhatIf, ProposedLimits, free=True, tag="simulate",
    ),
)  # fmt: skip
