"""Declare the settings of the admin API, which is a process of its own."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from extproc.given.documents import GivenDocumentError, document
from extproc.settings.types import FilePath, HostAndPort, Seconds, Section, is_local, listed
from extproc.settings.webhook_urls import plain_url

RoleName = Literal["viewer", "team-lead", "admin"]
# Asymmetric ones only: with a symmetric one, whoever can verify a token could also make one.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
_MAX_ROLES: Final = 100


def _mapped(value: object) -> object:
    """Parse the mapping of an environment variable, as YAML or JSON; return other values unchanged."""
    if not isinstance(value, str):
        return {} if value is None else value
    try:
        return document(value) or {}
    except GivenDocumentError:
        raise ValueError("must be a mapping, as YAML or JSON") from None


RoleMapping = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=256)], RoleName],
    Field(max_length=_MAX_ROLES),
    BeforeValidator(_mapped),
]
Algorithms = Annotated[tuple[Algorithm, ...], Field(min_length=1), BeforeValidator(listed)]
ClaimName = Annotated[str, Field(min_length=1, max_length=256)]


class JWTSettings(Section):
    """Accept JWTs of one issuer. Set issuer, audience, and one of jwks_file and jwks_url; or none of them."""

    issuer: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None, description="Claim `iss` of accepted tokens, compared exactly. null: no JWT is accepted."
    )
    audience: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None, description="Name that the claim `aud` must contain."
    )
    jwks_file: FilePath | None = Field(
        default=None, description="File with the issuer's public keys, a JWKS; read again every 10 minutes."
    )
    jwks_url: Annotated[str, AfterValidator(plain_url)] | None = Field(
        default=None, description="URL of the issuer's public keys. HTTP_PROXY and similar variables are not read."
    )
    algorithms: Algorithms = Field(
        default=("RS256", "ES256"), description="Accepted signatures. Symmetric ones and `none` can't be."
    )
    role_claim: ClaimName = Field(
        default="roles", description="Claim that names roles; dots lead into objects: realm_access.roles."
    )
    roles: RoleMapping = Field(
        default={},
        description="Role for each value of that claim. Of several the highest counts; without one: 403.",
    )
    tenants_claim: ClaimName = Field(
        default="tenants", description="Claim with the tenants of a team lead, or of a viewer of some tenants."
    )
    leeway_s: Annotated[float, Field(ge=0, le=300)] = Field(
        default=30.0, description="Seconds by which the clocks of issuer and Tokenweir may differ."
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = {"issuer": self.issuer, "audience": self.audience, "jwks_file or jwks_url": self._keys()}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"set {' and '.join(missing)} too")
        if self.jwks_file is not None and self.jwks_url is not None:
            raise ValueError("set jwks_file or jwks_url, not both")
        if not missing and not self.roles:
            raise ValueError("set roles too: without them no token has a role")
        return self

    def _keys(self) -> str | None:
        return self.jwks_file or self.jwks_url


class AdminTLSSettings(Section):
    """Configure TLS of the admin API: set both, or none."""

    certificate_file: FilePath | None = Field(
        default=None, description="The server's certificate chain, PEM. A replaced file applies within 10 s."
    )
    key_file: FilePath | None = Field(default=None, description="Its private key, PEM.")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("set certificate_file and key_file, or none of them")
        return self


class AdminSettings(Section):
    """Configure the admin API (`tokenweir admin serve`)."""

    address: HostAndPort = Field(default="127.0.0.1:8460", description="Address of the admin API.")
    allow_plaintext: bool = Field(
        default=False,
        description="Allow an address outside of loopback without TLS, behind a sidecar that ends it.",
    )
    metrics_address: HostAndPort | None = Field(
        default=None, description="Address of this process's own /metrics, without a token. null: none."
    )
    tls: AdminTLSSettings = AdminTLSSettings()
    jwt: JWTSettings = JWTSettings()
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=600, description="Requests of one caller per minute; then 429."
    )
    failures_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=30,
        description="Refused tokens per minute from one address; then 429 for tokens that were not good lately.",
    )
    forwarded_hops: Annotated[int, Field(ge=0, le=10)] = Field(
        default=0,
        description="Proxies in front that add to X-Forwarded-For; 0: the connection's address counts.",
    )
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=256, description="Connections at once; then 503."
    )
    max_replayed_entries: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        default=200_000, description="Ledger entries that one simulation may replay."
    )
    max_replay_s: Seconds = Field(default=20.0, description="Seconds that one simulation may take.")
    drain_s: Seconds = Field(default=10.0, description="Seconds that open requests have left after SIGTERM.")

    def exposed(self) -> str | None:
        """Return the problem if tokens would pass in plaintext between machines; else None."""
        if self.tls.certificate_file is not None or self.allow_plaintext or is_local(self.address):
            return None
        return (
            f"admin.address: {self.address} is open to others, in plaintext: tokens could be read. Set "
            "admin.tls.certificate_file and key_file; or admin.allow_plaintext: true, behind a sidecar that ends "
            "TLS; or listen on 127.0.0.1"
        )
