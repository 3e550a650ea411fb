"""The composition root: the only module that builds adapters from settings."""

import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from extproc.alerts.alerts import Alerts
from extproc.core.exchange import ExchangeRules
from extproc.core.quota.costs import Costing, Weights
from extproc.core.quota.models import FREE, ModelProfile, Models
from extproc.core.quota.policies import Defaults
from extproc.core.quota.reservation import ReservationId
from extproc.core.request.buffers import Buffers
from extproc.core.request.identity import SPIFFE, IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.tls import TLSOptions
from extproc.metering.estimator import Estimator, NoCounter, PromptCounter
from extproc.metering.limits_cache import LimitsCache, LimitsCacheOptions
from extproc.metering.prompt_tokenizer import Assignment, TokenizerError, load_counter
from extproc.metering.rebuild import Rebuilder
from extproc.metering.service import MeteringOptions, MeteringService
from extproc.metering.settler import Settler, SettlerOptions
from extproc.metering.shared_clock import SharedClock
from extproc.metering.stored import Stored
from extproc.observe.metrics import Metrics
from extproc.ports.epochs import CounterStore
from extproc.ports.ledger import Ledger, UsageReports
from extproc.ports.records import Records
from extproc.ports.spool import Spool
from extproc.ports.tenants import TenantStore
from extproc.settings.costs import ModelSettings
from extproc.settings.load import SettingsError
from extproc.settings.model import IdentitySettings, Settings
from extproc.settings.server import TLSSettings
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger, MemoryTenants
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.tenants import MongoTenants
from extproc.stores.redis import RedisCounters, RedisOptions
from extproc.stores.spool import FileSpool, SpoolError, SpoolOptions

# Fields of a model's settings that are called the same in `Costing`.
_SAME_NAMES = (
    "media_tokens",
    "typical_output_tokens",
    "media_bound_tokens",
    "prompt_bound_factor",
    "template_bound_tokens",
    "message_bound_tokens",
    "max_output_tokens",
    "min_output_tokens",
    "output_field",
)


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

    counters: CounterStore
    ledger: Ledger
    reports: UsageReports
    records: Records
    tenants: TenantStore
    mongo: MongoLedger | None = None  # has indexes to make; None: in memory

    async def prepare(self) -> None:
        """Makes what is missing in the stores; safe to repeat. Raises `StoreError`."""
        if self.mongo is not None:
            await self.mongo.create_indexes()
        if isinstance(self.records, MongoRecords):
            await self.records.create_indexes()

    async def aclose(self) -> None:
        await self.counters.aclose()
        await self.ledger.aclose()
        await self.tenants.aclose()


def build_stores(settings: Settings) -> Stores:
    """The stores that the settings name. Connects to nothing yet; call it inside the event loop."""
    redis, mongodb = settings.redis, settings.mongo
    counters: CounterStore
    if redis.url.in_memory:
        counters = MemoryCounters()
    else:
        counters = RedisCounters(
            RedisOptions(redis.url.get_secret_value(), redis.max_connections, max_waiting=redis.max_waiting)
        )
    if mongodb.url.in_memory:
        memory = MemoryLedger()
        return Stores(counters, memory, memory, memory, MemoryTenants())
    mongo = Mongo(MongoOptions(mongodb.url.get_secret_value(), mongodb.database, mongodb.timeout_s))
    ledger = MongoLedger(mongo)
    return Stores(counters, ledger, ledger, MongoRecords(mongo), MongoTenants(mongo), ledger)


def defaults(settings: Settings) -> Defaults:
    default = settings.limits.default
    return Defaults(default.parsed(), ZoneInfo(default.timezone), default.on_store_failure)


def build_follower(settings: Settings, stores: Stores, metrics: Metrics) -> LimitsCache:
    options = LimitsCacheOptions(settings.limits.poll_s, settings.limits.refresh_s)
    return LimitsCache(stores.tenants, defaults(settings), SystemClock(), metrics, options)


def build_alerts(settings: Settings, metrics: Metrics) -> Alerts:
    """Alerts by metric and log line, and by webhook where one is set."""
    alerts = settings.alerts
    if alerts.webhook_url is None or alerts.webhook_secret is None:
        return Alerts(metrics)
    from extproc.alerts.post import Post, PostOptions  # httpx: only where it is used
    from extproc.alerts.webhook import Webhook, WebhookOptions

    proxy = alerts.webhook_proxy
    options = PostOptions(
        url=alerts.webhook_url.get_secret_value(),
        secret=alerts.webhook_secret.get_secret_value().encode(),
        timeout_s=alerts.webhook_timeout_s,
        proxy_url=proxy.get_secret_value() if proxy is not None else None,
    )
    post = Post(options, SystemClock())
    return Alerts(metrics, [Webhook(WebhookOptions(post.host), post, metrics)])


def build_counter(settings: Settings, metrics: Metrics) -> PromptCounter:
    """The tokenizers that the models' settings name, loaded. Raises `SettingsError`."""
    entries = [
        Assignment(model.match, model.tokenizer, f"models.{i}.tokenizer")
        for i, model in enumerate(settings.models)
        if model.tokenizer is not None
    ]
    try:
        return load_counter(entries, metrics.prompt_not_counted) if entries else NoCounter()
    except TokenizerError as error:
        raise SettingsError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Metering:
    """What holds, ends and records reservations, and keeps the counters right."""

    clock: SharedClock
    books: Settler
    accounting: MeteringService
    recovery: Rebuilder


