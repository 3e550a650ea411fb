"""Build the application from its settings: the composition root, and the only module that builds adapters."""

import asyncio
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from extproc.alerts.alerts import Alerts
from extproc.core.phase import ExchangeRules
from extproc.core.quota.models import Models
from extproc.core.quota.policies import Defaults
from extproc.core.quota.reservation import ReservationId
from extproc.core.request.buffers import LARGE_BYTES, Buffers
from extproc.core.request.identity import SPIFFE, IdentityRules, derived_tenant
from extproc.core.request.in_flight import InFlight
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.reading import FUNCTION, BodyReader, ReadApart, ReadHere
from extproc.metering.build import Metering, MeteringOptions, MeteringStores
from extproc.metering.build import build_metering as build
from extproc.metering.denials import DenialOptions
from extproc.metering.direct_changes import DirectChanges
from extproc.metering.estimator import NoCounter, PromptCounter
from extproc.metering.expiry import ExpiryOptions
from extproc.metering.limit_gauges import LimitGaugesOptions
from extproc.metering.limits_cache import LimitsCache, LimitsCacheOptions
from extproc.metering.prompt_counter import load_counter
from extproc.metering.prompt_tokenizer import Assignment, TokenizerError
from extproc.metering.service import MeteringService
from extproc.metering.settler import SettlerOptions
from extproc.observe.cap_log import CapLog
from extproc.observe.metrics import Metrics
from extproc.ports.audit import AuditLog
from extproc.ports.base import Clock
from extproc.ports.epochs import CounterStore
from extproc.ports.erasure import ErasureStore
from extproc.ports.inspection import Inspection
from extproc.ports.ledger import Ledger, UsageReports
from extproc.ports.records import Records
from extproc.ports.reports import ClosedMonths, RollupRepair, UsageSums
from extproc.ports.requests import RequestRecords
from extproc.ports.spool import Spool
from extproc.ports.tenants import TenantStore
from extproc.ports.tokens import TokenStore
from extproc.settings.load import SettingsError
from extproc.settings.model import IdentitySettings, Settings
from extproc.settings.secret_files import SecretFile
from extproc.settings.webhook_secret import WebhookSecret, webhook_secret
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.requests import MemoryRequests
from extproc.stores.memory.sums import MemoryClosedMonths, MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.memory.tokens import MemoryTokens
from extproc.stores.mongo.audit import MongoAudit
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.closed import MongoClosedMonths
from extproc.stores.mongo.daily_migration import DailyMigration
from extproc.stores.mongo.erasure import MongoErasure
from extproc.stores.mongo.indexes import create_indexes
from extproc.stores.mongo.inspecting import MongoInspection
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.reports import MongoSums
from extproc.stores.mongo.requests import MongoRequests
from extproc.stores.mongo.retention import LedgerRetention
from extproc.stores.mongo.rollup_backfill import RollupBackfill
from extproc.stores.mongo.rollup_repair import MongoRollupRepair
from extproc.stores.mongo.tenants import MongoTenants
from extproc.stores.mongo.tokens import MongoTokens
from extproc.stores.redis import RedisCounters, RedisOptions
from extproc.stores.redis.inspecting import inspection_of
from extproc.stores.spool import FileSpool, SpoolError, SpoolOptions
from extproc.stores.urls import StoreURL, mongo_url, redis_url
from extproc.workers.pool import Pool, PoolOptions

_ID_BYTES: Final = 16
_IDS_DRAWN: Final = 64

# A body of this size is read in 4 ms at the most, and takes 0.3 ms more if it is read in another process.
DIRECT_BYTES = 64 << 10
# Of the time that Envoy waits for the answer to a body, so much may pass until the body is read.
_READING = 0.8
_ALL_BYTES = 1 << 62


class SystemClock:
    """Tell the host's time."""

    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        return datetime.now(UTC)


def _reservation_ids() -> Iterator[ReservationId]:
    """Draw 128 random bits for each: never repeated, never guessed. Many at once: each draw asks the kernel."""
    while True:
        drawn = secrets.token_bytes(_ID_BYTES * _IDS_DRAWN)
        for start in range(0, len(drawn), _ID_BYTES):
            yield ReservationId(drawn[start : start + _ID_BYTES].hex())


new_reservation_id: Final = _reservation_ids().__next__


async def _nothing(*_: object) -> None:
    """Prepare or migrate stores in memory."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Hold the adapters of the stores, as ports. In memory, those with None as their default are missing.

    `prepare` makes what is missing in them; safe to repeat. `migrate` runs while a replica serves; it may end.
    """

    counters: CounterStore
    ledger: Ledger
    reports: UsageReports
    records: Records
    tenants: TenantStore
    audit: AuditLog
    sums: UsageSums
    months: ClosedMonths
    tokens: TokenStore
    requests: RequestRecords
    repair: RollupRepair | None = None
    inspection: Inspection | None = None
    erasure: ErasureStore | None = None
    prepare: Callable[[], Awaitable[None]] = _nothing
    migrate: Callable[[str], Coroutine[Any, Any, None]] = _nothing

    async def aclose(self) -> None:
        """Give all connections back."""
        await self.counters.aclose()
        await self.ledger.aclose()
        await self.tenants.aclose()


