"""Describe the dashboard for operators: whether Tokenweir serves, and what it does."""

from panels import Json, Panel, dashboard, query, row, series, stat
from queries import RATE, grown, quantile, rate


def operators() -> Json:
    decisions, closed = "tokenweir_decisions_total", "tokenweir_reservations_closed_total"
    denied = f'sum(rate({decisions}{{,outcome="denied"}}{RATE})) / sum(rate({decisions}{{}}{RATE}))'
    low = 'sum(rate(tokenweir_prompt_estimate_ratio_bucket{,le="0.99"}' + RATE + "))"
    unavailable = f'sum(increase({decisions}{{,outcome="unavailable"}}[$__range]))'
    panels: list[Panel] = [
        row("At a glance"),
        stat("Processors that serve", "sum(tokenweir_ready{})", "none", bad=-1),
        stat("Requests", f"sum(rate({decisions}{{}}{RATE}))", "reqps", "Metered requests that were decided on."),
        stat("Denied", denied, "percentunit", "Share of the requests."),
        stat(
            "Tokens",
            f'sum(rate(tokenweir_tokens_total{{,kind=~"input|output"}}{RATE})) * 60',
            "short",
            "Input and output, a minute.",
        ),
        stat(
            "Decision, 99 %",
            quantile(0.99),
            "s",
            "Time that a reservation takes at Redis. At 0.1 s requests are refused.",
            bad=0.05,
        ),
        stat("Refused for want of Redis", unavailable, "none", "503s in the range shown.", bad=1),
        row("Requests"),
        series("Decisions", query(rate(decisions, "outcome"), "{{outcome}}"), unit="reqps", stacked=True),
        series(
            "Denied, by the limit that denied",
            query(rate(decisions, "reason", '{,outcome="denied"}'), "{{reason}}"),
            unit="reqps",
            about="The scope of the limit, or suspended.",
            stacked=True,
        ),
        series(
            "Answered by Tokenweir itself",
            query(rate("tokenweir_rejections_total", "reason"), "{{reason}}"),
            unit="reqps",
            about="What never reached a model, malformed requests included.",
            stacked=True,
        ),
        series(
            "Streams in flight",
            query("sum by (pod) (tokenweir_streams{})", "{{pod}}"),
            unit="none",
            about="One for each metered request, until its answer's end.",
            stacked=True,
        ),
        row("Tokens"),
        series(
            "Tokens, by kind",
            query(rate("tokenweir_tokens_total", "kind"), "{{kind}}"),
            about="A second. charged is what the limits were charged, weights included.",
        ),
        series(
            "How requests ended",
            query(rate(closed, "outcome"), "{{outcome}}"),
            unit="reqps",
            about="settled: on reported usage. estimated: none was reported. expired: a processor died.",
            stacked=True,
        ),
        series(
            "Why usage was estimated",
            query(rate(closed, "reason", '{,outcome="estimated"}'), "{{reason}}"),
            unit="reqps",
            width=8,
            stacked=True,
        ),
        series(
            "Prompt estimates that were too low",
            query(f"{low} / sum(rate(tokenweir_prompt_estimate_ratio_count{{}}{RATE}))", "share"),
            unit="percentunit",
            about="They are settled on true usage; meanwhile a limit can be overshot.",
            width=8,
        ),
        series(
            "Shadow limits would have denied",
            query(rate("tokenweir_shadow_denied_total", "scope"), "{{scope}}"),
            unit="reqps",
            width=8,
            stacked=True,
        ),
        row("Stores"),
        series(
            "Time of a decision",
            *(query(quantile(part), f"{part:.0%}".replace("%", " %")) for part in (0.5, 0.9, 0.99)),
            unit="s",
            about="At Redis, failed ones included.",
            width=8,
        ),
        series(
            "Waiting to be written",
            query("max by (queue) (tokenweir_queue_items{})", "{{queue}}"),
            unit="none",
            about="ledger waits for MongoDB, closings and renewals for Redis. 100,000 are kept at the most.",
            width=8,
        ),
        series(
            "Lost",
            query(grown("tokenweir_queue_lost_total", "queue"), "{{queue}}"),
            unit="none",
            about="Refused for good, or more than the queue holds.",
            width=8,
        ),
        series(
            "Ledger entries in Redis",
            query("max by (state) (tokenweir_journal_entries{})", "{{state}}"),
            unit="none",
            about="waiting for MongoDB; aside: MongoDB refused them for good.",
            width=8,
        ),
        series(
            "Age of the oldest ledger entry in Redis",
            query("max(tokenweir_journal_oldest_seconds{})", "oldest"),
            unit="s",
            about="It grows while MongoDB is away.",
            width=8,
        ),
        series("Spool on disk", query("sum by (pod) (tokenweir_spool_bytes{})", "{{pod}}"), unit="bytes", width=8),
        series(
            "Age of the limits",
            query("time() - min by (pod) (tokenweir_limits_loaded_timestamp_seconds{} > 0)", "{{pod}}"),
            unit="s",
            about="Since they were last read from MongoDB.",
            width=8,
        ),
        series(
            "Tenants with limits",
            query("max(tokenweir_limits_tenants{})", "tenants"),
            query("max(tokenweir_limits_bad_documents{})", "documents that can't be used"),
            query("max(tokenweir_limits_not_shown{})", "tenants that are not shown"),
            unit="none",
            width=8,
        ),
        series(
            "Alerts and their posts",
            query(grown("tokenweir_alerts_total", "threshold"), "{{threshold}} % of a limit"),
            query(grown("tokenweir_webhook_posts_total", "outcome"), "post {{outcome}}"),
            unit="none",
            width=8,
        ),
        row("Processors"),
        series(
            "Faults",
            query(grown("tokenweir_stream_faults_total", "kind"), "{{kind}}"),
            unit="none",
            about="protocol: Envoy's set-up. unexpected: a bug.",
            width=8,
        ),
        series(
            "Prompts that a tokenizer did not count",
            query(grown("tokenweir_prompts_not_counted_total", "reason"), "{{reason}}"),
            unit="none",
            about="They went by bytes.",
            width=8,
        ),
        series(
            "Difference of ledger and counters",
            query("max(tokenweir_ledger_drift{})", "largest"),
            about="Of the tenants' own limits that are shown, in tokens. 0: they agree.",
            width=8,
        ),
    ]
    return dashboard("tokenweir", "Tokenweir: operators", "Whether Tokenweir serves, and what it does.", panels)
