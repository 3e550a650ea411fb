"""Write the dashboards that Grafana shows, as JSON, into the chart tokenweir.

python deploy/grafana/generate.py            writes them
python deploy/grafana/generate.py --check    names those that are out of date, and fails
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from panels import (
    Json,
    Panel,
    asked,
    bars,
    dashboard,
    data_source,
    listed,
    query,
    row,
    series,
    stat,
    table,
    variable,
)

INTO: Final = Path(__file__).parents[2] / "charts/tokenweir/dashboards"
RATE: Final = "[$__rate_interval]"
TENANT: Final = variable(
    "tenant", "Tenant", 'label_values(tokenweir_limit_amount{namespace=~"$namespace"}, tenant)'
)
TENANT_OF_USE: Final = variable(
    "tenant", "Tenant", 'label_values(tokenweir_usage_tokens_total{namespace=~"$namespace"}, tenant)'
)
MODEL: Final = variable(
    "model", "Model", 'label_values(tokenweir_usage_tokens_total{namespace=~"$namespace"}, model)'
)
ADMIN: Final = data_source("admin_api", "Admin API", "yesoreyeram-infinity-datasource")
A_LIMIT: Final = "{{tenant}}: {{scope}}, {{unit}} per {{window}}"
_LIMIT: Final = '{,tenant=~"$tenant"}'
_BY_LIMIT: Final = "by (tenant, scope, window, unit)"
_FIGURES: Final = {
    "usage": "Charged",
    "input": "Input",
    "output": "Output",
    "requests": "Requests",
    "denied": "Denied",
    "price": "Price",
    "currency": "Currency",
}


def main(arguments: list[str]) -> int:
    stale = []
    for path, text in wanted():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if '--check' in arguments else 'written'}: {path.name}")
    return 1 if stale and "--check" in arguments else 0


def wanted() -> Iterator[tuple[Path, str]]:
    """Yield each file and its wanted content."""
    for made in (operators(), tenants(), models(), finance(), accounts()):
        yield INTO / f"{made['uid']}.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _rate(name: str, by: str, labels: str = "{}") -> str:
    return f"sum by ({by}) (rate({name}{labels}{RATE}))"


def _grown(name: str, by: str, labels: str = "{}", over: str = "$__rate_interval") -> str:
    return f"sum by ({by}) (increase({name}{labels}[{over}]))"


def _quantile(part: float) -> str:
    return f"histogram_quantile({part}, sum by (le) (rate(tokenweir_reserve_seconds_bucket{{}}{RATE})))"


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
            _quantile(0.99),
            "s",
            "Time that a reservation takes at Redis. At 0.1 s requests are refused.",
            bad=0.05,
        ),
        stat("Refused for want of Redis", unavailable, "none", "503s in the range shown.", bad=1),
        row("Requests"),
        series("Decisions", query(_rate(decisions, "outcome"), "{{outcome}}"), unit="reqps", stacked=True),
        series(
            "Denied, by the limit that denied",
            query(_rate(decisions, "reason", '{,outcome="denied"}'), "{{reason}}"),
            unit="reqps",
            about="The scope of the limit, or suspended.",
            stacked=True,
        ),
        series(
            "Answered by Tokenweir itself",
            query(_rate("tokenweir_rejections_total", "reason"), "{{reason}}"),
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
            query(_rate("tokenweir_tokens_total", "kind"), "{{kind}}"),
            about="A second. charged is what the limits were charged, weights included.",
        ),
        series(
            "How requests ended",
            query(_rate(closed, "outcome"), "{{outcome}}"),
            unit="reqps",
            about="settled: on reported usage. estimated: none was reported. expired: a processor died.",
            stacked=True,
        ),
        series(
            "Why usage was estimated",
            query(_rate(closed, "reason", '{,outcome="estimated"}'), "{{reason}}"),
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
            query(_rate("tokenweir_shadow_denied_total", "scope"), "{{scope}}"),
            unit="reqps",
            width=8,
            stacked=True,
        ),
        row("Stores"),
        series(
            "Time of a decision",
            *(query(_quantile(part), f"{part:.0%}".replace("%", " %")) for part in (0.5, 0.9, 0.99)),
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
            query(_grown("tokenweir_queue_lost_total", "queue"), "{{queue}}"),
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
            query(_grown("tokenweir_alerts_total", "threshold"), "{{threshold}} % of a limit"),
            query(_grown("tokenweir_webhook_posts_total", "outcome"), "post {{outcome}}"),
            unit="none",
            width=8,
        ),
        row("Processors"),
        series(
            "Faults",
            query(_grown("tokenweir_stream_faults_total", "kind"), "{{kind}}"),
            unit="none",
            about="protocol: Envoy's set-up. unexpected: a bug.",
            width=8,
        ),
        series(
            "Prompts that a tokenizer did not count",
            query(_grown("tokenweir_prompts_not_counted_total", "reason"), "{{reason}}"),
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


def tenants() -> Json:
    ratio = f"max {_BY_LIMIT} (tokenweir_limit_used_ratio{_LIMIT})"
    longer = '{,tenant=~"$tenant",window!="minute"}'
    speed = f"max {_BY_LIMIT} (deriv(tokenweir_limit_used_ratio{longer}[1h]))"
    runs_out = f"(1 - {ratio} > 0) / ({speed} > 0)"
    decisions = "tokenweir_tenant_decisions_total"
    locked = (
        f'count((sum by (tenant) (increase({decisions}{{,outcome="denied"}}[10m])) > 0) unless '
        f'(sum by (tenant) (increase({decisions}{{,outcome="admitted"}}[10m])) > 0)) or vector(0)'
    )
    near = 'count(max by (tenant) (tokenweir_limit_used_ratio{,window!="minute"}) >= 0.9) or vector(0)'
    of_tenant, denied = '{,tenant=~"$tenant"}', '{,tenant=~"$tenant",outcome="denied"}'
    panels = [
        row("Who is near a limit"),
        stat("Tenants near a limit", near, "none", "90 % of a limit is used, minutes left out.", bad=1, width=6),
        stat(
            "Tenants locked out",
            locked,
            "none",
            "All requests of the last ten minutes were denied.",
            bad=1,
            width=6,
        ),
        stat("Tenants shown", "count(count by (tenant) (tokenweir_limit_amount{}))", "none", width=6),
        stat(
            "Tenants not shown",
            "max(tokenweir_limits_not_shown{})",
            "none",
            "More than metrics.tenant_series.",
            bad=1,
            width=6,
        ),
        bars(
            "Use of limits: the 20 that are used most",
            query(f"topk(20, {ratio})", A_LIMIT, instant=True),
            "percentunit",
            "Of limits by service account, client IP, model or endpoint: the one that is nearest to its limit.",
            most=1,
        ),
        series("Use of limits over time", query(ratio, A_LIMIT), unit="percentunit"),
        table(
            "Limits",
            {
                "Amount": query(f"max {_BY_LIMIT} (tokenweir_limit_amount{_LIMIT})", instant=True),
                "Used": query(f"max {_BY_LIMIT} (tokenweir_limit_used{_LIMIT})", instant=True),
                "Remaining": query(f"min {_BY_LIMIT} (tokenweir_limit_remaining{_LIMIT})", instant=True),
                "Part used": query(ratio, instant=True),
                "Resets in": query(
                    f"max {_BY_LIMIT} (tokenweir_limit_resets_timestamp_seconds{_LIMIT}) - time()", instant=True
                ),
                "Runs out in": query(runs_out, instant=True),
            },
            about="Runs out in: if it goes on as in the last hour. Empty where nothing is used.",
            names={"tenant": "Tenant", "scope": "Scope", "window": "Window", "unit": "Unit"},
            units={"Part used": "percentunit", "Resets in": "s", "Runs out in": "s"},
        ),
        row("Forecast"),
        series(
            "A limit runs out in",
            query(runs_out, A_LIMIT),
            unit="s",
            about="If it goes on as in the last hour. Compare it with the time until the limit resets.",
        ),
        series(
            "A limit resets in",
            query(
                f"max {_BY_LIMIT} (tokenweir_limit_resets_timestamp_seconds{longer}) - time()",
                A_LIMIT,
            ),
            unit="s",
        ),
        row("Requests and tokens"),
        series(
            "Decisions",
            query(_rate(decisions, "tenant, outcome", of_tenant), "{{tenant}}: {{outcome}}"),
            unit="reqps",
        ),
        series(
            "Denied",
            query(f"topk(10, {_rate(decisions, 'tenant', denied)})", "{{tenant}}"),
            unit="reqps",
            about="The ten tenants with most.",
        ),
        series(
            "Tokens",
            query(f"topk(10, {_rate('tokenweir_usage_tokens_total', 'tenant', of_tenant)})", "{{tenant}}"),
            about="Input and output, a second; the ten tenants that use most.",
            width=24,
        ),
    ]
    return dashboard(
        "tokenweir-tenants",
        "Tokenweir: tenants",
        "Use against limits, and when they run out.",
        panels,
        variables=[TENANT],
        since="now-6h",
    )


def models() -> Json:
    tokens, of_model = "tokenweir_usage_tokens_total", '{,model=~"$model"}'
    grown = _grown(tokens, "model", of_model, "$__range")
    rates = {kind: _rate(tokens, "model", f'{{,model=~"$model",kind="{kind}"}}') for kind in ("input", "output")}
    by_kind = {
        kind: query(_grown(tokens, "model", f'{{,model=~"$model",kind="{kind}"}}', "$__range"), instant=True)
        for kind in ("input", "output")
    }
    price = query(_grown("tokenweir_usage_price_total", "model", of_model, "$__range"), instant=True)
    panels = [
        row("At a glance"),
        stat(
            "Models",
            f"count(count by (model) ({tokens}{{}}))",
            "none",
            "That were used, (other) counted as one.",
            width=8,
        ),
        stat("Input tokens", f'sum(increase({tokens}{{,model=~"$model",kind="input"}}[$__range]))', width=8),
        stat("Output tokens", f'sum(increase({tokens}{{,model=~"$model",kind="output"}}[$__range]))', width=8),
        row("By model"),
        series(
            "Tokens, by model",
            query(f"topk(10, {_rate(tokens, 'model', of_model)})", "{{model}}"),
            about="Input and output, a second. Those beyond metrics.usage_series are (other).",
            stacked=True,
        ),
        series(
            "Output tokens for each input token",
            query(f"{rates['output']} / {rates['input']}", "{{model}}"),
        ),
        bars("Tokens in the range shown", query(f"topk(20, {grown})", "{{model}}", instant=True)),
        series(
            "Tokens, by tenant of the model",
            query(f"topk(10, {_rate(tokens, 'model, tenant', of_model)})", "{{model}}: {{tenant}}"),
        ),
        table(
            "Tokens and price, by model",
            {"Input tokens": by_kind["input"], "Output tokens": by_kind["output"], "Price": price},
            about="In the range shown. Price: in cost.currency, of models that have prices.",
            names={"model": "Model"},
        ),
    ]
    return dashboard(
        "tokenweir-models", "Tokenweir: models", "Which models are used, and by whom.", panels, variables=[MODEL]
    )


def finance() -> Json:
    tokens, price = "tokenweir_usage_tokens_total", "tokenweir_usage_price_total"
    chosen = '{,tenant=~"$tenant",model=~"$model"}'

    def of_kind(kind: str) -> Json:
        labels = f'{{,tenant=~"$tenant",model=~"$model",kind="{kind}"}}'
        return query(_grown(tokens, "tenant, model", labels, "$__range"), instant=True)

    def ranked(by: str) -> Json:
        return query(f"topk(20, {_grown(price, by, chosen, '$__range')})", f"{{{{{by}}}}}", instant=True)

    panels = [
        row("In the range shown"),
        stat("Price", f"sum(increase({price}{chosen}[$__range]))", about="In cost.currency.", width=8),
        stat("Tokens", f"sum(increase({tokens}{chosen}[$__range]))", about="Input and output.", width=8),
        stat(
            "Price of a million tokens",
            f"1e6 * sum(increase({price}{chosen}[$__range])) / sum(increase({tokens}{chosen}[$__range]))",
            about="In cost.currency, over all models.",
            width=8,
        ),
        bars("Price, by tenant", ranked("tenant"), about="In cost.currency; the 20 largest."),
        bars("Price, by model", ranked("model"), about="In cost.currency; the 20 largest."),
        series(
            "Price an hour, by tenant",
            query(f"topk(10, 3600 * {_rate(price, 'tenant', chosen)})", "{{tenant}}"),
            stacked=True,
        ),
        series(
            "Price an hour, by model",
            query(f"topk(10, 3600 * {_rate(price, 'model', chosen)})", "{{model}}"),
            stacked=True,
        ),
        table(
            "Tenants and models",
            {
                "Input tokens": of_kind("input"),
                "Output tokens": of_kind("output"),
                "Price": query(_grown(price, "tenant, model", chosen, "$__range"), instant=True),
            },
            about="For bills, use the ledger below, or usage month: Prometheus rounds, and forgets.",
            names={"tenant": "Tenant", "model": "Model"},
        ),
        row("From the ledger, by the admin API: exact"),
        listed(
            "Months, by tenant",
            _report("tenant", "month", {"name": "Tenant"}, {}),
            about="Months that the range shown touches, from its first to its last day.",
        ),
        listed("Months, by model", _report("model", "month", {"name": "Model"}, {})),
        listed(
            "Charged, by tenant", _ranking("tenant", {"name": "Tenant"}, {}), about="The largest of the range."
        ),
        listed(
            "Charged, by service account",
            _ranking("service-account", {"name": "Service account", "tenant": "Tenant"}, {}),
            about="The largest of the range.",
        ),
    ]
    return dashboard(
        "tokenweir-finance",
        "Tokenweir: finance",
        "Tokens and money by tenant, model and month. Choose the month by the range of time.",
        panels,
        variables=[ADMIN, TENANT_OF_USE, MODEL],
        since="now/M",
    )


def accounts() -> Json:
    one = variable(
        "tenant", "Tenant", 'label_values(tokenweir_limit_amount{namespace=~"$namespace"}, tenant)', multi=False
    )
    of_one = {"tenant": "$tenant"}
    panels = [
        row("From the ledger, by the admin API"),
        listed("Service accounts", _ranking("service-account", {"name": "Service account"}, of_one)),
        listed("Client IPs", _ranking("client-ip", {"name": "Client IP"}, of_one)),
        listed("Models", _ranking("model", {"name": "Model"}, of_one)),
        listed("Endpoints", _ranking("endpoint", {"name": "Endpoint"}, of_one)),
        listed(
            "Days",
            _report("service-account", "day", {"name": "Service account"}, of_one),
            about="The newest 1000 rows of the range shown.",
            width=24,
        ),
    ]
    return dashboard(
        "tokenweir-accounts",
        "Tokenweir: service accounts",
        "Who of a tenant used what. Prometheus has no service accounts: they are asked of the admin API.",
        panels,
        variables=[ADMIN, one],
        since="now-7d",
    )


def _ranking(by: str, columns: dict[str, str], parameters: dict[str, str]) -> Json:
    return asked("/v1/usage/top", {"by": by, **_dates(parameters, "100")}, columns | _FIGURES)


def _report(by: str, grain: str, columns: dict[str, str], parameters: dict[str, str]) -> Json:
    dated = {"period": grain.capitalize()} | columns | _FIGURES
    return asked("/v1/usage/report", {"by": by, "grain": grain, **_dates(parameters, "1000")}, dated)


def _dates(parameters: dict[str, str], at_most: str) -> dict[str, str]:
    since, until = "${__from:date:YYYY-MM-DD}", "${__to:date:YYYY-MM-DD}"
    return {**parameters, "since": since, "until": until, "at_most": at_most}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