def build_stores(settings: Settings) -> Stores:
    """Build the stores that the settings name. Connect to nothing yet; call it inside the event loop."""
    redis, mongodb = settings.redis, settings.mongo
    counters: CounterStore
    packs: Callable[[bool], None] | None = None  # nothing is packed in memory
    if redis.url.in_memory:
        counters = MemoryCounters()
    else:
        url = redis.url.get_secret_value()
        followed = _followed("redis.url_file", redis.url_file, lambda text: redis_url(StoreURL(text)))
        # JSON until it is known that no replica of version 0.1 runs. Only MongoDB tells.
        options = RedisOptions(
            url, max_waiting=redis.max_waiting, packs=mongodb.url.in_memory, current_url=followed
        )
        counters = of_redis = RedisCounters(options)
        packs = of_redis.packs
    if mongodb.url.in_memory:
        memory, tenants_in_memory = MemoryLedger(), MemoryTenants()
        return Stores(
            counters=counters,
            ledger=memory,
            reports=memory,
            records=memory,
            tenants=tenants_in_memory,
            audit=tenants_in_memory.audit,
            sums=MemorySums(memory.all_entries),
            months=MemoryClosedMonths(),
            tokens=MemoryTokens(tenants_in_memory.audit),
            requests=MemoryRequests(memory),
        )
    followed = _followed("mongo.url_file", mongodb.url_file, lambda text: mongo_url(StoreURL(text)))
    url = mongodb.url.get_secret_value()
    mongo = Mongo(MongoOptions(url, mongodb.database, mongodb.timeout_s, current_url=followed))
    tenant_of = partial(derived_tenant, identity_rules(settings.identity).tenant_pattern)
    ledger, records, audit = MongoLedger(mongo, tenant_of), MongoRecords(mongo), MongoAudit(mongo)
    tenants, tokens = MongoTenants(mongo, audit), MongoTokens(mongo)

    make_indexes = partial(create_indexes, tenant_of)

    async def migrate(replica: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(DailyMigration(mongo, tenant_of, replica, alone=packs).run())
            group.create_task(RollupBackfill(mongo, replica).run())
            group.create_task(LedgerRetention(mongo, mongodb.ledger_retention_days).run())

    return Stores(
        counters=counters,
        ledger=ledger,
        reports=ledger,
        records=records,
        tenants=tenants,
        audit=audit,
        sums=MongoSums(mongo, mongodb.report_timeout_s),
        months=MongoClosedMonths(mongo),
        tokens=tokens,
        requests=MongoRequests(mongo),
        repair=MongoRollupRepair(mongo),
        inspection=inspection_of(counters, MongoInspection(mongo, make_indexes).database),
        erasure=MongoErasure(mongo),
        prepare=partial(make_indexes, mongo),
        migrate=migrate,
    )


def _followed(setting: str, path: str | None, check: Callable[[str], object]) -> Callable[[], str] | None:
    """Return what tells the present text of a secret's file; None if the setting names no file."""
    if path is None:
        return None
    try:
        return SecretFile(setting, Path(path), check).value
    except ValueError as error:
        raise SettingsError(f"{setting}: {path} {error}") from None


def defaults(settings: Settings) -> Defaults:
    """Return what binds a tenant that nobody configured."""
    default = settings.limits.default
    return Defaults(default.parsed(), ZoneInfo(default.timezone), default.on_store_failure)


def build_limits_cache(settings: Settings, stores: Stores, metrics: Metrics) -> LimitsCache:
    """Build what keeps the tenants' limits in memory."""
    options = LimitsCacheOptions(settings.limits.poll_s, settings.limits.refresh_s)
    clock = SystemClock()
    direct = DirectChanges(stores.tenants, stores.audit, clock.now, socket.gethostname())
    return LimitsCache(stores.tenants, defaults(settings), clock, metrics, options, direct=direct)


def build_alerts(settings: Settings, metrics: Metrics) -> Alerts:
    """Build alerts by metric and log line, and by webhook if one is set."""
    alerts = settings.alerts
    if alerts.webhook_url is None or alerts.webhook_secret is None:
        return Alerts(metrics)
    from extproc.alerts.post import Post, PostOptions  # httpx: only where it is used
    from extproc.alerts.webhook import Webhook, WebhookOptions

    proxy = alerts.webhook_proxy
    followed = _followed(
        "alerts.webhook_secret_file", alerts.webhook_secret_file, lambda text: webhook_secret(WebhookSecret(text))
    )
    options = PostOptions(
        url=alerts.webhook_url.get_secret_value(),
        key=alerts.webhook_secret.key(),
        timeout_s=alerts.webhook_timeout_s,
        proxy_url=proxy.get_secret_value() if proxy is not None else None,
        current_key=None if followed is None else lambda: WebhookSecret(followed()).key(),
    )
    post = Post(options, SystemClock())
    return Alerts(metrics, [Webhook(WebhookOptions(post.host), post, metrics)])


def build_counter(settings: Settings, metrics: Metrics) -> PromptCounter:
    """Load the tokenizers that the models' settings name. Raise `SettingsError`."""
    entries = [
        Assignment(model.match, model.tokenizer, f"models.{i}.tokenizer")
        for i, model in enumerate(settings.models)
        if model.tokenizer is not None
    ]
    try:
        return load_counter(entries, metrics.prompt_not_counted) if entries else NoCounter()
    except TokenizerError as error:
        raise SettingsError(str(error)) from None


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
    clock: Clock | None = None,
) -> Metering:
    """Build what holds, ends and records reservations, as the settings say. `clock` is the host's by default."""
    return build(
        MeteringStores(stores.counters, stores.ledger, stores.records, spool),
        limits,
        models=models(settings),
        counter=counter,
        alerts=alerts,
        metrics=metrics,
        clock=clock or SystemClock(),
        new_id=new_reservation_id,
        replica=replica,
        options=_metering_options(settings),
    )


