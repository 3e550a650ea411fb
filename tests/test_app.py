"""What is built from the settings is built with them: each value is another than the default."""

import asyncio
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from extproc import app
from extproc.core.quota.binding import StoreFailure
from extproc.core.quota.costs import Costing
from extproc.core.quota.limits import Limit, Scope, Window
from extproc.core.quota.policies import Defaults
from extproc.core.rejections import DeniedStyle
from extproc.envoy.codec import MetadataKeys
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.settings.load import SettingsError, load
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.spool import NoSpool


def settings(**values):
    return load(None, {f"TOKENWEIR_{name}": str(value) for name, value in values.items()})


def test_the_cost_is_made_of_its_settings():
    given = settings(
        COST__PROMPT_BYTES_PER_TOKEN=5,
        COST__PROMPT_OVERHEAD_TOKENS=6,
        COST__MEDIA_TOKENS=7,
        COST__TYPICAL_OUTPUT_TOKENS=8,
    )
    assert app.models(given).profile("any").costing == Costing(5, 6, 7, 8)


def test_the_rules_of_an_exchange_are_made_of_their_settings():
    rules = app.exchange_rules(
        settings(
            IDENTITY__SERVICE_ACCOUNT_CLAIM="azp",
            IDENTITY__TENANT_CLAIM="org",
            IDENTITY__SERVICE_ACCOUNT_HEADER="oc_sa",
            IDENTITY__TENANT_HEADER="oc_tenant",
            IDENTITY__TENANT_PATTERN="@([^.]+)",
            SERVER__MAX_BODY_BYTES=2048,
            DENIED__STYLE="talk",
            COST__OUTPUT_BYTES_PER_TOKEN=9,
        )
    )
    identity = rules.identity
    assert (identity.service_account_claim, identity.tenant_claim) == ("azp", "org")
    assert (identity.service_account_header, identity.tenant_header) == ("oc_sa", "oc_tenant")
    assert identity.tenant_pattern.pattern == "@([^.]+)"
    assert (rules.max_body_bytes, rules.denied_style, rules.bytes_per_output_token) == (2048, DeniedStyle.TALK, 9)


def test_the_default_limits_are_made_of_their_settings():
    prefix = "LIMITS__DEFAULT__"
    given = settings(
        **{
            f"{prefix}SA_LIMIT": 5,
            f"{prefix}IP_LIMIT": 6,
            f"{prefix}TIMEZONE": "Asia/Tokyo",
            f"{prefix}ON_STORE_FAILURE": "allow",
        }
    )
    by_account = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 5)
    by_ip = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, 6)
    assert app.defaults(given) == Defaults((by_account, by_ip), ZoneInfo("Asia/Tokyo"), StoreFailure.ALLOW)


async def test_the_spool_is_made_of_its_settings(tmp_path):
    assert app.build_spool(settings(), "here") is None
    given = settings(SPOOL__DIRECTORY=tmp_path / "spool", SPOOL__MAX_BYTES=65536)
    spool = app.build_spool(given, "here")
    assert spool.path == tmp_path / "spool" / "here.spool"
    assert spool._options.max_bytes == 65536
    await spool.aclose()
    tmp_path.chmod(0o777)
    with pytest.raises(SettingsError, match=r"spool.directory: .* can't be written to: others may write there"):
        app.build_spool(settings(SPOOL__DIRECTORY=tmp_path), "here")


async def test_metering_and_the_limits_cache_get_their_settings():
    given = settings(
        REDIS__URL="memory://",
        MONGO__URL="memory://",
        RESERVATION__DECISION_TIMEOUT_S=0.25,
        RESERVATION__TTL_S=60,
        RESERVATION__EXPIRY_INTERVAL_S=2,
        RESERVATION__ALLOW_SHARE=0.5,
        DENIED__RECORD="false",
        ALERTS__THRESHOLDS="[50]",
        ALERTS__WINDOWS="[day]",
        COST__LEARN="false",
        LIMITS__POLL_S=1.5,
        LIMITS__REFRESH_S=11,
    )
    stores, metrics = app.build_stores(given), Metrics()
    cache = app.build_limits_cache(given, stores, metrics)
    alerts, counter = app.build_alerts(given, metrics), app.build_counter(given, metrics)
    metering = app.build_metering(
        given, stores, cache, metrics, counter=counter, alerts=alerts, spool=NoSpool(), replica="here"
    )
    drafter = metering.service._drafter
    shard = next(iter(metering.shards))
    assert (shard.admission._timeout_s, drafter.ttl_s, shard.expiry._options.interval_s) == (0.25, 60, 2)
    assert metering.service._record_denied is False
    assert metering.local._share == 0.5
    alerting = shard.settler._options
    assert (alerting.thresholds, alerting.alert_windows) == ((50,), {Window.DAY})
    assert metering.service._estimator._learns is False
    assert (cache._options.poll_s, cache._options.refresh_s) == (1.5, 11)


async def test_memory_stores_need_nothing():
    stores = app.build_stores(settings(REDIS__URL="memory://", MONGO__URL="memory://"))
    assert isinstance(stores.counters, MemoryCounters)
    assert isinstance(stores.ledger, MemoryLedger)
    assert stores.reports is stores.ledger
    assert isinstance(stores.tenants, MemoryTenants)
    await stores.prepare()
    await stores.aclose()


async def test_redis_is_given_the_password_that_is_never_shown():
    received = asyncio.Queue()

    async def refuse(reader, writer):
        received.put_nowait(await reader.read(1024))
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    stores = app.build_stores(
        settings(REDIS__URL=f"redis://user:hunter%402@127.0.0.1:{port}", MONGO__URL="memory://")
    )
    with pytest.raises(StoreError):
        await stores.counters.ping()
    assert b"hunter@2" in await received.get()
    await stores.aclose()
    server.close()
    await server.wait_closed()


async def test_mongodb_is_given_the_password_the_database_and_the_bound_of_a_call():
    given = settings(
        REDIS__URL="memory://",
        MONGO__URL="mongodb://user:hunter%402@127.0.0.1:1",
        MONGO__DATABASE="other",
        MONGO__TIMEOUT_S=1.5,
    )
    stores = app.build_stores(given)
    client = stores.ledger._mongo.client
    assert client.options.pool_options._credentials.password == "hunter@2"
    assert client.options.timeout == 1.5
    assert stores.tenants._documents.full_name == "other.tenantLimitation"
    await stores.aclose()


def test_reservation_ids_are_128_bits_and_never_the_same():
    made = {app.new_reservation_id() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(bytes.fromhex(each)) for each in made} == {16}


def test_the_clock_is_in_utc():
    assert app.SystemClock().now().utcoffset().total_seconds() == 0


def test_the_codec_looks_for_the_verified_token_where_the_settings_say():
    given = settings(
        IDENTITY__JWT_NAMESPACE="ns", IDENTITY__JWT_PAYLOAD_KEY="key", IDENTITY__SERVICE_ACCOUNT_CLAIM="azp"
    )
    codec = app.build_codec(given)
    assert codec._keys == MetadataKeys("ns", "key")
    assert "azp" in codec._claims


def test_a_body_is_read_within_the_time_that_envoy_waits():
    service = SimpleNamespace(screen=None)
    _, pool = app.build_body_reader(settings(SERVER__MESSAGE_TIMEOUT_S=10), service)
    assert pool._options.timeout_s == 8
    assert app.build_body_reader(settings(SERVER__BODY_READERS=0), service)[1] is None
