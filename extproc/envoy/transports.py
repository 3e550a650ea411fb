"""Choose the transport that carries Envoy's calls."""

from enum import StrEnum

from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.serving import Server, ServerOptions
from extproc.envoy.streams import Streams
from extproc.observe.metrics import Metrics


class Transport(StrEnum):
    """Name a transport: grpc.aio, or our own."""

    GRPC = "grpc"
    NATIVE = "native"


def build_server(
    transport: Transport,
    streams: Streams,
    rate_limits: RateLimitServicer,
    options: ServerOptions,
    metrics: Metrics,
) -> Server:
    """Build a server on a transport. It has no address yet."""
    if transport is Transport.NATIVE:
        from extproc.envoy.native_server import NativeServer

        return NativeServer(streams, rate_limits, options, metrics)
    from extproc.envoy.server import GrpcAioServer

    return GrpcAioServer(streams, rate_limits, options, metrics)
