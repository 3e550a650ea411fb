"""The sample model as a Starlette application, and the command that serves it."""

import argparse
import asyncio
import contextlib
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from extproc.local.model.answer import Answer
from extproc.local.model.api import ChatRequest, CompletionRequest, GenerationRequest, parse
from extproc.local.model.errors import ApiError, error_body
from extproc.local.model.faults import FAULT_HEADER, read_fault
from extproc.local.model.ledger import Ledger
from extproc.local.model.listener import serve
from extproc.local.model.plan import Job, Planner
from extproc.local.model.pump import Pace, Pump
from extproc.local.model.shapes import (
    VERSION,
    ChatShape,
    CompletionShape,
    Document,
    model_list,
    new_request_id,
)
from extproc.local.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.types import ASGIApp

DEFAULT_MODEL = "tokenweir-sample"
DEFAULT_MAX_MODEL_LEN = 32768

# Tokenizing more than this, in bytes of body, would keep other streams waiting for milliseconds.
_TOKENIZE_ASIDE = 65536

_CLIENT_CLOSED_REQUEST = 499

_RequestT = TypeVar("_RequestT", bound=GenerationRequest)


class SampleModel(Starlette):
    """The application; give it to a server, or to a client's in-process transport.

    Attributes:
        ledger: What it has served so far; also under ``GET /admin/usage``.
    """

    def __init__(
        self,
        *,
        models: "Sequence[str]" = (DEFAULT_MODEL,),
        max_model_len: int = DEFAULT_MAX_MODEL_LEN,
        ttft_s: float = 0.0,
        tokens_per_second: float = 0.0,
    ) -> None:
        """Load the tokenizer (once per process) and set up the routes.

        Args:
            models: Names it answers to, at least one.
            max_model_len: Tokens of prompt and completion together, at least 2.
            ttft_s: Seconds from request to first token, at least 0.
            tokens_per_second: Speed of each choice; 0 is as fast as possible.

        Raises:
            ValueError: an argument is out of its bounds.
            ImportError: mistral-common is not installed.
        """
        if not models:
            raise ValueError("models must name at least one model")
        if max_model_len < 2:  # noqa: PLR2004  one token to ask, one to answer
            raise ValueError("max_model_len must be at least 2")
        tokenizer = load_tokenizer()
        self.ledger = Ledger()
        self._planner = Planner(tuple(models), max_model_len, tokenizer)
        self._pump = Pump(tokenizer, self.ledger, Pace(ttft_s, tokens_per_second))
        self._created = int(time.time())
        super().__init__(routes=self._routes(), exception_handlers=_EXCEPTION_HANDLERS)

    def _routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/version", self._version, methods=["GET"]),
            Route("/admin/usage", self._usage, methods=["GET"]),
            Route("/admin/reset", self._reset, methods=["POST"]),
        ]

    async def _chat(self, request: Request) -> "ASGIApp":
        fault = read_fault(request.headers.get(FAULT_HEADER))
        job = await _planned(request, ChatRequest, self._planner.chat)
        return Answer(job, ChatShape(job, _request_id(request)), self._pump, fault)

    async def _completion(self, request: Request) -> "ASGIApp":
        fault = read_fault(request.headers.get(FAULT_HEADER))
        job = await _planned(request, CompletionRequest, self._planner.completion)
        return Answer(job, CompletionShape(job, _request_id(request)), self._pump, fault)

    async def _models(self, _: Request) -> Response:
        return _json(model_list(self._planner.models, self._planner.max_model_len, self._created))

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _version(self, _: Request) -> Response:
        return _json({"version": VERSION})

    async def _usage(self, _: Request) -> Response:
        return _json(self.ledger.report())

    async def _reset(self, _: Request) -> Response:
        self.ledger.reset()
        return _json(self.ledger.report())


async def _planned(request: Request, kind: type[_RequestT], plan: "Callable[[_RequestT], Job]") -> Job:
    body = await request.body()
    parsed = parse(body, request.headers.get("content-type", ""), kind)
    if len(body) > _TOKENIZE_ASIDE:
        return await asyncio.to_thread(plan, parsed)
    return plan(parsed)


def _request_id(request: Request) -> str:
    # As vLLM does: an id given by whoever sits in front goes on into the answer's id.
    return request.headers.get("x-request-id") or new_request_id()


def _json(document: Document, status: int = HTTPStatus.OK, headers: "Mapping[str, str] | None" = None) -> Response:
    response = Response(msgspec.json.encode(document), status, headers, "application/json")
    response.headers["vary"] = "Origin"
    return response


async def _on_api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return _json(error.body, error.status)


async def _on_http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    return _json(error_body(error.detail, status.phrase, status), status, error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # Nobody reads it; without it the half-sent request would be logged as an error of the server.
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


_EXCEPTION_HANDLERS = {
    ApiError: _on_api_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
}


def main(arguments: "Sequence[str] | None" = None) -> None:
    """The command line; see ``--help``."""
    options = _parser().parse_args(arguments)
    app = SampleModel(
        models=options.model or [DEFAULT_MODEL],
        max_model_len=options.max_model_len,
        ttft_s=options.ttft_s,
        tokens_per_second=options.tokens_per_second,
    )
    with contextlib.suppress(KeyboardInterrupt):
        serve(app, host=options.host, port=options.port, port_file=options.port_file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m extproc.local.model",
        description="A sample model server: vLLM's protocol and real token counts, without weights.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    add("--port", type=int, default=0, help="TCP port; 0 takes a free one (default: %(default)s)")
    add("--port-file", type=Path, metavar="PATH", help="write the port into this file once ready")
    add("--model", action="append", metavar="NAME", help=f"a name to answer to; repeatable ({DEFAULT_MODEL})")
    add("--max-model-len", type=int, default=DEFAULT_MAX_MODEL_LEN, help="tokens, default: %(default)s")
    add("--ttft-s", type=float, default=0.0, help="seconds to the first token (default: %(default)s)")
    add("--tokens-per-second", type=float, default=0.0, help="of each choice; 0 is as fast as possible")
    return parser
