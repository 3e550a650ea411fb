"""What all endpoints work with, and how they read a request."""

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

# Tokenizing more than this, in bytes of body, would keep other streams waiting for milliseconds.
_TOKENIZE_ASIDE = 65536

_RequestT = TypeVar("_RequestT")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Service:
    """The model as its endpoints see it.

    Attributes:
        planner: Knows what is served.
        pump: Generates and counts.
        created: When it started, in seconds since the epoch.
    """

    planner: "Planner"
    pump: "Pump"
    created: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the headers ask for.

    Attributes:
        request_id: The id given by whoever sits in front, which goes on into the answer's id, or a new one.
        fault: What is to go wrong.
        details: What usage is to tell.
    """

    request_id: str
    fault: Fault | None
    details: Details


def read_asked(request: "Request") -> Asked:
    """Read the headers.

    Raises:
        ApiError: 400; a fault or a detail that there is not.
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
    """The request in the body, and what is understood of it; where that takes long, in a thread.

    Raises:
        ApiError: 400 or 404; it cannot be answered.
    """
    body = await request.body()
    parsed = parse(body, request.headers.get("content-type", ""), kind)
    return parsed, await aside(partial(understand, parsed), len(body))


async def aside(work: "Callable[[], _T]", size: int) -> _T:
    """The result of work, done in a thread where ``size`` bytes are too many for the loop."""
    return await asyncio.to_thread(work) if size > _TOKENIZE_ASIDE else work()


def generated(service: Service, asked: Asked, job: "Job", shape: "Callable[[Job, str], Shape]") -> Reply:
    """Answers a job in some shape, with what the headers ask for."""
    job = replace(job, details=asked.details)
    if asked.fault is Fault.IGNORE_BOUND:
        job = job.beyond_bound()
    return Answer(job, shape(job, asked.request_id), service.pump, asked.fault).reply


@dataclass(frozen=True, slots=True)
class Ready:
    """An answer that is known as soon as the request is understood.

    Attributes:
        kind: What was asked for.
        model: The name under which it was asked for.
        answer: A document, whose usage a fault may spoil, or bytes.
        prompt_tokens: Tokens that were read.
        completion_tokens: Tokens that were made.
        dialect: The words of its errors.
    """

    kind: "Kind"
    model: str
    answer: "Document | Content"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dialect: Dialect = Dialect.OPENAI


def given(service: Service, asked: Asked, ready: Ready) -> Reply:
    """Counts and gives an answer that is ready, at the pace of the model."""

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
