"""Envoy's part, played by the test itself: ext_proc spoken straight to a replica, thousands of exchanges in seconds."""

import asyncio
import itertools
import json
import time
from dataclasses import dataclass

import grpc
from google.protobuf.struct_pb2 import Struct

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.serving import SERVICE
from tests.system.waiting import until

CHAT = "/v1/chat/completions"
_JWT = "envoy.filters.http.jwt_authn"
_ATTRIBUTES = "envoy.filters.http.ext_proc"
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    # Each replica has a connection of its own, also where two of them had the same port one after the other.
    ("grpc.use_local_subchannel_pool", 1),
)
_NUMBERS = itertools.count()


class BrokenError(Exception):
    """The replica is gone, or ended the stream before its time."""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    tenant: str
    account: str = "robot"
    address: str = "10.0.0.1"

    @property
    def key(self):
        return f"{self.account}@{self.tenant}"


@dataclass(frozen=True)
class Verdict:
    """What a replica said to a request, and how long that took."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_s: float

    @property
    def admitted(self):
        return self.status == 200

    @property
    def denied(self):
        return self.status == 429

    @property
    def unavailable(self):
        return self.status == 503


def chat(max_tokens, *, stream=False, content="hi", **fields):
    """A request's body. Its prompt is the same whatever the bound is: its cost is known before."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, **fields}
    return json.dumps(body | ({"stream": True} if stream else {})).encode()


class Door:
    """One replica, as Envoy sees it."""

    def __init__(self, address):
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL)
        self._process = self._channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )

    async def close(self):
        await self._channel.close()

    def exchange(self, caller, request_id=None):
        return Exchange(self._process(), caller, request_id or f"request-{next(_NUMBERS)}")

    async def admitted(self, caller, body, request_id=None):
        """An exchange whose request is admitted. Asks again as long as the replica can't decide."""
        exchanges = []

        async def decided():
            exchanges[:] = [self.exchange(caller, request_id)]
            verdict = await exchanges[0].request(body)
            assert verdict.admitted or verdict.unavailable, verdict
            return verdict.admitted

        await until(decided, "a request is admitted")
        return exchanges[0]

    async def quota(self, caller):
        """The rows of `GET /v1/quota`; None where the replica can't tell now."""
        exchange = self.exchange(caller)
        verdict = await exchange.request(b"", method="GET", path="/v1/quota")
        exchange.leave()
        return json.loads(verdict.body)["limits"] if verdict.status == 200 else None


class Exchange:
    """One HTTP exchange. Every step raises `BrokenError` where the replica is gone."""

    def __init__(self, call, caller, request_id):
        self._call = call
        self._caller = caller
        self.id = request_id

    async def request(self, body, *, method="POST", path=CHAT):
        """Head and body in one go, as Envoy sends them, and the verdict."""
        started = time.monotonic()
        await self._send(_head(self._caller, self.id, method, path, end=not body))
        if body:
            await self._send(pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True)))
        reply = await self._reply()
        if reply.WhichOneof("response") == "request_headers":
            reply = await self._reply()
        took_s = time.monotonic() - started
        if reply.WhichOneof("response") == "immediate_response":
            answer = reply.immediate_response
            headers = {o.header.key: o.header.raw_value.decode() for o in answer.headers.set_headers}
            return Verdict(answer.status.code, headers, answer.body, took_s)
        changed = reply.request_body.response
        body = changed.body_mutation.body if changed.HasField("body_mutation") else body
        return Verdict(200, {}, body, took_s)

    async def head(self, status=200, content_type="application/json", **headers):
        """The head of the upstream's answer."""
        fields = {":status": str(status), "content-type": content_type}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        await self._send(pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=_map(fields))))
        await self._reply()

    async def piece(self, data, *, end=False):
        """A piece of the answer; what the client gets for it."""
        await self._send(pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end)))
        return _passed(await self._reply(), data)

    async def pieces(self, all_of_them):
        """All pieces of an answer, sent before the first is answered, and its end."""
        for n, data in enumerate(all_of_them, 1):
            end = n == len(all_of_them)
            await self._send(pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end)))
        got = b"".join([_passed(await self._reply(), data) for data in all_of_them])
        await self._end()
        return got

    async def answer(self, answer):
        """A whole answer, see upstream.py."""
        await self.head(**answer.head)
        return await self.pieces(answer.pieces)

    def leave(self):
        """The client is gone: Envoy resets the stream."""
        self._call.cancel()

    async def _end(self):
        try:
            await self._call.done_writing()
            await self._call.read()
        except _BROKEN:
            pass  # all was answered: what the replica says then, nobody hears
        finally:
            self._call.cancel()

    async def _send(self, message):
        try:
            await self._call.write(message)
        except _BROKEN as error:
            raise BrokenError(repr(error)) from error
        except asyncio.CancelledError:
            raise self._gone() from None

    async def _reply(self):
        try:
            reply = await self._call.read()
        except _BROKEN as error:
            raise BrokenError(repr(error)) from error
        except asyncio.CancelledError:
            raise self._gone() from None
        if reply is grpc.aio.EOF:
            raise BrokenError("the stream ended")
        return reply

    def _gone(self):
        """What a cancellation means: of the call, that it is broken; of this task, what it says."""
        mine = asyncio.current_task().cancelling()
        return asyncio.CancelledError() if mine else BrokenError("cancelled")


_BROKEN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)


def _passed(reply, data):
    """What becomes of a piece."""
    if reply.WhichOneof("response") != "response_body":
        raise BrokenError(f"{reply.WhichOneof('response')} for a piece of the answer")
    mutation = reply.response_body.response.body_mutation
    match mutation.WhichOneof("mutation"):
        case "body":
            return mutation.body
        case "clear_body":
            return b""
        case _:
            return data


def _map(headers):
    return pb.HeaderMap(headers=[pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in headers.items()])


def _struct(values):
    made = Struct()
    made.update(values)
    return made


def _head(caller, request_id, method, path, *, end):
    headers = {":method": method, ":path": path, "x-request-id": request_id, "content-type": "application/json"}
    claims = {"sub": caller.account, "tenant": caller.tenant}
    return pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=_map(headers), end_of_stream=end),
        metadata_context=pb.Metadata(filter_metadata={_JWT: _struct({"payload": claims})}),
        attributes={_ATTRIBUTES: _struct({"source.address": f"{caller.address}:4321"})},
    )
