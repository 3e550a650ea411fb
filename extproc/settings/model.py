"""Declares the processor's settings, their bounds and defaults.

docs/settings.md lists every field, with its bounds (a test compares).
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.fields import FieldError
from extproc.core.quota.limits import Limit, Unit, Window
from extproc.core.quota.policies import DocumentMode, limits_from
from extproc.core.rejections import DeniedStyle
from extproc.settings.costs import CostSettings, ModelList
from extproc.settings.server import ServerSettings
from extproc.settings.types import (
    CheckedProxyURL,
    CheckedWebhookSecret,
    CheckedWebhookURL,
    DatabaseName,
    Entries,
    Header,
    HostAndPort,
    Level,
    MongoURL,
    Names,
    Pattern,
    RedisURL,
    Seconds,
    Section,
    Thresholds,
    Tokens,
    Windows,
    Zone,
)
from extproc.stores.urls import StoreURL


class MetricsSettings(Section):
    """The Prometheus endpoint."""

    address: HostAndPort = Field(default="127.0.0.1:9464", description="Where /metrics is served.")
    usage_series: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=200,
        description="Pairs of tenant and model whose tokens are counted apart, per process; 0: none.",
    )


class LogSettings(Section):
    level: Level = Field(default="INFO", description="Log lines of this level and above are written.")


class RedisSettings(Section):
    """Counters, reservations, and entries that wait for the ledger."""

    url: RedisURL = Field(
        default=StoreURL("redis://127.0.0.1:6379/0"),
        description="Where counters and reservations are; memory:// only for one replica, for trials.",
    )
    max_connections: int = Field(
        default=64, ge=1, le=10_000, description="Connections at most, per process and server."
    )
    max_waiting: int = Field(
        default=200_000,
        ge=1_000,
        le=10_000_000,
        description="While so many entries of a partition (of 16) wait for the ledger, its tenants get 503; about "
        "0.9 KB each.",
    )


class MongoSettings(Section):
    """Limits, ledger and daily usage."""

    url: MongoURL = Field(
        default=StoreURL("mongodb://127.0.0.1:27017"),
        description="Where limits, ledger and usage are; memory:// is gone with the process.",
    )
    database: DatabaseName = Field(default="modelToken", description="The database's name.")
    timeout_s: Seconds = Field(default=5.0, description="Bound of every call.")


class IdentitySettings(Section):
    """Where tenant and service account come from. All sources must be verified ones."""

    jwt_namespace: str = Field(
        default="envoy.filters.http.jwt_authn", description="Dynamic metadata namespace of the verified JWT."
    )
    jwt_payload_key: str = Field(
        default="payload", description="Key in that namespace; `payload_in_metadata` of jwt_authn."
    )
    service_account_claim: str = Field(
        default="sub", min_length=1, description="Claim that names the service account."
    )
    tenant_claim: str | None = Field(default="tenant", description="Claim that names the tenant.")
    service_account_header: Header | None = Field(
        default=None,
        description="Header that the mesh owns (the talk's is oc_sa): set it only where clients' copies go.",
    )
    tenant_header: Header | None = Field(default=None, description="As service_account_header, for the tenant.")
    tenant_pattern: Pattern | None = Field(
        default=None,
        description="Regular expression that finds the tenant in the service account, where nothing names it.",
    )
    peer_principals: bool = Field(
        default=False,
        description="Whether a caller whom nothing else names is named by its mTLS principal (at sidecars).",
    )
    gateway_principals: Names = Field(
        default=(),
        description="Principals that only hand requests on: they name nobody; their X-Forwarded-For counts.",
    )
    ipv6_prefix: int = Field(
        default=64,
        ge=1,
        le=128,
        description="Bits of an IPv6 address that tell one client from another; 128: each address is a client.",
    )


class DefaultLimitSettings(Section):
    """What binds a tenant that nobody configured, and one whose document sets no limit of its own."""

    sa_limit: Tokens | None = Field(default=100_000, description="Tokens a day per service account.")
    ip_limit: Tokens | None = Field(default=None, description="Tokens a day per service account + client IP.")
    ratelimit_each_sa_per_minute: Tokens | None = Field(
        default=None, description="Requests a minute per service account."
    )
    ratelimit_ip_per_minute: Tokens | None = Field(default=None, description="Requests a minute per client IP.")
    limits: Entries = Field(default=(), description="Further limits, as `limits` of a tenant's document.")
    mode: DocumentMode = Field(
        default=DocumentMode.RESERVE, description="Mode of the ones above; those in `limits` may have their own."
    )
    timezone: Zone = Field(
        default="UTC", description="IANA time zone of windows, where a tenant has none of its own."
    )
    on_store_failure: StoreFailure = Field(
        default=StoreFailure.DENY,
        description="While Redis can't be asked. deny: 503. allow: see reservation.allow_share; needs a spool.",
    )

    @model_validator(mode="after")
    def _binds(self) -> Self:
        if not any(limit.unit is Unit.TOKENS for limit in self.parsed()):
            raise ValueError("set sa_limit or ip_limit: an unknown tenant must have some limit on tokens")
        return self

    def parsed(self) -> tuple[Limit, ...]:
        """The limits that these settings stand for. Raises `ValueError`."""
        document = {
            "sa_limit": self.sa_limit,
            "ip_limit": self.ip_limit,
            "ratelimitEachSAPerMinute": self.ratelimit_each_sa_per_minute,
            "ratelimitIPPerMinute": self.ratelimit_ip_per_minute,
            "mode": self.mode.value,
            "limits": list(self.limits),
        }
        try:
            return limits_from(document)
        except FieldError as error:
            raise ValueError(str(error)) from None


class LimitsSettings(Section):
    """How limits are followed."""

    default: DefaultLimitSettings = DefaultLimitSettings()
    poll_s: Annotated[float, Field(ge=0.1, le=4.0)] = Field(
        default=2.0,
        description="Seconds between reads where there is no change stream. Below 5 s, the promised delay.",
    )
    refresh_s: Seconds = Field(default=30.0, description="Seconds between reads where there is one.")


class AlertSettings(Section):
    """What is told when a bucket's usage reaches a part of its limit."""

    thresholds: Thresholds = Field(
        default=(80, 95, 100),
        description="Percentages of a limit that alert, once per bucket and window. Empty: none do.",
    )
    windows: Windows = Field(
        default=tuple(Window), description="Windows whose limits alert; per-minute ones may alert every minute."
    )
    webhook_url: CheckedWebhookURL | None = Field(
        default=None, description="Where alerts are posted as signed JSON; null: only metric and log line."
    )
    webhook_secret: CheckedWebhookSecret | None = Field(
        default=None,
        description="Signs the POSTs; needed where webhook_url is set.",
    )
    webhook_timeout_s: Annotated[float, Field(ge=0.1, le=60.0)] = Field(
        default=5.0, description="Bound of one attempt. Attempts go on for an hour."
    )
    webhook_proxy: CheckedProxyURL | None = Field(
        default=None, description="HTTP proxy to the webhook. HTTP_PROXY and its kin are not read."
    )

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ValueError("set webhook_secret too: receivers must be able to tell alerts from forgeries")
        return self


