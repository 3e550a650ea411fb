"""Define the Prometheus metrics. Label values are small fixed sets, except tenant and model.

The tenants, and the pairs of tenant and model, are bounded in number; all others are counted as one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from extproc.core.quota.reservation import BucketState
from extproc.core.quota.settlement import Settlement
from extproc.core.quota.usage import Usage
from extproc.observe.certificates import certificate_gauge
from extproc.observe.counting import Counts, Distribution

OTHER = "(other)"

# Below 0.99 the estimate was too low; 0.99 to 1.01 means that a tokenizer counted.
_RATIOS = (0.5, 0.75, 0.9, 0.99, 1.01, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_INPUT, _OUTPUT, _CHARGED = ("input",), ("output",), ("charged",)
_OUTCOMES: Final = ("admitted", "denied", "unavailable")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)


LimitLabels = tuple[str, str, str, str]
"""Name what limits are shown by: tenant, scope, window and unit."""


class _LimitGauges:
    """Show the limits of tenants. A series that is not among the latest ones is removed."""

    def __init__(self, gauge: Callable[[str, str, tuple[str, ...]], Gauge]) -> None:
        labels = ("tenant", "scope", "window", "unit")
        self._amount = gauge("tokenweir_limit_amount", "Amount of the limit, top-ups included.", labels)
        self._used = gauge("tokenweir_limit_used", "Amount that is used in the present window.", labels)
        self._remaining = gauge("tokenweir_limit_remaining", "Amount that is neither used nor held.", labels)
        self._ratio = gauge("tokenweir_limit_used_ratio", "Part of the amount that is used; 1: all.", labels)
        self._resets = gauge(
            "tokenweir_limit_resets_timestamp_seconds",
            "End of the present window, in seconds since the epoch.",
            labels,
        )
        self._left_out = gauge(
            "tokenweir_limits_not_shown", "Tenants whose limits are not shown: there are too many.", ()
        )
        self._shown: set[LimitLabels] = set()

    def show(self, states: Mapping[LimitLabels, BucketState], left_out: int) -> None:
        """Set the series of these limits first, and remove the others then: a scrape may come in between."""
        for labels, state in states.items():
            self._amount.labels(*labels).set(state.bucket.limit.amount)
            self._used.labels(*labels).set(state.count.used)
            self._remaining.labels(*labels).set(state.remaining)
            self._ratio.labels(*labels).set(state.used_ratio)
            self._resets.labels(*labels).set(state.bucket.interval.end)
        for labels in self._shown.difference(states):
            for gauge in (self._amount, self._used, self._remaining, self._ratio, self._resets):
                gauge.remove(*labels)
        self._shown = set(states)
        self._left_out.set(left_out)


class Metrics:
    """Hold all of Tokenweir's metrics, on a registry of its own."""

    def __init__(self, usage_series: int = 200, tenant_series: int = 200) -> None:
        """Create the metrics. `usage_series` is the number of tenant and model pairs with a series of their own;
        0: none. `tenant_series` is the same for the tenants whose decisions are counted separately.
        """
        self.registry = CollectorRegistry()
        self._usage_series = usage_series
        self._tenant_series = tenant_series
        self._tenants: set[str] = set()
        self._told_apart: set[tuple[str, str]] = set()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        counts, distribution = (
            partial(Counts, registry=self.registry),
            partial(Distribution, registry=self.registry),
        )
        by_outcome = ("outcome", "reason")
        self._decisions = counts("tokenweir_decisions", "Decisions.", by_outcome)
        self._decisions_by_tenant = counts(
            "tokenweir_tenant_decisions", "Decisions by tenant.", ("tenant", "outcome")
        )
        self._rejections = counts("tokenweir_rejections", "Requests answered by Tokenweir itself.", ("reason",))
        self._tokens = counts("tokenweir_tokens", "Tokens settled: input, output, charged.", ("kind",))
        self._used = counts(
            "tokenweir_usage_tokens", "Tokens settled: input, output.", ("tenant", "model", "kind")
        )
        self._priced = counts(
            "tokenweir_usage_price", "Price of settled tokens, in cost.currency.", ("tenant", "model")
        )
        self._closed = counts("tokenweir_reservations_closed", "Reservations ended.", by_outcome)
        self._reserve = distribution(
            "tokenweir_reserve_seconds", "Time that a reservation took at the counters.", _SECONDS
        )
        self._shadowed = counter(
            "tokenweir_shadow_denied", "Requests that a shadow limit would have denied.", ("scope",)
        )
        self._alerts = counter(
            "tokenweir_alerts", "Thresholds that buckets reached, and denials.", ("threshold", "scope")
        )
        self._posts = counter("tokenweir_webhook_posts", "Alerts sent to the webhook.", ("outcome",))
        self._estimate = distribution(
            "tokenweir_prompt_estimate_ratio",
            "Estimated tokens of a prompt, divided by the upstream's count.",
            _RATIOS,
        )
        self._uncounted = counter(
            "tokenweir_prompts_not_counted", "Prompts that a tokenizer should have counted.", ("reason",)
        )
        self._ready = gauge("tokenweir_ready", "1 while requests are served.")
        self._streams = gauge("tokenweir_streams", "ext_proc streams that are open.")
        self._buffered = gauge("tokenweir_buffered_bytes", "Bytes of bodies that are kept while they are read.")
        self._in_flight = gauge("tokenweir_tenant_in_flight", "Requests in flight of the tenant that has most.")
        self._faults = counter("tokenweir_stream_faults", "Streams that ended in a fault.", ("kind",))
        self._unread = gauge("tokenweir_unread_bytes", "Bytes of messages that no stream has taken yet.")
        self._connection_faults = counter(
            "tokenweir_connection_faults", "Connections that were closed because of their peer.", ("kind",)
        )
        self._queued = gauge("tokenweir_queue_items", "Items waiting to be delivered.", ("queue",))
        self._lost = counter("tokenweir_queue_lost", "Items that a queue could not keep or deliver.", ("queue",))
        self._breaker = gauge("tokenweir_breaker_open", "1 while calls to the counters are suspended.")
        self._unready = gauge("tokenweir_partitions_unready", "Partitions whose counters are being rebuilt.")
        self._rebuilds = counter("tokenweir_rebuilds", "Partitions whose counters were rebuilt here.")
        self._behind = counter("tokenweir_ledger_behind", "Looks that found the ledger older than the counters.")
        self._drift = gauge(
            "tokenweir_ledger_drift", "Largest difference of ledger and counters, of the tenants' own limits."
        )
        self._journal = gauge("tokenweir_journal_entries", "Entries in the journal.", ("state",))
        self._journal_age = gauge("tokenweir_journal_oldest_seconds", "Age of the oldest entry in seconds.")
        self._spool = gauge("tokenweir_spool_bytes", "Bytes in the spool on disk.")
        self._tenants_known = gauge("tokenweir_limits_tenants", "Tenants whose limits are known.")
        self._limits = _LimitGauges(gauge)
        self._bad_documents = gauge(
            "tokenweir_limits_bad_documents", "Limit documents with fields that can't be used."
        )
        self._bad_fields = gauge("tokenweir_limits_bad_fields", "Fields of limit documents that can't be used.")
        self._limits_loaded = gauge(
            "tokenweir_limits_loaded_timestamp_seconds",
            "Time of the last read of the limits, in seconds since the epoch.",
        )
        self._certificates = certificate_gauge(self.registry)
        self._start_at_0()

    def _start_at_0(self) -> None:
        """Create what alerts watch from the start: Prometheus sees no increase when a new series starts at 1."""
        self._decisions.add(("unavailable", "store"), 0)
        self._closed.add(("expired", "expired"), 0)
        self._closed.add(("settled", "overran"), 0)
        self._closed.add(("estimated", "implausible"), 0)
        for reason in ("too_large", "busy", "slow", "failed"):
            self._uncounted.labels(reason)
        for outcome in ("delivered", "failed", "refused"):
            self._posts.labels(outcome)
        self._rejections.add(("in_flight",), 0)
        for kind in ("protocol", "unexpected", "caller", "idle", "too_many"):
            self._faults.labels(kind)
        for kind in ("protocol_error", "frame_size_error", "compression_error", "enhance_your_calm"):
            self._connection_faults.labels(kind)

    def decided(self, outcome: str, reason: str) -> None:
        self._decisions.add((outcome, reason))

    def decided_for(self, tenant: str, outcome: str, *, known: bool) -> None:
        """Count a decision by tenant. A tenant that nobody configured (not `known`) is told apart once it has used
        tokens: a name alone costs nothing.
        """
        if not self._tenant_series:
            return
        if tenant not in self._tenants and not (known and self._tell_apart(tenant, self._tenant_series)):
            tenant = OTHER
        self._decisions_by_tenant.add((tenant, outcome))

    def rejected(self, reason: str) -> None:
        self._rejections.add((reason,))

    def closed(self, settlement: Settlement) -> None:
        self._closed.add((settlement.outcome, settlement.reason))
        self._tokens.add(_INPUT, settlement.usage.input)
        self._tokens.add(_OUTPUT, settlement.usage.output)
        self._tokens.add(_CHARGED, settlement.charge)

    def used(self, tenant: str, model: str, usage: Usage, price: int = 0) -> None:
        """Count usage by tenant and model, and its price in billionths of the currency.

        Without usage no series is created, so a name alone costs nothing.
        """
        if not (usage.input or usage.output):
            return
        if tenant not in self._tenants:  # half of the series are left to those that somebody configured
            self._tell_apart(tenant, self._tenant_series // 2)
        if not self._usage_series:
            return
        pair = (tenant, model)
        if pair not in self._told_apart:
            if len(self._told_apart) < self._usage_series:
                self._told_apart.add(pair)
            else:
                pair = (OTHER, OTHER)
        self._used.add((*pair, "input"), usage.input)
        self._used.add((*pair, "output"), usage.output)
        if price:
            self._priced.add(pair, price / 1e9)

    def _tell_apart(self, tenant: str, at_most: int) -> bool:
        """Give a tenant series of its own. Return False if `at_most` tenants have some."""
        if len(self._tenants) >= at_most:
            return False
        self._tenants.add(tenant)
        for outcome in _OUTCOMES:  # from 0: Prometheus sees no increase when a series starts at 1
            self._decisions_by_tenant.add((tenant, outcome), 0)
        return True

    def shadowed(self, scope: str) -> None:
        self._shadowed.labels(scope).inc()

    def alerted(self, threshold: int | str, scope: str) -> None:
        self._alerts.labels(str(threshold), scope).inc()

    def posted(self, outcome: str) -> None:
        self._posts.labels(outcome).inc()

    def prompt_not_counted(self, reason: str) -> None:
        self._uncounted.labels(reason).inc()

    def estimated(self, ratio: float) -> None:
        self._estimate.observe(ratio)

    def ready(self, serving: bool) -> None:
        self._ready.set(serving)

    def reserved(self, seconds: float) -> None:
        """Record the time that one reservation took."""
        self._reserve.observe(seconds)

    def watch_streams(self, streams: Callable[[], int]) -> None:
        self._streams.set_function(streams)

    def stream_fault(self, kind: str) -> None:
        self._faults.labels(kind).inc()

    def connection_fault(self, kind: str) -> None:
        self._connection_faults.labels(kind).inc()

    def watch_unread(self, unread_bytes: Callable[[], int]) -> None:
        self._unread.set_function(unread_bytes)

    def watch_buffers(self, kept_bytes: Callable[[], int]) -> None:
        self._buffered.set_function(kept_bytes)

    def watch_in_flight(self, most: Callable[[], int]) -> None:
        self._in_flight.set_function(most)

    def watch_certificate(self, setting: str, expires_at: Callable[[], float]) -> None:
        self._certificates.labels(setting).set_function(expires_at)

    def watch_queue(self, queue: str, size: Callable[[], int]) -> None:
        self._queued.labels(queue).set_function(size)
        self._lost.labels(queue)

    def lost(self, queue: str, items: int) -> None:
        self._lost.labels(queue).inc(items)

    def watch_breaker(self, is_open: Callable[[], bool]) -> None:
        self._breaker.set_function(is_open)

    def unready(self, partitions: int) -> None:
        self._unready.set(partitions)

    def rebuilt(self) -> None:
        self._rebuilds.inc()

    def ledger_behind(self) -> None:
        self._behind.inc()

    def ledger_drift(self, largest: int) -> None:
        self._drift.set(largest)

    def backlog(self, waiting: int, oldest_s: float, aside: int) -> None:
        self._journal.labels("waiting").set(waiting)
        self._journal.labels("aside").set(aside)
        self._journal_age.set(oldest_s)

    def watch_spool(self, size: Callable[[], int]) -> None:
        self._spool.set_function(size)

    def limits_used(self, states: Mapping[LimitLabels, BucketState], left_out: int) -> None:
        """Show how much of these limits is used, and of no others. `left_out` tenants found no place."""
        self._limits.show(states, left_out)

    def limits_loaded(self, tenants: int, bad: int, bad_fields: int, at: float) -> None:
        self._tenants_known.set(tenants)
        self._bad_documents.set(bad)
        self._bad_fields.set(bad_fields)
        self._limits_loaded.set(at)
