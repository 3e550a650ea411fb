"""The gRPC server: ext_proc, rate limits, health, and a drain that loses nothing."""

import asyncio
import logging
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.rate_limit import SERVICE as RATE_LIMIT_SERVICE
from extproc.envoy.rate_limit import RateLimitServicer, rate_limit_handler
from extproc.envoy.servicer import GrpcServicer

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_OVERHEAD_BYTES = 1 << 20  # headers, attributes and metadata beside a body

_log = logging.getLogger(__name__)


class BindError(Exception):
    """The address can't be listened on."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`address` is host:port or unix:/path; sizes in bytes."""

    address: str
    max_body_bytes: int
    max_streams: int


class Server:
    """Serves from `start` until `stop`; takes its address with `bind`."""

    def __init__(self, servicer: GrpcServicer, rate_limits: RateLimitServicer, options: ServerOptions) -> None:
        self._options = options
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.max_body_bytes + _OVERHEAD_BYTES),
                ("grpc.max_send_message_length", options.max_body_bytes + _OVERHEAD_BYTES),
                ("grpc.max_concurrent_streams", options.max_streams),
                ("grpc.so_reuseport", 0),  # a second processor on the port is a mistake, not a load balancer
            ]
        )
        method = grpc.stream_stream_rpc_method_handler(
            servicer.process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Process": method}), rate_limit_handler(rate_limits))
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self) -> str:
        """Takes the address; nothing is answered yet. Returns it with its real port. Raises `BindError`."""
        address = self._options.address
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise BindError(f"server.address: can't listen on {address}; is it in use?") from error
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Serves, and reports itself healthy."""
        for service in ("", SERVICE, RATE_LIMIT_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new streams, lets the ones in flight finish, cancels what is left after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.shield(self._server.stop(grace_s))
