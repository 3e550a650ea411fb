"""The composition root: the only module that builds adapters from settings."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from extproc.accounting import Accounting, AccountingOptions
from extproc.core.exchange import ExchangeRules
from extproc.core.identity import IdentityRules
from extproc.core.policies import Defaults, short_limits
from extproc.core.quota import Costing, ReservationId
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.limits_follower import FollowerOptions, LimitsFollower
from extproc.observe.metrics import Metrics
from extproc.ports import Counters, Ledger, TenantStore, UsageReports
from extproc.settings import IdentitySettings, Settings
from extproc.stores.memory import MemoryCounters, MemoryLedger, MemoryTenants
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.tenants import MongoTenants
from extproc.stores.redis import RedisCounters, RedisOptions


class SystemClock:
    """The host's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def new_reservation_id() -> ReservationId:
    """128 random bits: never repeated, never guessed."""
    return ReservationId(secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Stores:
    """The adapters, as ports."""

    counters: Counters
    ledger: Ledger
    reports: UsageReports
    tenants: TenantStore
    mongo: MongoLedger | None = None  # has indexes to make; None: in memory

    async def prepare(self) -> None:
        """Makes what is missing in the stores; safe to repeat. Raises `StoreError`."""
        if self.mongo is not None:
            await self.mongo.create_indexes()

    async def aclose(self) -> None:
        await self.counters.aclose()
        await self.ledger.aclose()
        await self.tenants.aclose()


def build_stores(settings: Settings) -> Stores:
    """The stores that the settings name. Connects to nothing yet; call it inside the event loop."""
    redis, mongodb = settings.redis, settings.mongo
    counters: Counters
    if redis.url.in_memory:
        counters = MemoryCounters()
    else:
        counters = RedisCounters(RedisOptions(redis.url.get_secret_value(), redis.max_connections))
    if mongodb.url.in_memory:
        memory = MemoryLedger()
        return Stores(counters, memory, memory, MemoryTenants())
    mongo = Mongo(MongoOptions(mongodb.url.get_secret_value(), mongodb.database, mongodb.timeout_s))
    ledger = MongoLedger(mongo)
    return Stores(counters, ledger, ledger, MongoTenants(mongo), ledger)


def defaults(settings: Settings) -> Defaults:
    default = settings.limits.default
    limits = short_limits(default.sa_limit, default.ip_limit)
    return Defaults(limits, ZoneInfo(default.timezone))


def build_follower(settings: Settings, stores: Stores, metrics: Metrics) -> LimitsFollower:
    options = FollowerOptions(settings.limits.poll_s, settings.limits.refresh_s)
    return LimitsFollower(stores.tenants, defaults(settings), SystemClock(), metrics, options)


def build_accounting(settings: Settings, stores: Stores, limits: LimitsFollower, metrics: Metrics) -> Accounting:
    reservation = settings.reservation
    return Accounting(
        counters=stores.counters,
        ledger=stores.ledger,
        limits=limits,
        clock=SystemClock(),
        new_id=new_reservation_id,
        costing=costing(settings),
        metrics=metrics,
        options=AccountingOptions(
            decision_timeout_s=reservation.decision_timeout_s,
            reservation_ttl_s=reservation.ttl_s,
            expiry_interval_s=reservation.expiry_interval_s,
            record_denied=settings.denied.record,
        ),
    )


def costing(settings: Settings) -> Costing:
    cost = settings.cost
    return Costing(
        bytes_per_token=cost.prompt_bytes_per_token,
        overhead_tokens=cost.prompt_overhead_tokens,
        media_tokens=cost.media_tokens,
        typical_output_tokens=cost.typical_output_tokens,
    )


def identity_rules(settings: IdentitySettings) -> IdentityRules:
    pattern = settings.tenant_pattern
    return IdentityRules(
        service_account_claim=settings.service_account_claim,
        tenant_claim=settings.tenant_claim,
        service_account_header=settings.service_account_header,
        tenant_header=settings.tenant_header,
        tenant_pattern=re.compile(pattern) if pattern is not None else None,
    )


def exchange_rules(settings: Settings) -> ExchangeRules:
    return ExchangeRules(
        identity=identity_rules(settings.identity),
        max_body_bytes=settings.server.max_body_bytes,
        denied_style=settings.denied.style,
        bytes_per_output_token=settings.cost.output_bytes_per_token,
    )


def build_codec(settings: Settings) -> Codec:
    identity = settings.identity
    return Codec(identity_rules(identity), MetadataKeys(identity.jwt_namespace, identity.jwt_payload_key))
