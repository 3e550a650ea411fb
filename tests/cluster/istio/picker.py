"""A second ext_proc: it stands in for the endpoint picker of an InferencePool, and changes nothing.

Like that one it takes bodies by FULL_DUPLEX_STREAMED, and answers the request's headers when it has the whole body.
"""

import asyncio
import sys
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from tests.charts.live.envoys import HOST

from .secrets import ROOT, delimited

_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_REQUEST_BODY, _RESPONSE_BODY = 3, 4  # of a ProcessingResponse


@asynccontextmanager
async def picking():
    """Yields the port of a running one."""
    (port,) = free_ports(1)

    async def ready():
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            return False
        writer.close()
        return True

    child = await start(Command("picker", (sys.executable, "-m", __name__, str(port)), ROOT), ready)
    try:
        yield port
    finally:
        await child.stop()


def patches(port):
    """Where istiod puts that of an InferencePool: behind who calls, before all that stands before the router."""
    address = {"socket_address": {"address": HOST, "port_value": port}}
    h2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    cluster = {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": h2,
        "load_assignment": {
            "cluster_name": "picker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    }
    typed = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        "processing_mode": mode,
        "message_timeout": "10s",
    }
    before = {"name": "envoy.filters.http.grpc_stats"}
    manager = {"name": "envoy.filters.network.http_connection_manager", "subFilter": before}
    return [
        {"applyTo": "CLUSTER", "match": {"context": "GATEWAY"}, "patch": {"operation": "ADD", "value": cluster}},
        {
            "applyTo": "HTTP_FILTER",
            "match": {"context": "GATEWAY", "listener": {"filterChain": {"filter": manager}}},
            "patch": {
                "operation": "INSERT_BEFORE",
                "value": {"name": "envoy.filters.http.ext_proc", "typed_config": typed},
            },
        },
    ]


async def _process(requests, context):
    waiting = []
    async for data in requests:
        request = pb.ProcessingRequest.FromString(data)
        kind = request.WhichOneof("request")
        if kind == "request_headers":
            waiting.append(delimited(1, b""))
        elif kind in ("request_body", "response_body"):
            body = getattr(request, kind)
            answer = _streamed(_REQUEST_BODY if kind == "request_body" else _RESPONSE_BODY, body)
            if kind == "response_body":
                yield answer
                continue
            waiting.append(answer)
            if body.end_of_stream:
                for each in waiting:
                    yield each
                waiting = []
        else:
            for each in waiting:
                yield each
            waiting = []
            yield delimited({"response_headers": 2, "request_trailers": 5, "response_trailers": 6}[kind], b"")


def _streamed(field, body):
    chunk = delimited(1, body.body) + (b"\x10\x01" if body.end_of_stream else b"")
    return delimited(field, delimited(1, delimited(3, delimited(3, chunk))))


async def _serve(port):
    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(_process)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Process": method}),))
    server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
