"""The settings of the gRPC server: where it listens, for whom, and what one process keeps for all of them."""

from typing import Self

from pydantic import Field, model_validator

from extproc.settings.types import Address, FilePath, Names, Seconds, Section, is_local


class TLSSettings(Section):
    """mTLS of the gRPC server: all four, or none. Files that are replaced count from the next connection on."""

    certificate_file: FilePath | None = Field(default=None, description="The server's certificate chain, PEM.")
    key_file: FilePath | None = Field(default=None, description="Its private key, PEM.")
    client_ca_file: FilePath | None = Field(
        default=None, description="Certificate authorities that clients' certificates are verified against, PEM."
    )
    allowed_sans: Names = Field(
        default=(),
        description="Names of which a client's certificate must have one, exactly: SPIFFE URIs or DNS names.",
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
    """The gRPC server."""

    address: Address = Field(
        default="127.0.0.1:50051", description="Where ext_proc, rate limits and gRPC health are served."
    )
    max_body_bytes: int = Field(
        default=4 << 20,
        ge=1024,
        le=64 << 20,
        description="Largest request body, in bytes. Envoy's `buffer` filter needs the same.",
    )
    max_streams: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Most ext_proc streams at once, over all connections.",
    )
    max_buffered_bytes: int = Field(
        default=64 << 20,
        ge=1024,
        le=64 << 30,
        description="Bytes of bodies that all streams together keep; then 503. Two largest bodies always fit.",
    )
    request_timeout_s: Seconds = Field(
        default=30.0, description="How long a stream may take for its whole request; then 408."
    )
    idle_timeout_s: Seconds = Field(
        default=3600.0,
        description="How long a stream may be silent after that: model servers may think for long.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Whether it may listen off loopback without TLS: behind a sidecar that ends the mesh's mTLS.",
    )
    tls: TLSSettings = TLSSettings()
    drain_s: Seconds = Field(default=20.0, description="How long SIGTERM waits for streams in flight.")

    @model_validator(mode="after")
    def _no_tls_on_a_file(self) -> Self:
        if self.tls.enabled and self.address.startswith("unix:"):
            raise ValueError("tls: a Unix socket has none; its file's owner is who may connect")
        return self

    def exposed(self) -> str | None:
        """What is wrong with serving so; None where nothing is. Commands that serve nothing do not mind."""
        if self.tls.enabled or self.allow_plaintext or is_local(self.address):
            return None
        return (
            f"server.address: {self.address} is open to others, in plaintext: whoever reaches it can claim any "
            "identity. Set server.tls.certificate_file, key_file, client_ca_file and allowed_sans; or "
            "server.allow_plaintext: true, behind a sidecar that ends the mesh's mTLS; or listen on 127.0.0.1 or "
            "unix:/path"
        )
