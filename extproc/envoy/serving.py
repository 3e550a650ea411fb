"""Define what the transports have in common: options, names, and the error of an address that is taken."""

from dataclasses import dataclass
from typing import Final, Protocol

from extproc.envoy.tls import TLSOptions

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
# Headers, attributes and metadata beside a body.
OVERHEAD_BYTES: Final = 1 << 20
# An Envoy whose host is gone says nothing. Its streams, and their holds, would stay for hours.
KEEPALIVE_S: Final = 30
UNIX: Final = "unix:"


class BindError(Exception):
    """The address can't be listened on."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`address` is host:port or unix:/path; sizes in bytes. Without `tls` the channel is plaintext."""

    address: str
    max_body_bytes: int
    max_streams: int
    tls: TLSOptions | None = None


class Server(Protocol):
    """Serve from `start` until `stop`."""

    def bind(self) -> str:
        """Take the address; nothing is answered yet. Return it with its real port. Raise `BindError`."""

    async def start(self) -> None:
        """Serve, and report itself healthy."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams, let the ones in flight finish, cancel what is left after `grace_s`."""
