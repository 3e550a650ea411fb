"""Sends the answer to one job over ASGI, plain or as a stream, and notices when the client leaves."""

import asyncio
import gzip
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from extproc.local.model.faults import (
    DONE,
    ConnectionCutError,
    Fault,
    fault_error,
    spoil_chunk,
    spoil_events,
    spoil_plain,
)
from extproc.local.model.shapes import ChoiceEnd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from extproc.local.model.generator import Step
    from extproc.local.model.plan import Job
    from extproc.local.model.pump import Pump
    from extproc.local.model.shapes import Document, Shape

# The key under which the listener offers to cut the connection; in-process callers have none to cut.
ABORT_EXTENSION = "tokenweir.abort"

HANG_S = 300.0

# How long what was sent before a cut may take to reach the client: a reset overtakes unread data.
_CUT_AFTER_S = 0.05

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"


class _ClientGoneError(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An ASGI application that answers one job."""

    job: "Job"
    shape: "Shape"
    pump: "Pump"
    fault: Fault | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        gone = asyncio.Event()
        watcher = asyncio.create_task(_watch(receive, gone))
        try:
            await self._answer(send, gone)
        except _ClientGoneError:
            return
        except ConnectionCutError:
            await _cut_connection(scope, gone)
        finally:
            watcher.cancel()

    async def _answer(self, send: "Send", gone: asyncio.Event) -> None:
        fault = self.fault
        if fault is Fault.HANG:
            await _hang(gone)
        if fault is Fault.ERROR_200:
            await _send_json(send, fault_error(fault, HTTPStatus.INTERNAL_SERVER_ERROR), HTTPStatus.OK)
        elif fault in {Fault.ERROR_500, Fault.HANG} or (fault is Fault.ERROR_IN_STREAM and not self.job.stream):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            await _send_json(send, fault_error(fault, status), status)
        elif self.job.stream:
            await self._send_stream(send, gone)
        else:
            await self._send_plain(send, gone)

    async def _send_plain(self, send: "Send", gone: asyncio.Event) -> None:
        parts: dict[int, list[str]] = {}
        ends: dict[int, ChoiceEnd] = {}
        produced = 0
        async with aclosing(self.pump.run(self.job, gone)) as steps:
            async for index, step in steps:
                produced += 1
                parts.setdefault(index, []).append(step.text)
                if step.finish_reason is not None:
                    ends[index] = ChoiceEnd("".join(parts[index]), step.finish_reason, step.stop_reason)
        if gone.is_set():
            raise _ClientGoneError
        document = self.shape.whole([ends[index] for index in sorted(ends)], produced)
        await _send_body(send, msgspec.json.encode(spoil_plain(document, self.fault)), self.fault)

    async def _send_stream(self, send: "Send", gone: asyncio.Event) -> None:
        headers = [(b"content-type", _EVENTS), (b"vary", b"Origin")]
        if self.fault is Fault.GZIP:
            headers.append((b"content-encoding", b"gzip"))
        await _send_start(send, HTTPStatus.OK, headers)
        async with aclosing(spoil_events(self._events(gone), self.fault)) as events:
            async for event in events:
                await _send_part(send, event, more=True)
                if self.fault is Fault.ONE_BYTE_CHUNKS:
                    await asyncio.sleep(0)
        if gone.is_set():
            raise _ClientGoneError
        await _send_part(send, b"", more=False)

    async def _events(self, gone: asyncio.Event) -> "AsyncGenerator[bytes]":
        async with aclosing(self._chunks(gone)) as chunks:
            async for chunk in chunks:
                for document in spoil_chunk(chunk, self.fault):
                    yield b"data: " + msgspec.json.encode(document) + b"\n\n"
        if not gone.is_set():
            yield DONE

    async def _chunks(self, gone: asyncio.Event) -> "AsyncGenerator[Document]":
        job = self.job
        produced = [0] * (len(job.prompts) * job.choices)
        async with aclosing(self.pump.run(job, gone)) as steps:
            async for index, step in steps:
                if not any(produced):
                    for opening in self._openings(len(produced)):
                        yield opening
                produced[index] += 1
                yield self._chunk(index, step, produced[index])
        if job.include_usage and not gone.is_set():
            yield self.shape.usage(sum(produced))

    def _openings(self, choices: int) -> "list[Document]":
        prompts = self.job.prompts
        opened = (self.shape.opening(index, prompts[index // self.job.choices].tokens) for index in range(choices))
        return [chunk for chunk in opened if chunk is not None]

    def _chunk(self, index: int, step: "Step", produced: int) -> "Document":
        if not self.job.continuous_usage:
            return self.shape.chunk(index, step, None)
        return self.shape.chunk(index, step, (self.job.prompts[index // self.job.choices].tokens, produced))


async def _watch(receive: "Receive", gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _hang(gone: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(gone.wait(), HANG_S)
    except TimeoutError:
        return
    raise _ClientGoneError


async def _cut_connection(scope: "Scope", gone: asyncio.Event) -> None:
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is None:
        raise ConnectionResetError(f"Injected fault: {Fault.RESET_MID_STREAM}")
    await asyncio.sleep(_CUT_AFTER_S)
    abort()
    await gone.wait()


async def _send_body(send: "Send", body: bytes, fault: Fault | None) -> None:
    headers: list[tuple[bytes, bytes]] = []
    if fault is Fault.GZIP:
        body = gzip.compress(body)
        headers.append((b"content-encoding", b"gzip"))
    if fault is Fault.TRUNCATED_JSON:
        body = body[: len(body) // 2]
    await _send_start(send, HTTPStatus.OK, _json_headers(body) + headers)
    if fault is Fault.RESET_MID_STREAM:
        await _send_part(send, body[: len(body) // 2], more=True)
        raise ConnectionCutError
    if fault is Fault.ONE_BYTE_CHUNKS:
        for byte in body:
            await _send_part(send, bytes((byte,)), more=True)
            await asyncio.sleep(0)
        body = b""
    await _send_part(send, body, more=False)


async def _send_json(send: "Send", document: "Document", status: HTTPStatus) -> None:
    body = msgspec.json.encode(document)
    await _send_start(send, status, _json_headers(body))
    await _send_part(send, body, more=False)


def _json_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % len(body)), (b"content-type", _JSON), (b"vary", b"Origin")]


async def _send_start(send: "Send", status: HTTPStatus, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": int(status), "headers": headers})


async def _send_part(send: "Send", body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
