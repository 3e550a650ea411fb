"""Serve single requests: the whole story of one, and lists of them."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from extproc.admin.access import Role
from extproc.admin.api.instants import INSTANT, instant
from extproc.admin.api.operation import Call, Operation, Paged, Parameters, Reply, Tenancy
from extproc.admin.api.parameters import Address, Name
from extproc.admin.errors import NotFoundError
from extproc.admin.request_story import RequestStory
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.ports.requests import RequestFilter

# The same whether there is none or one of another tenant: nobody learns of the requests of others.
_NOT_YOURS = (
    "no request of your tenants is known by this id: it may have been denied and only counted, have ended before "
    "the ledger begins, or never have reached a limit"
)


class WhichRequests(Paged, kw_only=True):
    tenant: Name | None = None
    service_account: Name | None = None
    client_ip: Address | None = None
    outcome: Outcome | None = None
    model: Name | None = None
    endpoint: Endpoint | None = None
    since: Annotated[str, INSTANT, Meta(description="Ended then or later; with a time zone.")] | None = None
    until: Annotated[str, INSTANT, Meta(description="Ended before; with a time zone.")] | None = None


class RequestList(Struct):
    """Hold a page of requests, the last to end first. Entries before `entries_gone_before` may be deleted."""

    rows: list[RequestStory]
    cursor: str | None
    entries_gone_before: datetime | None


class Stories(Struct):
    """Hold the stories of the requests with one id, the last to end first; rarely several."""

    requests: list[RequestStory]


async def list_requests(call: Call) -> Reply:
    query: WhichRequests = call.query
    since = instant("since", query.since)
    wanted = RequestFilter(
        query.outcome, query.tenant, query.service_account, query.client_ip, query.model, query.endpoint, since,
        instant("until", query.until),
    )  # fmt: skip
    requests = call.services.requests
    page = await requests.find(wanted, query.at_most, query.cursor)
    return Reply(RequestList(list(page.rows), page.cursor, await requests.gone_before(since)))


async def show_request(call: Call) -> Reply:
    scoped = call.caller.tenants is not None
    try:
        found = await call.services.requests.show(call.path["id"])
    except NotFoundError:
        if scoped:
            raise NotFoundError(_NOT_YOURS) from None
        raise
    own = [each for each in found if call.caller.sees(each.tenant)]
    if not own:
        raise NotFoundError(_NOT_YOURS)
    return Reply(Stories(own))


OPERATIONS = (
    Operation(
        "listRequests", "GET", "/v1/requests", "List requests in the ledger, the last to end first.",
        Role.VIEWER, Tenancy.QUERY, list_requests, RequestList, WhichRequests, tag="requests",
    ),
    Operation(
        "showRequest", "GET", "/v1/requests/{id}",
        "Tell the whole story of a request, by the `x-request-id` that the client saw or by its reservation.",
        Role.VIEWER, Tenancy.ROWS, show_request, Stories, Parameters, tag="requests",
    ),
)  # fmt: skip
