"""Answer the health service of gRPC (grpc.health.v1) for a transport that has none of its own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from grpc_health.v1 import health_pb2 as pb

from extproc.http2.status import RefusedError, Status

SERVICE: Final = "grpc.health.v1.Health"
_Answer = pb.HealthCheckResponse


class Health:
    """Hold the health of services, "" for the whole server, and tell whoever watches."""

    request = staticmethod(pb.HealthCheckRequest.FromString)
    list_request = staticmethod(pb.HealthListRequest.FromString)

    def __init__(self) -> None:
        self._services: dict[str, int] = {}
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, service: str, *, serving: bool) -> None:
        """Set the health of a service."""
        self._services[service] = _Answer.SERVING if serving else _Answer.NOT_SERVING
        self._tell()

    def stop(self) -> None:
        """Report that nothing is served any more. Those who watch are told, and then let go."""
        self._services = dict.fromkeys(self._services, _Answer.NOT_SERVING)
        self._stopping = True
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Answer `Check`. Raise `RefusedError` for a service that is not known."""
        if request.service not in self._services:
            raise RefusedError(Status.NOT_FOUND, "There is no such service.")
        return _Answer(status=self._services[request.service])

    async def list(self, _request: pb.HealthListRequest) -> pb.HealthListResponse:
        """Answer `List`."""
        return pb.HealthListResponse(
            statuses={name: _Answer(status=status) for name, status in self._services.items()}
        )

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Answer `Watch`: the health now, and whenever it changes."""
        told: int | None = None
        while True:
            changed = self._changed
            status = self._services.get(request.service, _Answer.SERVICE_UNKNOWN)
            if status != told:
                told = status
                yield _Answer(status=status)
            if self._stopping:
                return
            await changed.wait()
