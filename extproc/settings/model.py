"""Declare the processor's settings, their bounds and defaults.

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
from extproc.settings.admin import AdminSettings
from extproc.settings.costs import CostSettings, ModelList
from extproc.settings.server import ServerSettings
from extproc.settings.types import (
    CheckedProxyURL,
    CheckedWebhookSecret,
    CheckedWebhookURL,
    DatabaseName,
    Entries,
    FilePath,
    Header,
    HostAndPort,
    Level,
    MongoURL,
    Names,
    Pattern,
    RedisURL,
    RetentionDays,
    Seconds,
    Section,
    Thresholds,
    Tokens,
    Windows,
    Zone,
)
from extproc.stores.urls import StoreURL


class MetricsSettings(Section):
    """Configure the Prometheus endpoint."""

    address: HostAndPort = Field(default="127.0.0.1:9464", description="Address of /metrics.")
    usage_series: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=200,
        description="Pairs of tenant and model whose tokens are counted separately, per process; 0: none.",
    )
    tenant_series: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=200,
        description="Tenants whose limits are shown and decisions counted separately, per process; 0: none.",
    )
    limits_interval_s: Annotated[float, Field(ge=1, le=300)] = Field(
        default=15, description="Seconds between two readings of the use of limits that is shown."
    )


class LogSettings(Section):
    level: Level = Field(default="INFO", description="Log lines of this level and above are written.")


class RedisSettings(Section):
    """Connect to the store of counters, reservations, and entries that wait for the ledger."""

    url: RedisURL = Field(
        default=StoreURL("redis://127.0.0.1:6379/0"),
        description="URL of counters and reservations; memory:// only for one replica, for trials.",
    )
    url_file: FilePath | None = Field(
        default=None,
        description="File that holds the URL, instead of `redis.url`. If it changes, the login is read again.",
    )
    max_connections: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Has no effect any more: a process has three connections per server. Kept for files of 0.1.",
    )
    max_waiting: int = Field(
        default=200_000,
        ge=1_000,
        le=10_000_000,
        description="If this many entries of a partition (of 16) wait for the ledger, its tenants get 503. "
        "An entry takes about 0.5 KB.",
    )


class MongoSettings(Section):
    """Connect to the store of limits, ledger and daily usage."""

    url: MongoURL = Field(
        default=StoreURL("mongodb://127.0.0.1:27017"),
        description="URL of limits, ledger and usage; memory:// is lost with the process.",
    )
    url_file: FilePath | None = Field(
        default=None,
        description="File that holds the URL, instead of `mongo.url`; read again if it changes.",
    )
    database: DatabaseName = Field(default="modelToken", description="Name of the database.")
    timeout_s: Seconds = Field(default=5.0, description="Timeout of every call, in seconds.")
    report_timeout_s: Seconds = Field(
        default=30.0, description="Time limit of a usage report, in seconds; other calls keep `mongo.timeout_s`."
    )
    ledger_retention_days: RetentionDays | None = Field(
        default=None,
        description="Days that ledger entries stay after their requests ended; null: for ever. Daily usage stays.",
    )


class IdentitySettings(Section):
    """Name the sources of tenant and service account. All sources must be verified."""

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
        description="Header that the mesh sets (such as oc_sa). Set it only if the mesh removes clients' copies.",
    )
    tenant_header: Header | None = Field(default=None, description="The same for the tenant.")
    tenant_pattern: Pattern | None = Field(
        default=None,
        description="Regular expression that finds the tenant in the service account if nothing names it.",
    )
    peer_principals: bool = Field(
        default=False,
        description="Name a caller by its mTLS principal if nothing else names it (at sidecars).",
    )
    gateway_principals: Names = Field(
        default=(),
        description="Principals that only forward requests: they name nobody, and their X-Forwarded-For counts.",
    )
    ipv6_prefix: int = Field(
        default=64,
        ge=1,
        le=128,
        description="Bits of an IPv6 address that identify a client; 128: each address is a client.",
    )


class DefaultLimitSettings(Section):
    """Set the limits of tenants without a document, or without limits in their document."""

    sa_limit: Tokens | None = Field(default=100_000, description="Tokens per day for each service account.")
    ip_limit: Tokens | None = Field(
        default=None, description="Tokens per day for each service account + client IP."
    )
    ratelimit_each_sa_per_minute: Tokens | None = Field(
        default=None, description="Requests per minute for each service account."
    )
    ratelimit_ip_per_minute: Tokens | None = Field(
        default=None, description="Requests per minute for each client IP."
    )
    limits: Entries = Field(
        default=(), description="Further limits, in the form of `limits` in a tenant's document."
    )
    mode: DocumentMode = Field(
        default=DocumentMode.RESERVE,
        description="Mode of the limits above; limits in `limits` may have their own.",
    )
    timezone: Zone = Field(
        default="UTC", description="IANA time zone of windows, for tenants without a time zone of their own."
    )
    on_store_failure: StoreFailure = Field(
        default=StoreFailure.DENY,
        description="While Redis is unavailable. deny: 503. allow: see reservation.allow_share; needs a spool.",
    )

    @model_validator(mode="after")
    def _binds(self) -> Self:
        if not any(limit.unit is Unit.TOKENS for limit in self.parsed()):
            raise ValueError("set sa_limit or ip_limit: an unknown tenant must have some limit on tokens")
        return self

    def parsed(self) -> tuple[Limit, ...]:
        """Return the limits of these settings. Raise `ValueError`."""
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
    """Configure how limits are read."""

    default: DefaultLimitSettings = DefaultLimitSettings()
    poll_s: Annotated[float, Field(ge=0.1, le=4.0)] = Field(
        default=2.0,
        description="Seconds between reads without a change stream. Below the promised delay of 5 s.",
    )
    refresh_s: Seconds = Field(default=30.0, description="Seconds between reads with a change stream.")


class AlertSettings(Section):
    """Configure alerts on usage that reaches a part of its limit, and on denials."""

    thresholds: Thresholds = Field(
        default=(80, 95, 100),
        description="Percentages of a limit that alert, once per bucket and window. Empty: no alerts.",
    )
    windows: Windows = Field(
        default=tuple(Window), description="Windows whose limits alert. Limits per minute may alert every minute."
    )
    denials: bool = Field(
        default=True,
        description="Alert on denials and suspended callers too, once per bucket, window and reason.",
    )
    webhook_url: CheckedWebhookURL | None = Field(
        default=None, description="URL to which alerts are posted as signed JSON; null: only metric and log line."
    )
    webhook_secret: CheckedWebhookSecret | None = Field(
        default=None,
        description="Secret that signs the POSTs; required with webhook_url.",
    )
    webhook_secret_file: FilePath | None = Field(
        default=None,
        description="File that holds the secret, instead of `alerts.webhook_secret`; read again if it changes.",
    )
    webhook_timeout_s: Annotated[float, Field(ge=0.1, le=60.0)] = Field(
        default=5.0, description="Timeout of one attempt, in seconds. Attempts are repeated for an hour."
    )
    webhook_proxy: CheckedProxyURL | None = Field(
        default=None, description="HTTP proxy to the webhook. HTTP_PROXY and similar variables are not read."
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
    record: bool = Field(default=True, description="Record denied requests in ledger and daily usage too.")
    singly_per_minute: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=10,
        description="Denied requests of a minute and bucket with ledger entries of their own; others are counted.",
    )


class ReservationSettings(Section):
    decision_timeout_s: Annotated[float, Field(ge=0.005, le=0.5)] = Field(
        default=0.1, description="Seconds that a decision may take; then 503."
    )
    ttl_s: Seconds = Field(
        default=900.0, description="Seconds after which a reservation without an end is charged as held."
    )
    expiry_interval_s: Seconds = Field(default=5.0, description="Seconds between checks for such reservations.")
    allow_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1,
        description="Share of a limit that a replica may admit by itself per window (on_store_failure: allow).",
    )


class SpoolSettings(Section):
    """Configure the spool on disk: reservations admitted without Redis, and undelivered records at the end."""

    directory: Path | None = Field(
        default=None, description="Directory used by Tokenweir only. Without it nothing is admitted without Redis."
    )
    max_bytes: int = Field(
        default=64 << 20,
        ge=1 << 16,
        le=1 << 40,
        description="Size in bytes beyond which nothing more is admitted without Redis.",
    )


class Settings(Section):
    """Hold all settings of the processor."""

    server: ServerSettings = ServerSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    redis: RedisSettings = RedisSettings()
    mongo: MongoSettings = MongoSettings()
    identity: IdentitySettings = IdentitySettings()
    limits: LimitsSettings = LimitsSettings()
    cost: CostSettings = CostSettings()
    models: ModelList = Field(default=(), description="Overrides for single models; see below the tables.")
    denied: DeniedSettings = DeniedSettings()
    alerts: AlertSettings = AlertSettings()
    reservation: ReservationSettings = ReservationSettings()
    spool: SpoolSettings = SpoolSettings()
    admin: AdminSettings = AdminSettings()
