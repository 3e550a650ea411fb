"""Admit requests only of the page that this server sent, in the browser of the user who has the token.

Every web page in the browser and every user of the machine can reach a server on 127.0.0.1. The Host header stops
a page of another host whose name resolves to 127.0.0.1. Origin, Sec-Fetch-Site and a token stop a page that sends
requests here: the token is in a header that another page can't set. The browser gets the token in the fragment of
the address. A fragment is in no request line, log or Referer, and unlike a cookie it isn't sent to other ports.
"""

import hmac
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY: Final = 1024 * 1024
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class Guard:
    """Refuse requests before anything is read (ASGI), and add headers that isolate the page."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        hosts = ["127.0.0.1", "localhost"]
        self._hosts = [f"{host}:{port}" for host in hosts] + (hosts if port == 80 else [])  # noqa: PLR2004 - browsers leave it out
        self._origins = [f"http://{host}" for host in self._hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":  # there are no WebSockets here
            return await send({"type": "websocket.close", "code": 1008})
        refused = self._refused(scope)
        if refused is not None:
            status, why = refused
            return await JSONResponse({"error": why}, status)(scope, receive, guarded)
        return await self._app(scope, receive, guarded)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.getlist("host")
        if len(host) != 1 or host[0] not in self._hosts:
            return 421, "this server answers to 127.0.0.1 only"
        if any(origin not in self._origins for origin in headers.getlist("origin")):
            return 403, "another page may not ask here"
        if scope["method"] not in {"GET", "HEAD", "POST"}:
            return 405, "GET and POST only"
        if not scope["path"].startswith("/api/"):
            return None
        if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return 403, "another page may not ask here"
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self._token):
            return 401, "open the address that the terminal shows: it has this session's key"
        if scope["method"] == "POST" and headers.get("content-type") != "application/json":
            return 415, "JSON only"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, f"more than {MAX_BODY} bytes"
        return None
