import re
from datetime import UTC, datetime

from prometheus_client import generate_latest

from extproc.core.quota.drafting import Ask
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.policies import Defaults, limits_from
from extproc.core.quota.settlement import Outcome, Settlement, released
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.metering.build import MeteringOptions, MeteringStores, build_metering
from extproc.metering.estimator import NoCounter
from extproc.metering.limits_cache import LimitsCache, LimitsCacheOptions
from extproc.observe.counting import Counts
from extproc.observe.metrics import OTHER, Metrics
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.spool import NoSpool

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def now(self):
        return NOW


def value(metrics, sample, **labels):
    return metrics.registry.get_sample_value(sample, labels)


def test_only_a_reservation_that_is_charged_adds_tokens():
    metrics = Metrics()
    metrics.closed(Settlement(Outcome.SETTLED, Usage(10, 5, total=15), 15, "usage"))
    metrics.closed(Settlement(Outcome.EXPIRED, Usage(2, 3, total=5), 5, "expired"))
    metrics.closed(released("upstream_error"))
    tokens = {kind: value(metrics, "tokenweir_tokens_total", kind=kind) for kind in ("input", "output", "charged")}
    assert tokens == {"input": 12, "output": 8, "charged": 20}
    assert value(metrics, "tokenweir_reservations_closed_total", outcome="settled", reason="usage") == 1
    assert value(metrics, "tokenweir_reservations_closed_total", outcome="released", reason="upstream_error") == 1


def test_usage_is_counted_by_tenant_and_model_for_a_bounded_number_of_them():
    metrics = Metrics(usage_series=2)
    for tenant in ("a", "b", "c", "d", "a"):
        metrics.used(tenant, "m", Usage(10, 5, total=15))

    def used(tenant, model, kind):
        return value(metrics, "tokenweir_usage_tokens_total", tenant=tenant, model=model, kind=kind)

    assert [used(tenant, "m", "input") for tenant in "abcd"] == [20, 10, None, None]
    assert used(OTHER, OTHER, "input") == 20
    assert used(OTHER, OTHER, "output") == 10


def test_the_price_of_usage_is_counted_in_whole_units_of_the_currency():
    metrics = Metrics(usage_series=1)
    for tenant in ("a", "b", "a"):
        metrics.used(tenant, "m", Usage(10, 5, total=15), 250_000_000)
    assert value(metrics, "tokenweir_usage_price_total", tenant="a", model="m") == 0.5
    assert value(metrics, "tokenweir_usage_price_total", tenant=OTHER, model=OTHER) == 0.25
    metrics.used("a", "m", Usage(1, 1, total=2))
    assert value(metrics, "tokenweir_usage_price_total", tenant="a", model="m") == 0.5


def test_what_used_nothing_makes_no_series_and_with_0_nothing_does():
    metrics = Metrics(usage_series=1)
    metrics.used("flood", "made-up", Usage(0, 0, total=0))
    metrics.used("a", "m", Usage(1, 1, total=2))
    assert value(metrics, "tokenweir_usage_tokens_total", tenant="a", model="m", kind="input") == 1
    off = Metrics(usage_series=0)
    off.used("a", "m", Usage(1, 1, total=2))
    assert value(off, "tokenweir_usage_tokens_total", tenant="a", model="m", kind="input") is None
    assert value(off, "tokenweir_usage_tokens_total", tenant=OTHER, model=OTHER, kind="input") is None


def test_decisions_are_counted_by_tenant_for_a_bounded_number_of_them():
    metrics = Metrics(tenant_series=2)
    for tenant in ("a", "b", "c", "a"):
        metrics.decided_for(tenant, "denied", known=True)

    def denied(tenant):
        return value(metrics, "tokenweir_tenant_decisions_total", tenant=tenant, outcome="denied")

    assert [denied(tenant) for tenant in ("a", "b", "c", OTHER)] == [2, 1, None, 1]
    assert value(metrics, "tokenweir_tenant_decisions_total", tenant="a", outcome="admitted") == 0
    off = Metrics(tenant_series=0)
    off.decided_for("a", "denied", known=True)
    assert value(off, "tokenweir_tenant_decisions_total", tenant=OTHER, outcome="denied") is None


def test_a_tenant_that_nobody_configured_is_told_apart_once_it_has_used_tokens():
    metrics = Metrics(tenant_series=4)
    for tenant in ("a", "b", "c"):
        metrics.decided_for(tenant, "admitted", known=False)
        metrics.used(tenant, "m", Usage(1, 1, total=2))
        metrics.decided_for(tenant, "admitted", known=False)

    def admitted(tenant):
        return value(metrics, "tokenweir_tenant_decisions_total", tenant=tenant, outcome="admitted")

    assert [admitted(tenant) for tenant in ("a", "b", "c", OTHER)] == [1, 1, None, 4], "half is left to the others"


def test_the_time_of_a_reservation_is_recorded():
    metrics = Metrics()
    metrics.reserved(0.003)
    assert value(metrics, "tokenweir_reserve_seconds_count") == 1


