"""Build the sample model as a Starlette application, and serve it from the command line."""

import argparse
import contextlib
import time
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from extproc.local.model import chats, images, kserve, messages, pooling, responses, speech, tokens, transcriptions
from extproc.local.model.errors import ApiError, dialect_of
from extproc.local.model.ledger import Ledger
from extproc.local.model.listener import serve
from extproc.local.model.models import model_list
from extproc.local.model.plan import Planner
from extproc.local.model.pump import Pace, Pump
from extproc.local.model.service import Service, json_response
from extproc.local.model.shapes import VERSION
from extproc.local.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_MODEL = "tokenweir-sample"
DEFAULT_MAX_MODEL_LEN = 32768

_CLIENT_CLOSED_REQUEST = 499

_ASKED = (
    ("/v1/chat/completions", chats.chat),
    ("/v1/completions", chats.completion),
    ("/v1/responses", responses.respond),
    ("/v1/messages", messages.message),
    ("/v1/messages/count_tokens", messages.count_tokens),
    ("/v1/embeddings", pooling.embed),
    ("/v1/rerank", pooling.rerank),
    ("/v2/rerank", pooling.rerank),
    ("/rerank", pooling.rerank),
    ("/v1/score", pooling.score),
    ("/score", pooling.score),
    ("/v1/audio/transcriptions", transcriptions.transcribe),
    ("/v1/audio/speech", speech.speak),
    ("/v1/images/generations", images.generate_images),
    ("/tokenize", tokens.tokenize),
    ("/detokenize", tokens.detokenize),
    # Names of models may contain slashes.
    ("/v1/models/{name:path}:predict", kserve.predict),
    ("/v2/models/{name:path}/versions/{version}/infer", kserve.infer),
    ("/v2/models/{name:path}/infer", kserve.infer),
)

_LOOKED_UP = (
    ("/v1/models/{name:path}", kserve.model_status),
    ("/v2/health/ready", kserve.server_ready),
    ("/v2/health/live", kserve.server_live),
    ("/v2/models/{name:path}/ready", kserve.model_ready),
    ("/v2/models/{name:path}", kserve.model_metadata),
)


class SampleModel(Starlette):
    """Serve the sample model; pass it to a server, or to a client's in-process transport.

    Attributes:
        ledger: The counts so far; also under ``GET /admin/usage``.
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
        pump = Pump(tokenizer, self.ledger, Pace(ttft_s, tokens_per_second))
        self._service = Service(self._planner, pump, int(time.time()))
        super().__init__(routes=self._routes(), exception_handlers=_EXCEPTION_HANDLERS)

    def _routes(self) -> list[Route]:
        service = self._service
        return [
            *(Route(path, partial(answer, service), methods=["POST"]) for path, answer in _ASKED),
            Route("/v1/models", self._models, methods=["GET"]),
            *(Route(path, partial(answer, service), methods=["GET"]) for path, answer in _LOOKED_UP),
            Route("/health", self._health, methods=["GET"]),
            Route("/version", self._version, methods=["GET"]),
            Route("/admin/usage", self._usage, methods=["GET"]),
            Route("/admin/reset", self._reset, methods=["POST"]),
        ]

    async def _models(self, _: Request) -> Response:
        return json_response(model_list(self._planner.models, self._planner.max_model_len, self._service.created))

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _version(self, _: Request) -> Response:
        return json_response({"version": VERSION})

    async def _usage(self, _: Request) -> Response:
        return json_response(self.ledger.report())

    async def _reset(self, _: Request) -> Response:
        self.ledger.reset()
        return json_response(self.ledger.report())


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return json_response(error.body(dialect_of(request.url.path)), error.status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    refused = ApiError(error.detail, status=status, kind=status.phrase)
    return json_response(refused.body(dialect_of(request.url.path)), status, error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # No client reads it; without it, the server would log the half-sent request as its own error.
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


_EXCEPTION_HANDLERS = {
    ApiError: _on_api_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
}


def main(arguments: "Sequence[str] | None" = None) -> None:
    """Run the command line; see ``--help``."""
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
