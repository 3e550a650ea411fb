"""The gRPC server: ext_proc, rate limits, health, and a drain that loses nothing."""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.rate_limit import SERVICE as RATE_LIMIT_SERVICE
from extproc.envoy.rate_limit import Behaviour, RateLimitServicer, rate_limit_handler
from extproc.envoy.servicer import GrpcServicer
from extproc.envoy.tls import Callers, Certificates, TLSFilesError, TLSOptions
from extproc.envoy.unix_socket import SocketPathError, owner_only
from extproc.observe.metrics import Metrics

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_OVERHEAD_BYTES = 1 << 20  # headers, attributes and metadata beside a body
_KEEPALIVE_MS = 30_000

_log = logging.getLogger(__name__)


class _NoResets(logging.Filter):
    """Drop grpc's error that a peer reset its stream just before it got the status: its exchange is closed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


logging.getLogger("grpc._cython.cygrpc").addFilter(_NoResets())


class BindError(Exception):
    """The address can't be listened on."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`address` is host:port or unix:/path; sizes in bytes. Without `tls` the channel is plaintext."""

    address: str
    max_body_bytes: int
    max_streams: int
    tls: TLSOptions | None = None


class Server:
    """Serves from `start` until `stop`; takes its address with `bind`."""

    def __init__(
        self, servicer: GrpcServicer, rate_limits: RateLimitServicer, options: ServerOptions, metrics: Metrics
    ) -> None:
        self._options = options
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.max_body_bytes + _OVERHEAD_BYTES),
                ("grpc.max_send_message_length", options.max_body_bytes + _OVERHEAD_BYTES),
                ("grpc.max_concurrent_streams", options.max_streams),
                ("grpc.so_reuseport", 0),  # a second processor on the port is a mistake, not a load balancer
                # What nobody reads yet stays with its sender but for 64 KiB: no larger windows by measurement.
                ("grpc.http2.bdp_probe", 0),
                # An Envoy whose host is gone says nothing. Its streams, and what they hold, would stay for hours.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        )
        callers = Callers(options.tls.allowed_sans) if options.tls is not None else None
        guard = partial(_guarded, callers, metrics) if callers is not None else None
        process: Behaviour = servicer.process
        method = grpc.stream_stream_rpc_method_handler(
            guard(process) if guard is not None else process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),
                rate_limit_handler(rate_limits, guard),
            )
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self) -> str:
        """Takes the address; nothing is answered yet. Returns it with its real port. Raises `BindError`."""
        address = self._options.address
        try:
            if address.startswith("unix:"):
                with owner_only(Path(address.removeprefix("unix:"))):
                    self._server.add_insecure_port(address)
                return address
            port = self._add_port(address)
        except RuntimeError as error:
            raise BindError(f"server.address: can't listen on {address}; is it in use?") from error
        except SocketPathError as error:
            raise BindError(f"server.address: can't listen on {address}: {error}") from error
        except TLSFilesError as error:
            raise BindError(f"server.tls: {error}") from error
        return f"{address.rpartition(':')[0]}:{port}"

    def _add_port(self, address: str) -> int:
        if self._options.tls is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, Certificates(self._options.tls).credentials()))

    async def start(self) -> None:
        """Serves, and reports itself healthy."""
        for service in ("", SERVICE, RATE_LIMIT_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new streams, lets the ones in flight finish, cancels what is left after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.shield(self._server.stop(grace_s))


def _guarded(callers: Callers, metrics: Metrics, behaviour: Behaviour) -> Behaviour:
    """The same for callers that may call. Health is not guarded so: any certificate of the CA will do."""

    async def guarded(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        if not callers.allows(context):
            metrics.stream_fault("caller")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "This client's certificate is not let in.")
        return await behaviour(request, context)

    return guarded
