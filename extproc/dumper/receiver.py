"""Receive events over HTTP, and answer before they are written."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("the message dumper needs: pip install 'tokenweir[dumper]'") from error

from extproc.dumper.cloudevents import BadEventError, UnsupportedError, parse
from extproc.dumper.holding import OVERHEAD, FullError, Holding, Room
from extproc.dumper.metrics import DumperMetrics

_log = logging.getLogger(__name__)
_RETRY_AFTER_S: Final = "1"
# A client whose machine is gone never closes its connection: without a bound its room would never be freed.
_BODY_S: Final = 30.0


class _TooLargeError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Receiver:
    """Receive events for a holding. `/readyz` answers 200 while `ready` returns True."""

    holding: Holding
    metrics: DumperMetrics
    max_body_bytes: int
    keep_bodies: bool
    now: Callable[[], datetime]
    ready: Callable[[], bool]
    body_s: float = _BODY_S

    def app(self) -> Starlette:
        # Events are accepted on any other path, because `logger.url` of an InferenceService may contain a path.
        return Starlette(
            routes=[
                Route("/healthz", self._healthz, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/{path:path}", self._event, methods=["POST"]),
            ]
        )

    async def _event(self, request: Request) -> Response:
        try:
            with self.holding.room() as room:
                async with asyncio.timeout(self.body_s):
                    body = await self._body(request, room)
                headers = {name: _utf8(value) for name, value in request.headers.items()}
                message = parse(headers, body, self.now())
                room.put(message if self.keep_bodies else message.without_body())
        except _TooLargeError:
            return self._refused("too_large", 413, f"an event has {self.max_body_bytes} bytes at most")
        except TimeoutError:
            return self._refused("invalid", 408, f"the whole event must be here within {self.body_s:g} s")
        except FullError:
            return self._refused("full", 503, "too many bytes wait to be written")
        except UnsupportedError as error:
            return self._refused("invalid", 415, str(error))
        except BadEventError as error:
            return self._refused("invalid", 400, str(error))
        except ClientDisconnect:
            return Response(status_code=400)
        return Response(status_code=202)

    async def _body(self, request: Request, room: Room) -> bytes:
        """Read the body. Room is claimed before the bytes are read, so the bound covers bodies that are being
        read.
        """
        announced = request.headers.get("content-length", "0")
        expected = int(announced) if announced.isdecimal() else 0
        if expected > self.max_body_bytes:
            raise _TooLargeError
        room.grow(OVERHEAD + expected)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.max_body_bytes:
                raise _TooLargeError
            if size > expected:
                room.grow(size - expected)
                expected = size
            parts.append(part)
        return b"".join(parts)

    def _refused(self, outcome: str, status: int, message: str) -> Response:
        self.metrics.counted(outcome)
        if outcome == "invalid":
            _log.info("event refused", extra={"error": message})
        headers = {"retry-after": _RETRY_AFTER_S} if status == 503 else {}  # noqa: PLR2004
        return JSONResponse({"error": message}, status, headers)

    async def _healthz(self, request: Request) -> Response:
        del request
        return Response(status_code=200)

    async def _readyz(self, request: Request) -> Response:
        del request
        return Response(status_code=200 if self.ready() else 503)

    async def _metrics(self, request: Request) -> Response:
        del request
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _utf8(value: str) -> str:
    """Decode a header as UTF-8, as KServe sends it; Starlette decoded it as Latin-1."""
    return value.encode("latin-1").decode("utf-8", "replace")
