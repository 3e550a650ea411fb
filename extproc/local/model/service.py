"""Share the model and the reading of requests between all endpoints."""

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.responses import Response

from extproc.local.model.answer import Answer
from extproc.local.model.api import parse
from extproc.local.model.details import USAGE_HEADER, Details, read_details
from extproc.local.model.errors import Dialect
from extproc.local.model.faults import FAULT_HEADER, Fault, read_fault, spoil_plain
from extproc.local.model.sending import ClientGoneError, Content, Line, Reply
from extproc.local.model.shapes import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from extproc.local.model.events import Document
    from extproc.local.model.ledger import Kind
    from extproc.local.model.plan import Job, Planner
    from extproc.local.model.pump import Pump
    from extproc.local.model.shapes import Shape

# Tokenizing a larger body (in bytes) on the event loop would delay other streams by milliseconds.
_TOKENIZE_ASIDE = 65536

_RequestT = TypeVar("_RequestT")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Service:
    """Hold the model for its endpoints.

    Attributes:
        planner: Knows the served models.
        pump: Generates and counts.
        created: Time of the start, in seconds since the epoch.
    """

    planner: "Planner"
    pump: "Pump"
    created: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Hold the options in a request's headers.

    Attributes:
        request_id: The id that the proxy in front gave, or a new one. It becomes part of the answer's id.
        fault: The fault to inject.
        details: The details of usage to report.
    """

    request_id: str
    fault: Fault | None
    details: Details


def read_asked(request: "Request") -> Asked:
    """Read the headers.

    Raises:
        ApiError: 400; an unknown fault or detail.
    """
    headers = request.headers
    return Asked(
        headers.get("x-request-id") or new_request_id(),
        read_fault(headers.get(FAULT_HEADER)),
        read_details(headers.get(USAGE_HEADER)),
    )


async def read_json(
    request: "Request", kind: type[_RequestT], understand: "Callable[[_RequestT], _T]"
) -> tuple[_RequestT, _T]:
    """Return the request in the body, and the result of interpreting it; in a thread if that takes long.

    Raises:
        ApiError: 400 or 404; it cannot be answered.
    """
    body = await request.body()
    parsed = parse(body, request.headers.get("content-type", ""), kind)
    return parsed, await aside(partial(understand, parsed), len(body))


async def aside(work: "Callable[[], _T]", size: int) -> _T:
    """Return the result of the work, done in a thread if ``size`` bytes are too many for the loop."""
    return await asyncio.to_thread(work) if size > _TOKENIZE_ASIDE else work()


def generated(service: Service, asked: Asked, job: "Job", shape: "Callable[[Job, str], Shape]") -> Reply:
    """Answer a job in some shape, with the options of the headers."""
    job = replace(job, details=asked.details)
    if asked.fault is Fault.IGNORE_BOUND:
        job = job.beyond_bound()
    return Answer(job, shape(job, asked.request_id), service.pump, asked.fault).reply


@dataclass(frozen=True, slots=True)
class Ready:
    """Hold an answer that is known as soon as the request is understood.

    Attributes:
        kind: The kind of request.
        model: The name that the client used.
        answer: A document, whose usage a fault may change, or bytes.
        prompt_tokens: Tokens that were read.
        completion_tokens: Tokens that were generated.
        dialect: The format of its errors.
    """

    kind: "Kind"
    model: str
    answer: "Document | Content"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dialect: Dialect = Dialect.OPENAI


def given(service: Service, asked: Asked, ready: Ready) -> Reply:
    """Count and send an answer that is ready, at the pace of the model."""

    async def speak(line: Line) -> None:
        served = await service.pump.serve(
            ready.kind, ready.model, ready.prompt_tokens, ready.completion_tokens, line.gone
        )
        if not served:
            raise ClientGoneError
        answer = ready.answer
        if not isinstance(answer, Content):
            answer = Content(msgspec.json.encode(spoil_plain(answer, asked.fault)))
        await line.whole(answer)

    return Reply(speak, asked.fault, ready.dialect)


def json_response(
    document: "Document", status: int = HTTPStatus.OK, headers: "Mapping[str, str] | None" = None
) -> Response:
    response = Response(msgspec.json.encode(document), status, headers, "application/json")
    response.headers["vary"] = "Origin"
    return response
