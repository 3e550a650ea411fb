"""Serve the form's routes on the loopback address."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.ui.desk import Desk, Draft
from extproc.onboarding.ui.guard import MAX_BODY, Guard
from extproc.onboarding.ui.latest import Latest
from extproc.web.listening import listen, port_of
from extproc.web.server import Server, ServerOptions

ADDRESS: Final = "127.0.0.1"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_SERVER: Final = ServerOptions(keep_alive_s=5, finish_s=2, max_connections=64)


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


def run(desk: Desk, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `on_ready` gets the address, with its token. Raise `ListenError`."""
    token = secrets.token_urlsafe(24)
    with listen(f"{ADDRESS}:{port}") as listening:
        port = port_of(listening)
        guarded = Guard(application(desk), token, port)
        server = Server(guarded, _SERVER, on_ready=lambda: on_ready(f"http://{ADDRESS}:{port}/#{token}"))
        with suppress(KeyboardInterrupt):  # uvicorn stops first, then raises it again
            server.run(sockets=[listening])
