"""Declare the settings of the gRPC server: address, clients, and bounds of one process."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from extproc.core.request.buffers import MAX_BODY_BYTES, MESSAGE_TIMEOUT_S
from extproc.settings.types import (
    Address,
    FilePath,
    Names,
    PathPatterns,
    Seconds,
    Section,
    SteeringNames,
    is_local,
)

# So many tenants at their cap fill a process: one alone leaves half of it to others.
_TENANTS_TO_FILL: Final = 2


class TLSSettings(Section):
    """Configure mTLS of the gRPC server: set all four, or none. Replaced files apply to the next connection."""

    certificate_file: FilePath | None = Field(default=None, description="The server's certificate chain, PEM.")
    key_file: FilePath | None = Field(default=None, description="Its private key, PEM.")
    client_ca_file: FilePath | None = Field(
        default=None, description="Certificate authorities that clients' certificates are verified against, PEM."
    )
    allowed_sans: Names = Field(
        default=(),
        description="Names, compared exactly. A client's certificate must have one: SPIFFE URIs or DNS names.",
    )

    @property
    def enabled(self) -> bool:
        return self.certificate_file is not None

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        files = {name: getattr(self, name) for name in ("certificate_file", "key_file", "client_ca_file")}
        missing = [name for name, value in files.items() if value is None]
        if not self.allowed_sans:
            missing.append("allowed_sans")
        if missing and len(missing) <= len(files):
            raise ValueError(
                f"set {' and '.join(missing)} too: a channel is mutually authenticated, or not at all"
            )
        return self


class ServerSettings(Section):
    """Configure the gRPC server."""

    address: Address = Field(
        default="127.0.0.1:50051", description="Address of ext_proc, rate limits and gRPC health."
    )
    transport: Literal["grpc", "native"] = Field(
        default="native",
        description="Carrier of Envoy's calls: `native`, an HTTP/2 server of our own, or `grpc` (grpc.aio).",
    )
    max_body_bytes: int = Field(
        default=MAX_BODY_BYTES,
        ge=1024,
        le=64 << 20,
        description="Largest request body, in bytes. Envoy's `buffer` filter needs the same.",
    )
    message_timeout_s: float = Field(
        default=MESSAGE_TIMEOUT_S,
        ge=0.5,
        le=300,
        description="Envoy's `message_timeout`, in seconds. A body that is not read in 0.8 of it gets a 503.",
    )
    max_streams: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Most ext_proc streams at once, over all connections.",
    )
    max_in_flight_per_tenant: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Most requests of one tenant at once, per process; then 429. null: half of max_streams.",
    )
    max_buffered_bytes: int = Field(
        default=64 << 20,
        ge=1024,
        le=64 << 30,
        description="Bytes of bodies of up to 1 MiB that all streams together keep; then 503.",
    )
    max_large_buffered_bytes: int = Field(
        default=160 << 20,
        ge=1024,
        le=64 << 30,
        description="The same for larger bodies; a tenant has half. Two of max_body_bytes always fit.",
    )
    body_readers: int = Field(
        default=2,
        ge=0,
        le=16,
        description="Processes that read large bodies, about 30 MiB each; 0: the event loop reads them.",
    )
    allowed_parameters: SteeringNames = Field(
        default=(),
        description="Parameters and headers that steer a model server, such as priority, which callers may set.",
    )
    unmetered_paths: PathPatterns = Field(
        default=(),
        description="Paths to which POST passes unmetered, such as /v1/vector_stores*; `*` is any text.",
    )
    request_timeout_s: Seconds = Field(
        default=30.0, description="Seconds that a stream may take for its whole request; then 408."
    )
    idle_timeout_s: Seconds = Field(
        default=3600.0,
        description="Seconds that a stream may be silent after its request. Model servers may take long.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Allow an address outside of loopback without TLS, behind a sidecar that ends mTLS.",
    )
    tls: TLSSettings = TLSSettings()
    drain_s: Seconds = Field(default=20.0, description="Seconds that open streams have left after SIGTERM.")

    @property
    def tenant_cap(self) -> int:
        """Return the most requests of one tenant at once, in one process."""
        return self.max_in_flight_per_tenant or max(1, self.max_streams // _TENANTS_TO_FILL)

    @model_validator(mode="after")
    def _no_tls_on_a_file(self) -> Self:
        if self.tls.enabled and self.address.startswith("unix:"):
            raise ValueError("tls: not possible on a Unix socket; the owner of its file may connect")
        return self

    def exposed(self) -> str | None:
        """Return the problem if the server would be open to other machines in plaintext; else None.

        Only processes that serve ask for it.
        """
        if self.tls.enabled or self.allow_plaintext or is_local(self.address):
            return None
        return (
            f"server.address: {self.address} is open to others, in plaintext: whoever reaches it can claim any "
            "identity. Set server.tls.certificate_file, key_file, client_ca_file and allowed_sans; or "
            "server.allow_plaintext: true, behind a sidecar that ends the mesh's mTLS; or listen on 127.0.0.1 or "
            "unix:/path"
        )
