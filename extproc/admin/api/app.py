"""Answer requests: find the operation, check caller, pace and input, call it, and log that it was called."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from extproc.admin.access import Caller, Role
from extproc.admin.api import problems, reading
from extproc.admin.api.callers import Callers, too_many
from extproc.admin.api.openapi import openapi
from extproc.admin.api.operation import JSON, Call, Operation, Reply, Tenancy, Writing
from extproc.admin.api.operations import OPERATIONS
from extproc.admin.api.pace import Pace
from extproc.admin.api.problems import Problem, invalid
from extproc.admin.api.services import Services
from extproc.admin.change import Change
from extproc.admin.errors import NotFoundError
from extproc.observe import logs
from extproc.ports.base import StoreError

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_READY_S: Final = 3.0
_log = logging.getLogger(__name__)
_access = logging.getLogger("extproc.admin.api.access")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bound what one caller may ask for. `hops`: proxies in front whose X-Forwarded-For is believed."""

    max_body_bytes: int = 1 << 20
    requests_per_minute: int = 600
    failures_per_minute: int = 30
    hops: int = 0


@dataclass(slots=True)
class _Served:
    """Collect what the access log says about a request. Never a header, a query or a body."""

    operation: str = ""
    caller: str = ""
    status: int = 0


@dataclass(slots=True)
class AdminAPI:
    """Be the ASGI application."""

    services: Services
    callers: Callers
    bounds: Bounds
    now_s: Callable[[], float] = time.monotonic
    operations: Sequence[Operation] = OPERATIONS
    _pace: Pace = field(init=False)
    _document: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.bounds.requests_per_minute, self.now_s)
        self._document = msgspec.json.encode(openapi(self.operations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        mark = logs.request_id.set(request_id)
        began = self.now_s()
        served = _Served()
        try:
            response = await self._response(request, served, request_id)
            response.headers["x-request-id"] = request_id
            served.status = response.status_code
            await response(scope, receive, send)
        finally:
            if served.operation not in {"healthz", "readyz"}:
                took = round((self.now_s() - began) * 1000, 1)
                _access.info(
                    "served",
                    extra={
                        "method": scope["method"],
                        "operation": served.operation,
                        "caller": served.caller,
                        "status": served.status,
                        "milliseconds": took,
                    },
                )
            logs.request_id.reset(mark)

    async def _response(self, request: Request, served: _Served, request_id: str) -> Response:
        try:
            return await self._answer(request, served)
        except Exception as error:  # noqa: BLE001 - a fault of the program becomes a 500, never a broken connection
            problem = problems.problem_of(error)
            if problem is None:
                _log.exception("a request failed")
                detail = "the request failed; the log has the reason, by this request id"
                problem = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "fault", detail)
            return Response(
                problems.document_of(problem, request_id),
                problem.status,
                _HEADERS | problem.headers,
                problems.MEDIA_TYPE,
            )

    async def _answer(self, request: Request, served: _Served) -> Response:
        segments = reading.segments_of(request.scope.get("raw_path") or request.scope["path"].encode())
        if len(segments) == 1 and request.method in {"GET", "HEAD"}:
            match segments[0]:
                case "healthz":
                    served.operation = "healthz"
                    return Response(status_code=HTTPStatus.OK)
                case "readyz":
                    served.operation = "readyz"
                    return await self._ready()
                case "openapi.json":
                    served.operation = "openapi"
                    return Response(self._document, headers=_HEADERS, media_type=JSON)
        address = self._address(request)
        caller = await self.callers.caller(reading.only(request.headers.raw, b"authorization"), address)
        served.caller = caller.actor.name
        if (wait := self._pace.take(f"{caller.actor.kind} {caller.actor.name}")) is not None:
            raise too_many(wait, f"at most {self.bounds.requests_per_minute} requests per minute")
        operation, path = self._found(request.method, segments)
        served.operation = operation.id
        reply = await self._reply(request, operation, path, caller)
        content = reply.text if reply.text is not None else msgspec.json.encode(reply.result)
        etag = {"etag": f'"{reply.version}"'} if reply.version is not None else {}
        return Response(content, reply.status, _HEADERS | etag | dict(reply.headers), reply.media_type)

    def _found(self, method: str, segments: tuple[str, ...]) -> tuple[Operation, dict[str, str]]:
        allowed = []
        for operation in self.operations:
            path = operation.takes(segments)
            if path is not None and operation.method == method:
                return operation, path
            if path is not None:
                allowed.append(operation.method)
        if not allowed:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", "there is nothing at this path; see /openapi.json")
        headers = {"allow": ", ".join(allowed)}
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method", f"use {' or '.join(allowed)} here", headers=headers)

    async def _reply(
        self, request: Request, operation: Operation, path: Mapping[str, str], caller: Caller
    ) -> Reply:
        caller.require(operation.least)
        if operation.tenancy is Tenancy.PATH:
            caller.require_tenant(path["tenant"])
        if operation.tenancy is Tenancy.ALL and caller.tenants is not None:
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden", "this is for callers who may see all tenants")
        query = reading.query_of(request, operation)
        if operation.tenancy is Tenancy.QUERY:
            _require_own(query, caller)
        body = await reading.body_of(request, operation, self.bounds.max_body_bytes)
        key = reading.key_of(request) if operation.keyed else None
        call = Call(self.services, caller, path, query, body, key=key)
        if operation.repeated is not None and key is not None:
            reply = await operation.repeated(call, key)
            if reply is not None:
                return reply
        if isinstance(query, Writing):
            call = replace(call, change=await self._change(request, path["tenant"], query, caller))
        return await operation.handler(call)

    async def _change(self, request: Request, tenant: str, query: Writing, caller: Caller) -> Change:
        """Return how something is written, with the version that the request was made for."""
        header = reading.only(request.headers.raw, b"x-tokenweir-note")
        if header is not None and query.note is not None:
            raise invalid("give the note as a parameter or as a header, not both", "note")
        note = query.note if query.note is not None else header
        wanted = reading.precondition_of(request.headers)
        if wanted is None:
            if not query.dry_run:
                detail = 'send If-Match with the ETag of the tenant ("7", or * for any), or If-None-Match: *'
                raise Problem(HTTPStatus.PRECONDITION_REQUIRED, "precondition-required", detail)
            return Change(caller.actor, note, None, dry_run=True)
        if wanted.new:
            caller.require(Role.ADMIN)
        await self._require_state(tenant, wanted)
        return Change(caller.actor, note, wanted.version, dry_run=query.dry_run)

    async def _require_state(self, tenant: str, wanted: reading.Precondition) -> None:
        """Raise `Problem` if the tenant exists and must be new, or must exist and does not."""
        try:
            await self.services.admin.limits.detail(tenant)
        except NotFoundError as error:
            if wanted.new:
                return
            detail = f"{error}; create it with If-None-Match: *"
            raise Problem(HTTPStatus.PRECONDITION_FAILED, "stale-version", detail) from None
        if wanted.new:
            detail = f"tenant '{tenant}' exists already: read its ETag, and send it as If-Match"
            raise Problem(HTTPStatus.PRECONDITION_FAILED, "stale-version", detail)

    async def _ready(self) -> Response:
        try:
            async with asyncio.timeout(_READY_S):
                await self.services.ready()
        except (StoreError, TimeoutError):
            return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(status_code=HTTPStatus.OK)

    def _address(self, request: Request) -> str:
        """Return the client's address: that of the connection, or the one that the proxies in front have seen."""
        direct = request.client.host if request.client is not None else "unknown"
        if not self.bounds.hops:
            return direct
        seen = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        wanted = seen[-self.bounds.hops].strip() if len(seen) >= self.bounds.hops else ""
        return wanted[:64] if wanted.isprintable() and wanted else direct


def _require_own(query: Any, caller: Caller) -> None:
    """Narrow a query to a tenant of the caller. Raise `Problem` if it names none of several."""
    if query.tenant is not None:
        caller.require_tenant(query.tenant)
    elif caller.tenants is not None:
        if len(caller.tenants) > 1:
            raise invalid(f"name a 'tenant': one of {', '.join(sorted(caller.tenants))}", "tenant")
        query.tenant = next(iter(caller.tenants))