def test_the_buckets_of_a_reservations_time_reach_beyond_its_bound():
    text = generate_latest(Metrics().registry).decode()
    bounds = [float(b) for b in re.findall(r'tokenweir_reserve_seconds_bucket\{le="([\d.]+)"', text)]
    assert min(bounds) <= 0.001
    assert 0.1 in bounds
    assert max(bounds) > 0.1


def test_ready_is_0_until_it_is_said():
    metrics = Metrics()
    assert value(metrics, "tokenweir_ready") == 0
    metrics.ready(serving=True)
    assert value(metrics, "tokenweir_ready") == 1
    metrics.ready(serving=False)
    assert value(metrics, "tokenweir_ready") == 0


def test_what_alerts_watch_is_there_before_it_happens():
    metrics = Metrics()
    items = [1, 2]
    metrics.watch_queue("ledger", items.__len__)
    assert value(metrics, "tokenweir_queue_items", queue="ledger") == 2
    assert value(metrics, "tokenweir_queue_lost_total", queue="ledger") == 0
    assert value(metrics, "tokenweir_stream_faults_total", kind="protocol") == 0
    assert value(metrics, "tokenweir_stream_faults_total", kind="unexpected") == 0
    assert value(metrics, "tokenweir_decisions_total", outcome="unavailable", reason="store") == 0
    metrics.lost("ledger", 3)
    assert value(metrics, "tokenweir_queue_lost_total", queue="ledger") == 3


def test_the_limits_that_are_known_are_counted_with_when_they_were_read():
    metrics = Metrics()
    metrics.limits_loaded(7, 2, 3, 1772366400.0)
    assert value(metrics, "tokenweir_limits_tenants") == 7
    assert value(metrics, "tokenweir_limits_bad_documents") == 2
    assert value(metrics, "tokenweir_limits_bad_fields") == 3
    assert value(metrics, "tokenweir_limits_loaded_timestamp_seconds") == 1772366400.0


def test_two_processors_in_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.decided("admitted", "")
    assert value(second, "tokenweir_decisions_total", outcome="admitted", reason="") is None


async def test_no_identity_or_model_becomes_a_label_however_many_there_are():
    metrics = Metrics()
    defaults = Defaults(limits_from({"sa_limit": 500, "ip_limit": 400}), UTC)
    counters = MemoryCounters()
    follower = LimitsCache(MemoryTenants(), defaults, Clock(), metrics, LimitsCacheOptions())
    await follower.load()
    ids = iter(range(10_000))
    ledger = MemoryLedger()
    metering = build_metering(
        MeteringStores(counters, ledger, ledger, NoSpool()),
        follower,
        models=Models(ModelProfile()),
        counter=NoCounter(),
        alerts=[],
        metrics=metrics,
        clock=Clock(),
        new_id=lambda: f"id{next(ids)}",
        replica="here",
        options=MeteringOptions(),
    )

    async def series_after(numbers):
        for n in numbers:
            identity = Identity(f"canary-tenant{n}", f"canary-account{n}", f"192.0.2.{n}")
            for bound in (20, 10_000):  # one is admitted, one denied
                facts = RequestFacts(
                    model=f"canary-model{n}",
                    stream=False,
                    output_bound=bound,
                    choices=1,
                    prompt_bytes=30,
                    media_parts=0,
                    wants_usage=False,
                )
                ask = Ask(identity, Endpoint.CHAT_COMPLETIONS, facts, f"canary-request{n}")
                decision = await metering.service.reserve(ask)
                metrics.rejected("over_limit:service_account")
                if bound == 20:
                    metrics.closed(Settlement(Outcome.SETTLED, Usage(1, 1, total=2), 2, "usage"))
                    assert decision.reservation
        return generate_latest(metrics.registry).decode()

    few = await series_after(range(1, 3))
    many = await series_after(range(3, 60))
    assert "canary" not in many
    assert "192.0.2." not in many
    assert len(many.splitlines()) == len(few.splitlines())
    assert value(metrics, "tokenweir_decisions_total", outcome="admitted", reason="") == 59


def test_labels_are_the_ones_that_have_few_values():
    metrics = Metrics()
    collectors = set(metrics.registry._names_to_collectors.values())
    labels = {
        c._name: {*(c.labels if isinstance(c, Counts) else getattr(c, "_labelnames", ()))} for c in collectors
    }
    fixed = {"outcome", "reason", "kind", "queue", "scope", "threshold", "state", "window", "unit", "setting"}
    assert set().union(*labels.values()) == fixed | {"tenant", "model"}
    limits = {f"tokenweir_limit_{name}" for name in ("amount", "used", "remaining", "used_ratio")}
    limits |= {"tokenweir_limit_resets_timestamp_seconds", "tokenweir_tenant_decisions"}
    by_model = {"tokenweir_usage_tokens", "tokenweir_usage_price"}
    with_names = {name for name, its in labels.items() if {"tenant", "model"} & its}
    assert with_names == by_model | limits, "those whose tenants and models are bounded"
