"""Serve on grpc.aio: ext_proc, rate limits, health, and a drain that loses nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.envoy.pb import tokenweir_rate_limit_pb2 as rls
from extproc.envoy.rate_limit import SERVICE as RATE_LIMIT_SERVICE
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.serving import KEEPALIVE_S, OVERHEAD_BYTES, SERVICE, UNIX, BindError, ServerOptions
from extproc.envoy.stream import Hearer
from extproc.envoy.streams import PeerGoneError, Streams
from extproc.envoy.tls import REFUSED, Callers, Certificates, TLSFilesError
from extproc.envoy.unix_socket import SocketPathError, owner_only
from extproc.http2.status import RefusedError
from extproc.observe.metrics import Metrics

Behaviour = Callable[[Any, Any], Awaitable[Any]]
"""Answer a call of grpc.aio."""

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


class _NoResets(logging.Filter):
    """Drop grpc's error that a peer reset its stream just before it got the status: its exchange is closed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


logging.getLogger("grpc._cython.cygrpc").addFilter(_NoResets())


class GrpcAioServer:
    """Serves from `start` until `stop`; takes its address with `bind`."""

    def __init__(
        self, streams: Streams, rate_limits: RateLimitServicer, options: ServerOptions, metrics: Metrics
    ) -> None:
        self._options = options
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.max_body_bytes + OVERHEAD_BYTES),
                ("grpc.max_send_message_length", options.max_body_bytes + OVERHEAD_BYTES),
                ("grpc.max_concurrent_streams", options.max_streams),
                ("grpc.so_reuseport", 0),  # a second processor on the port is a mistake, not a load balancer
                # What nobody reads yet stays with its sender but for 64 KiB: no larger windows by measurement.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_S * 1000),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        )
        callers = Callers(options.tls.allowed_sans) if options.tls is not None else None
        guard = partial(_guarded, callers, metrics) if callers is not None else _unguarded
        self._server.add_generic_rpc_handlers(
            (_process_handler(streams, guard), rate_limit_handler(rate_limits, guard))
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self) -> str:
        """Takes the address; nothing is answered yet. Returns it with its real port. Raises `BindError`."""
        address = self._options.address
        try:
            if address.startswith(UNIX):
                with owner_only(Path(address.removeprefix(UNIX))):
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
        return int(self._server.add_secure_port(address, _credentials(Certificates(self._options.tls))))

    async def start(self) -> None:
        """Serves, and reports itself healthy."""
        for service in ("", SERVICE, RATE_LIMIT_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new streams, lets the ones in flight finish, cancels what is left after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.shield(self._server.stop(grace_s))


class _Channel:
    """Carry one stream over a call of grpc.aio, which sends nothing without a wait."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._unsent = b""

    def take(self) -> None:
        """Return None: what is here is not known."""

    async def read(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    def hand_over(self, hearer: Hearer) -> None:
        """Leave all messages to `read`."""

    def send(self, message: bytes) -> bool:
        self._unsent = message
        return False

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        return self.send(b"".join(parts))

    async def drained(self) -> None:
        message, self._unsent = self._unsent, b""
        try:
            if message:
                await self._context.write(message)
        except grpc.aio.InternalError:
            raise PeerGoneError from None


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials for a server that takes no client without a certificate of the CA."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        pem = certificates.pem
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if certificates.refresh() else None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, require_client_authentication=True)


def _unguarded(behaviour: Behaviour) -> Behaviour:
    return behaviour


def _guarded(callers: Callers, metrics: Metrics, behaviour: Behaviour) -> Behaviour:
    """The same for callers that may call. Health is not guarded so: any certificate of the CA will do."""

    async def guarded(request: Any, context: Any) -> Any:
        peer = context.auth_context()
        if not callers.allows(_texts(peer, "peer_uri"), _texts(peer, "peer_dns")):
            metrics.stream_fault("caller")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSED)
        return await behaviour(request, context)

    return guarded


def _texts(peer: Any, name: str) -> list[str]:
    return [value.decode("utf-8", "replace") for value in peer.get(name, ())]


def _process_handler(streams: Streams, guard: Callable[[Behaviour], Behaviour]) -> grpc.GenericRpcHandler:
    async def process(_requests: Any, context: Any) -> None:
        try:
            await streams.serve(_Channel(context), context.invocation_metadata() or ())
        except RefusedError as refused:
            await context.abort(_CODES[refused.status], refused.message)

    method = grpc.stream_stream_rpc_method_handler(guard(process))
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})


def rate_limit_handler(
    servicer: RateLimitServicer, guard: Callable[[Behaviour], Behaviour] = _unguarded
) -> grpc.GenericRpcHandler:
    """Return what a gRPC server needs to serve `ShouldRateLimit`; `guard` decides who may call."""

    async def ask(request: rls.RateLimitRequest, context: Any) -> rls.RateLimitResponse:
        try:
            return await servicer.should_rate_limit(request)
        except RefusedError as refused:
            await context.abort(_CODES[refused.status], refused.message)
            raise AssertionError("abort has raised") from None

    method = grpc.unary_unary_rpc_method_handler(
        guard(ask),
        request_deserializer=rls.RateLimitRequest.FromString,
        response_serializer=rls.RateLimitResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(RATE_LIMIT_SERVICE, {"ShouldRateLimit": method})
