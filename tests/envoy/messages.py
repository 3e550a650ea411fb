"""What Envoy sends, and a stand-in for accounting that remembers what it was told."""

import json
from datetime import UTC, datetime

from google.protobuf.struct_pb2 import Struct

from extproc.core.quota.costs import Cost
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Bucket, Interval, Limit, Scope, Window
from extproc.core.quota.reservation import Admitted, Denied, Reservation, Unavailable, admitted, denied
from extproc.core.quota.reservation import Count as Tokens
from extproc.core.quota.routes import NO_ROUTE
from extproc.core.request.endpoints import Endpoint
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {
    "choices": [{"message": {"content": "pong"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def header_map(headers):
    """`headers` as pairs, as Envoy sends them: in raw_value."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    return pb.HeaderMap(headers=[pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in pairs])


def struct(values):
    made = Struct()
    made.update(values)
    return made


def claims(payload, namespace="envoy.filters.http.jwt_authn"):
    return pb.Metadata(filter_metadata={namespace: struct({"payload": payload})})


def request_head(headers=(), *, end=False, payload=None, address="10.0.0.1:4321", path="/v1/chat/completions"):
    default = [(":method", "POST"), (":path", path), ("x-request-id", "id-1")]
    return pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=header_map([*default, *headers]), end_of_stream=end),
        metadata_context=claims(payload if payload is not None else {"sub": "sa", "tenant": "acme"}),
        attributes={"envoy.filters.http.ext_proc": struct({"source.address": address})},
    )


def request_body(data=CHAT, *, end=True):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end))


def response_head(status=200, content_type="application/json", *, end=False):
    headers = {":status": str(status), "content-type": content_type}
    return pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=header_map(headers), end_of_stream=end))


def response_body(data=ANSWER, *, end=True):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end))


EXCHANGE = [request_head(), request_body(), response_head(), response_body()]
REPLIES = ["request_headers", "request_body", "response_headers", "response_body"]


def kinds(replies):
    return [reply.WhichOneof("response") for reply in replies]


class Books:
    """In the place of `Accounting`."""

    def __init__(self, decision=Admitted, gate=None):
        self.decision = decision
        self.gate = gate
        self.asked = []
        self.admitted = []
        self.closed = []
        self.grown = []

    async def reserve(self, ask):
        if self.gate is not None:
            await self.gate()
        self.asked.append(ask)
        if not isinstance(self.decision, type):
            return self.decision
        bucket = Bucket(Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 1000), ("sa",), Interval(0, 86_400))
        reservation = Reservation(
            id=f"r{len(self.asked)}",
            request_id=ask.request_id,
            identity=ask.identity,
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model=ask.facts.model,
            stream=ask.facts.stream,
            cost=Cost(10, 20),
            buckets=(bucket,),
            admitted_at=NOW,
            date="2026-03-01",
            deadline=NOW.timestamp() + 900,
        )
        if self.decision is Denied:
            return denied(reservation, [Tokens(999, 0)])
        self.admitted.append(reservation)
        return admitted(reservation, [Tokens(0, 0)])

    async def hit(self, hit):
        self.asked.append(hit)
        return Unavailable()

    async def inspect(self, identity, subject, route=NO_ROUTE):
        self.asked.append((identity, subject, route))
        return Insight(identity, ())

    def grow(self, reservation):
        self.grown.append(reservation)

    def close(self, reservation, settlement):
        self.closed.append((reservation, settlement))

    @property
    def ends(self):
        return [(settlement.outcome.value, settlement.reason) for _, settlement in self.closed]