class DeniedSettings(Section):
    style: DeniedStyle = Field(
        default=DeniedStyle.OPENAI,
        description="openai: 429 with an error object. talk: 400 with a line of text.",
    )
    record: bool = Field(default=True, description="Whether denied requests get a ledger entry too.")


class ReservationSettings(Section):
    decision_timeout_s: Annotated[float, Field(ge=0.005, le=0.5)] = Field(
        default=0.1, description="Seconds that a decision may take; then 503."
    )
    ttl_s: Seconds = Field(
        default=900.0, description="Seconds after which a reservation that nobody ended is charged as held."
    )
    expiry_interval_s: Seconds = Field(default=5.0, description="Seconds between looks for such reservations.")
    allow_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1,
        description="Part of a limit that a replica may admit by itself, a window (on_store_failure: allow).",
    )


class SpoolSettings(Section):
    """What is admitted without Redis is written to local disk first, and what can't be delivered at the end."""

    directory: Path | None = Field(
        default=None, description="Where; a directory of Tokenweir's own. Without one nothing is admitted so."
    )
    max_bytes: int = Field(
        default=64 << 20, ge=1 << 16, le=1 << 40, description="Beyond so many bytes nothing more is admitted so."
    )


class Settings(Section):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    redis: RedisSettings = RedisSettings()
    mongo: MongoSettings = MongoSettings()
    identity: IdentitySettings = IdentitySettings()
    limits: LimitsSettings = LimitsSettings()
    cost: CostSettings = CostSettings()
    models: ModelList = Field(default=(), description="What differs for single models; see below the tables.")
    denied: DeniedSettings = DeniedSettings()
    alerts: AlertSettings = AlertSettings()
    reservation: ReservationSettings = ReservationSettings()
    spool: SpoolSettings = SpoolSettings()
