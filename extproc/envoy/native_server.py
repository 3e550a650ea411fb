"""Serve on our own transport: ext_proc, rate limits, health, and a drain that loses nothing."""

import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from extproc.envoy.health import SERVICE as HEALTH_SERVICE
from extproc.envoy.health import Health
from extproc.envoy.pb import tokenweir_rate_limit_pb2 as rls
from extproc.envoy.rate_limit import SERVICE as RATE_LIMIT_SERVICE
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.serving import KEEPALIVE_S, OVERHEAD_BYTES, SERVICE, UNIX, BindError, ServerOptions
from extproc.envoy.streams import Streams
from extproc.envoy.tls import REFUSED, Callers, Certificates, TLSFilesError
from extproc.envoy.unix_socket import SocketPathError, owner_only
from extproc.http2.call import Call
from extproc.http2.head import Handler
from extproc.http2.inbox import joined
from extproc.http2.limits import Limits
from extproc.http2.listening import listen_at, listen_on
from extproc.http2.server import GrpcServer
from extproc.http2.status import RefusedError, Status
from extproc.observe.metrics import Metrics

# Messages of all peers together that no stream has taken yet; two of the largest always fit.
_HELD_BYTES: Final = 64 << 20


class NativeServer:
    """Serve from `start` until `stop`; take the address with `bind`."""

    def __init__(
        self, streams: Streams, rate_limits: RateLimitServicer, options: ServerOptions, metrics: Metrics
    ) -> None:
        self._streams = streams
        self._rate_limits = rate_limits
        self._options = options
        self._metrics = metrics
        self._callers = Callers(options.tls.allowed_sans) if options.tls is not None else None
        self._health = Health()
        self._sockets: list[socket.socket] = []
        self._server: GrpcServer | None = None
        self._certificates: Certificates | None = None

    def bind(self) -> str:
        """Take the address; nothing is answered yet. Return it with its real port. Raise `BindError`."""
        address = self._options.address
        try:
            if self._options.tls is not None:
                self._certificates = Certificates(self._options.tls)
            if address.startswith(UNIX):
                path = Path(address.removeprefix(UNIX))
                with owner_only(path):
                    self._sockets = [listen_at(str(path))]
                return address
            host, _, port = address.rpartition(":")
            self._sockets = listen_on(host, int(port))
        except SocketPathError as error:
            raise BindError(f"server.address: can't listen on {address}: {error}") from error
        except TLSFilesError as error:
            raise BindError(f"server.tls: {error}") from error
        except OSError as error:
            raise BindError(f"server.address: can't listen on {address}; is it in use?") from error
        return f"{host}:{self._sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Serve, and report itself healthy."""
        certificates = self._certificates
        server = GrpcServer(
            self._routes(),
            _limits(self._options),
            tls=certificates.context if certificates is not None else None,
            on_fault=self._metrics.connection_fault,
        )
        self._metrics.watch_unread(lambda: server.held_bytes)
        for service in ("", SERVICE, RATE_LIMIT_SERVICE):
            self._health.set(service, serving=True)
        await server.start(self._sockets)
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let the ones in flight finish, cancel what is left after `grace_s`."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
        for each in self._sockets:
            each.close()

    def _routes(self) -> dict[str, Handler]:
        def ask(request: rls.RateLimitRequest) -> Awaitable[rls.RateLimitResponse]:
            return self._rate_limits.should_rate_limit(request)

        return {
            f"/{SERVICE}/Process": self._process,
            f"/{RATE_LIMIT_SERVICE}/ShouldRateLimit": self._guarded(_unary(rls.RateLimitRequest.FromString, ask)),
            f"/{HEALTH_SERVICE}/Check": _unary(self._health.request, self._health.check),
            f"/{HEALTH_SERVICE}/List": _unary(self._health.list_request, self._health.list),
            f"/{HEALTH_SERVICE}/Watch": self._watch,
        }

    def _process(self, call: Call) -> Coroutine[None, None, None]:
        self._check(call)
        return self._streams.serve(call, call.head.metadata)

    async def _watch(self, call: Call) -> None:
        """Tell of each change, until the server stops."""
        request = self._health.request(await _only_message(call))
        async for answer in self._health.watch(request):
            await call.write(answer.SerializeToString())

    def _guarded(self, handler: Handler) -> Handler:
        """Return the same for callers that may call. Any certificate of the CA may ask for health."""

        async def guarded(call: Call) -> None:
            self._check(call)
            await handler(call)

        return guarded

    def _check(self, call: Call) -> None:
        if self._callers is not None and not self._callers.allows(call.peer.uris, call.peer.hosts):
            self._metrics.stream_fault("caller")
            raise RefusedError(Status.PERMISSION_DENIED, REFUSED)


def _unary(parse: Callable[[bytes], Any], answer: Callable[[Any], Awaitable[Message]]) -> Handler:
    """Return the handler of a method with one message in and one out."""

    async def handler(call: Call) -> None:
        message = await _only_message(call)
        try:
            request = parse(message)
        except DecodeError:
            raise RefusedError(Status.INTERNAL, "The message can't be read.") from None
        await call.write((await answer(request)).SerializeToString())

    return handler


async def _only_message(call: Call) -> bytes:
    message = await call.read()
    if message is None:
        raise RefusedError(Status.INTERNAL, "There is no message.")
    return joined(message)


def _limits(options: ServerOptions) -> Limits:
    message_bytes = options.max_body_bytes + OVERHEAD_BYTES
    return Limits(
        streams=options.max_streams,
        message_bytes=message_bytes,
        held_bytes=max(_HELD_BYTES, 2 * message_bytes),
        keepalive_s=KEEPALIVE_S,
        keepalive_timeout_s=KEEPALIVE_S,
    )
