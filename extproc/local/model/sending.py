"""Send an answer over ASGI, inject faults, and notice when the client leaves."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from extproc.local.model.errors import ApiError, Dialect
from extproc.local.model.faults import ConnectionCutError, Fault, injected, spoil_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.types import Receive, Scope, Send

# The key of the listener's function that cuts the connection; in-process callers have none.
ABORT_EXTENSION = "tokenweir.abort"

HANG_S = 300.0
# The delay of the end of a body; long enough for any client to leave meanwhile.
LATE_S = 30.0

# The time for data before a cut to reach the client: a reset discards unread data.
_CUT_AFTER_S = 0.05

JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"


class ClientGoneError(Exception):
    """Report that the client is gone."""


@dataclass(frozen=True, slots=True)
class Content:
    """Hold a body in one piece."""

    body: bytes
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Line:
    """Send to one client.

    Attributes:
        send: ASGI's.
        gone: Set once the client has left.
        fault: The fault to inject.
    """

    send: "Send"
    gone: asyncio.Event
    fault: Fault | None

    async def whole(self, content: Content, status: int = HTTPStatus.OK) -> None:
        """Send a body in one piece, or in the pieces that the fault makes of it.

        Raises:
            ConnectionCutError: the fault is that it ends in its middle.
            ClientGoneError: the client left.
        """
        if self.gone.is_set():
            raise ClientGoneError
        body = content.body
        encoding = self.fault.encoder if self.fault is not None else None
        if encoding is not None:
            body = encoding.feed(body) + encoding.finish()
        if self.fault is Fault.TRUNCATED_JSON:
            body = body[: len(body) // 2]
        length = None if self.fault is Fault.LATE_USAGE else len(body)
        await self._start(status, content.media_type, length)
        if self.fault is Fault.RESET_MID_STREAM:
            await self._part(body[: len(body) // 2], more=True)
            raise ConnectionCutError
        if self.fault is Fault.LATE_USAGE:
            await self._part(body, more=True)
            await self.late()
            body = b""
        if self.fault is Fault.ONE_BYTE_CHUNKS:
            await self._bytewise(body)
            body = b""
        await self._part(body, more=False)

    async def events(
        self, events: "AsyncGenerator[bytes]", strike_after: int, ending: "Callable[[], bytes]"
    ) -> None:
        """Send a stream of framed events; see `spoil_bytes`.

        Raises:
            ConnectionCutError: the fault is that it ends in its middle.
            ClientGoneError: the client left.
        """
        await self._start(HTTPStatus.OK, _EVENTS, None)
        async with aclosing(spoil_bytes(events, self.fault, strike_after, ending)) as parts:
            async for part in parts:
                await self._part(part, more=True)
                if self.fault is Fault.ONE_BYTE_CHUNKS:
                    await asyncio.sleep(0)
        if self.gone.is_set():
            raise ClientGoneError
        await self._part(b"", more=False)

    async def late(self) -> None:
        """Delay the end of the body.

        Raises:
            ClientGoneError: the client left.
        """
        await self._until_gone(LATE_S)

    async def hang(self) -> None:
        """Delay the whole answer, longer than any client waits.

        Raises:
            ClientGoneError: the client left.
        """
        await self._until_gone(HANG_S)

    async def error(self, error: ApiError, dialect: Dialect, status: int) -> None:
        content = Content(msgspec.json.encode(error.body(dialect)))
        await self._start(status, content.media_type, len(content.body))
        await self._part(content.body, more=False)

    async def _until_gone(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self.gone.wait(), timeout_s)
        except TimeoutError:
            return
        raise ClientGoneError

    async def _bytewise(self, body: bytes) -> None:
        for byte in body:
            await self._part(bytes((byte,)), more=True)
            await asyncio.sleep(0)

    async def _start(self, status: int, media_type: str, length: int | None) -> None:
        headers = [(b"content-type", media_type.encode()), (b"vary", b"Origin")]
        if length is not None:
            headers.insert(0, (b"content-length", b"%d" % length))
        if self.fault is not None and self.fault.encodes and status == HTTPStatus.OK:
            headers.append((b"content-encoding", self.fault.value.encode()))
        await self.send({"type": "http.response.start", "status": int(status), "headers": headers})

    async def _part(self, body: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer one request, as an ASGI application.

    Attributes:
        speak: Generates the answer and sends it.
        fault: The fault to inject.
        dialect: The format of its errors.
        stream: Whether the answer is a stream of events.
    """

    speak: "Callable[[Line], Awaitable[None]]"
    fault: Fault | None = None
    dialect: Dialect = Dialect.OPENAI
    stream: bool = False

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        line = Line(send, asyncio.Event(), self.fault)
        watcher = asyncio.create_task(_watch(receive, line.gone))
        try:
            await self._answer(line)
        except ClientGoneError:
            return
        except ConnectionCutError:
            await _cut_connection(scope, line.gone)
        finally:
            watcher.cancel()

    async def _answer(self, line: Line) -> None:
        fault = self.fault
        if fault is Fault.HANG:
            await line.hang()
        if fault is Fault.ERROR_200:
            await line.error(injected(fault), self.dialect, HTTPStatus.OK)
        elif fault is not None and (
            fault in {Fault.ERROR_500, Fault.HANG} or (fault is Fault.ERROR_IN_STREAM and not self.stream)
        ):
            await line.error(injected(fault), self.dialect, HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            await self.speak(line)


async def _watch(receive: "Receive", gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _cut_connection(scope: "Scope", gone: asyncio.Event) -> None:
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is None:
        raise ConnectionResetError(f"Injected fault: {Fault.RESET_MID_STREAM}")
    await asyncio.sleep(_CUT_AFTER_S)
    abort()
    await gone.wait()
