"""Serve the form's routes on the loopback address."""

import asyncio
import secrets
import socket
from collections.abc import Callable
from importlib import resources
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.ui.desk import Desk, Draft
from extproc.onboarding.ui.guard import MAX_BODY, Guard
from extproc.onboarding.ui.latest import Latest

ADDRESS: Final = "127.0.0.1"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_KEEP_ALIVE_S: Final = 5
_SHUTDOWN_S: Final = 2
_CONNECTIONS: Final = 64


class ListenError(Exception):
    """Report that the port is in use or not allowed."""


class _TooLarge(Exception):  # noqa: N818 - an outcome
    pass


def application(desk: Desk) -> Starlette:
    """Return the routes. The guard has already checked each request."""
    previews, explanations = Latest(), Latest()

    async def form(request: Request) -> Response:
        return _json(desk.form(request.query_params.get("chart", desk.chart)))

    async def preview(request: Request) -> Response:
        draft = await _draft(request)
        return _latest(await previews.run(lambda: desk.preview(draft)))

    async def explanation(request: Request) -> Response:
        draft = await _draft(request)
        found = await explanations.run(lambda: desk.explanation(draft))
        return _latest(None if found is None else {"objects": found})

    async def file(request: Request) -> Response:
        draft = await _draft(request)
        return _json(await asyncio.to_thread(desk.file, request.path_params["what"], draft))

    routes = [Route(path, _static(*content)) for path, content in _pages().items()]
    routes += [
        Route("/api/form", form),
        Route("/api/preview", preview, methods=["POST"]),
        Route("/api/explanation", explanation, methods=["POST"]),
        Route("/api/file/{what}", file, methods=["POST"]),
    ]
    wrong = {
        OnboardingError: lambda _, error: _json({"error": str(error)}, 422),
        msgspec.DecodeError: lambda _, error: _json({"error": str(error)}, 400),
        _TooLarge: lambda *_: _json({"error": f"more than {MAX_BODY} bytes"}, 413),
    }
    return Starlette(routes=routes, exception_handlers=wrong)


def _pages() -> dict[str, tuple[bytes, str]]:
    """Read every static file once, by its address, so that no request names a file."""
    found = {}
    for each in resources.files(__package__).joinpath("static").iterdir():
        kind = _TYPES.get(f".{each.name.rpartition('.')[2]}")
        if kind is not None:
            found["/" if each.name == "index.html" else f"/{each.name}"] = each.read_bytes(), kind
    return found


def _static(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, headers={"content-type": kind})


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, headers={"content-type": "application/json"})


def _latest(value: Any) -> Response:
    # A newer request came while this one waited, and its answer will be shown.
    return _json({"superseded": True}, 409) if value is None else _json(value)


async def _draft(request: Request) -> Draft:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise _TooLarge
    try:
        return msgspec.json.decode(bytes(body), type=Draft)
    except RecursionError:
        raise OnboardingError("too deeply nested") from None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def run(desk: Desk, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `on_ready` gets the address with its token. Raise `ListenError`."""
    token = secrets.token_urlsafe(24)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((ADDRESS, port))
            listener.listen()
        except OSError as error:
            raise ListenError(f"{ADDRESS}:{port} can't be listened on: {error.strerror}") from None
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            Guard(application(desk), token, port),
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
            limit_concurrency=_CONNECTIONS,
        )
        server = _Server(config, lambda: on_ready(f"http://{ADDRESS}:{port}/#{token}"))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn stops first, then raises it again
            return