def build_metering(
    settings: Settings,
    stores: Stores,
    limits: LimitsCache,
    metrics: Metrics,
    *,
    counter: PromptCounter,
    alerts: Alerts,
    spool: Spool,
    replica: str,
) -> Metering:
    known, clock = models(settings), SharedClock(stores.counters, SystemClock())
    estimator = Estimator(known, counter, metrics, learn=settings.cost.learn)
    stored = Stored(stores.counters, stores.counters, stores.ledger, stores.records, spool)
    options = SettlerOptions(
        thresholds=settings.alerts.thresholds, alert_windows=frozenset(settings.alerts.windows)
    )
    books = Settler(
        stored,
        clock=clock,
        models=known,
        estimator=estimator,
        alerts=alerts,
        metrics=metrics,
        options=options,
    )
    accounting = MeteringService(
        stored=stored,
        books=books,
        limits=limits,
        clock=clock,
        new_id=new_reservation_id,
        estimator=estimator,
        metrics=metrics,
        options=_accounting_options(settings),
        replica=replica,
    )
    clock.on_step = accounting.clock_stepped
    recovery = Rebuilder(replica, stores.counters, stores.records, accounting, books, clock=clock, metrics=metrics)
    return Metering(clock, books, accounting, recovery)


def _accounting_options(settings: Settings) -> MeteringOptions:
    reservation = settings.reservation
    return MeteringOptions(
        decision_timeout_s=reservation.decision_timeout_s,
        reservation_ttl_s=reservation.ttl_s,
        expiry_interval_s=reservation.expiry_interval_s,
        record_denied=settings.denied.record,
        refuse_unbounded=settings.cost.refuse_unbounded,
        allow_share=reservation.allow_share,
    )


def build_spool(settings: Settings, replica: str) -> FileSpool | None:
    """The spool that the settings name. Raises `SettingsError` where it can't be used."""
    spool = settings.spool
    if spool.directory is None:
        return None
    try:
        return FileSpool(SpoolOptions(spool.directory, spool.max_bytes), replica)
    except SpoolError as error:
        raise SettingsError(str(error)) from None


def models(settings: Settings) -> Models:
    """What is known of models: the general costs, and what differs for single ones."""
    cost = settings.cost
    general = Costing(
        bytes_per_token=cost.prompt_bytes_per_token,
        overhead_tokens=cost.prompt_overhead_tokens,
        media_tokens=cost.media_tokens,
        typical_output_tokens=cost.typical_output_tokens,
        media_bound_tokens=cost.media_bound_tokens,
        prompt_bound_factor=cost.prompt_bound_factor,
        template_bound_tokens=cost.template_bound_tokens,
        message_bound_tokens=cost.message_bound_tokens,
        max_output_tokens=cost.max_output_tokens,
        min_output_tokens=cost.min_output_tokens,
    )
    weights = cost.weights.parsed()
    profiles = [(model.match, _profile(model, general, weights)) for model in settings.models]
    return Models(ModelProfile(general, weights), profiles)


def _profile(model: ModelSettings, general: Costing, weights: Weights) -> ModelProfile:
    own = {
        "bytes_per_token": model.prompt_bytes_per_token,
        "overhead_tokens": model.prompt_overhead_tokens,
        **{name: getattr(model, name) for name in _SAME_NAMES},
    }
    return ModelProfile(
        costing=replace(general, **{name: value for name, value in own.items() if value is not None}),
        weights=model.weights.parsed() if model.weights is not None else weights,
        prices=model.prices.parsed() if model.prices is not None else FREE,
    )


def identity_rules(settings: IdentitySettings) -> IdentityRules:
    pattern = settings.tenant_pattern
    return IdentityRules(
        service_account_claim=settings.service_account_claim,
        tenant_claim=settings.tenant_claim,
        service_account_header=settings.service_account_header,
        tenant_header=settings.tenant_header,
        tenant_pattern=re.compile(pattern) if pattern is not None else None,
        peer_principals=settings.peer_principals,
        gateway_principals=frozenset(name.removeprefix(SPIFFE) for name in settings.gateway_principals),
        ipv6_prefix=settings.ipv6_prefix,
    )


def tls_options(tls: TLSSettings) -> TLSOptions | None:
    """None for plaintext; the settings have all of it or nothing."""
    if tls.certificate_file is None or tls.key_file is None or tls.client_ca_file is None:
        return None
    return TLSOptions(
        Path(tls.certificate_file), Path(tls.key_file), Path(tls.client_ca_file), frozenset(tls.allowed_sans)
    )


def exchange_rules(settings: Settings) -> ExchangeRules:
    return ExchangeRules(
        identity=identity_rules(settings.identity),
        max_body_bytes=settings.server.max_body_bytes,
        denied_style=settings.denied.style,
        bytes_per_output_token=settings.cost.output_bytes_per_token,
        buffers=Buffers(max(settings.server.max_buffered_bytes, 2 * settings.server.max_body_bytes)),
    )


def build_codec(settings: Settings) -> Codec:
    identity = settings.identity
    return Codec(identity_rules(identity), MetadataKeys(identity.jwt_namespace, identity.jwt_payload_key))