def _metering_options(settings: Settings) -> MeteringOptions:
    reservation, alerting = settings.reservation, settings.alerts
    return MeteringOptions(
        decision_timeout_s=reservation.decision_timeout_s,
        reservation_ttl_s=reservation.ttl_s,
        record_denied=settings.denied.record,
        denials=DenialOptions(settings.denied.singly_per_minute),
        alert_on_denials=alerting.denials,
        refuse_unbounded=settings.cost.refuse_unbounded,
        learn=settings.cost.learn,
        allow_share=reservation.allow_share,
        settler=SettlerOptions(alerting.thresholds, frozenset(alerting.windows)),
        expiry=ExpiryOptions(reservation.expiry_interval_s),
        limit_gauges=LimitGaugesOptions(settings.metrics.tenant_series, settings.metrics.limits_interval_s),
    )


def build_spool(settings: Settings, replica: str) -> FileSpool | None:
    """Open the spool that the settings name; None if they name none. Raise `SettingsError` if it can't be used."""
    spool = settings.spool
    if spool.directory is None:
        return None
    try:
        return FileSpool(SpoolOptions(spool.directory, spool.max_bytes), replica)
    except SpoolError as error:
        raise SettingsError(str(error)) from None


def models(settings: Settings) -> Models:
    """Return the costs of models: the general ones, and what differs for single models."""
    general = settings.cost.profile()
    return Models(general, [(model.match, model.profile(general)) for model in settings.models])


def identity_rules(settings: IdentitySettings) -> IdentityRules:
    """Return how callers are identified."""
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


def exchange_rules(settings: Settings) -> ExchangeRules:
    """Return what is the same for every exchange."""
    return ExchangeRules(
        identity=identity_rules(settings.identity),
        max_body_bytes=settings.server.max_body_bytes,
        denied_style=settings.denied.style,
        bytes_per_output_token=settings.cost.output_bytes_per_token,
        direct_bytes=DIRECT_BYTES if settings.server.body_readers else _ALL_BYTES,
        counts_prompts=any(model.tokenizer is not None for model in settings.models),
        allowed=frozenset(settings.server.allowed_parameters),
        unmetered_paths=settings.server.unmetered_paths,
        buffers=buffers(settings),
        in_flight=in_flight(settings),
        refuse_without_usage=settings.cost.refuse_without_usage,
        unnamed_model=settings.cost.unnamed_model,
        models=models(settings),
    )


def buffers(settings: Settings) -> Buffers:
    """Return what bounds the bodies of all exchanges. One body of each kind fits for two tenants at least."""
    server = settings.server
    largest = server.max_body_bytes + LARGE_BYTES  # with the overhead of its pieces
    return Buffers(
        max(server.max_buffered_bytes, 2 * LARGE_BYTES),
        max(server.max_large_buffered_bytes, 2 * largest),
    )


def in_flight(settings: Settings) -> InFlight:
    """Return what counts and bounds the requests in flight of each tenant."""
    cap = settings.server.tenant_cap
    return InFlight(cap, CapLog(cap).refused)


def build_body_reader(settings: Settings, service: MeteringService) -> tuple[BodyReader, Pool | None]:
    """Build what reads large bodies, and its pool of processes; None if they are read on the event loop."""
    server = settings.server
    if not server.body_readers:
        return ReadHere(), None
    pool = Pool(
        FUNCTION,
        PoolOptions(
            processes=server.body_readers,
            timeout_s=_READING * server.message_timeout_s,
            memory_bytes=server.max_body_bytes,
        ),
    )
    return ReadApart(pool, service.screen), pool


def build_codec(settings: Settings) -> Codec:
    """Build the codec between Envoy's messages and the core's events."""
    identity = settings.identity
    return Codec(identity_rules(identity), MetadataKeys(identity.jwt_namespace, identity.jwt_payload_key))
