"""Describe the dashboards of tenants and models: use against limits, and when they run out."""

from panels import Json, bars, dashboard, query, row, series, stat, table
from queries import A_LIMIT, BY_LIMIT, MODEL, OF_TENANT, TENANT, grown, rate


def tenants() -> Json:
    ratio = f"max {BY_LIMIT} (tokenweir_limit_used_ratio{OF_TENANT})"
    longer = '{,tenant=~"$tenant",window!="minute"}'
    speed = f"max {BY_LIMIT} (deriv(tokenweir_limit_used_ratio{longer}[1h]))"
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
                "Amount": query(f"max {BY_LIMIT} (tokenweir_limit_amount{OF_TENANT})", instant=True),
                "Used": query(f"max {BY_LIMIT} (tokenweir_limit_used{OF_TENANT})", instant=True),
                "Remaining": query(f"min {BY_LIMIT} (tokenweir_limit_remaining{OF_TENANT})", instant=True),
                "Part used": query(ratio, instant=True),
                "Resets in": query(
                    f"max {BY_LIMIT} (tokenweir_limit_resets_timestamp_seconds{OF_TENANT}) - time()", instant=True
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
                f"max {BY_LIMIT} (tokenweir_limit_resets_timestamp_seconds{longer}) - time()",
                A_LIMIT,
            ),
            unit="s",
        ),
        row("Requests and tokens"),
        series(
            "Decisions",
            query(rate(decisions, "tenant, outcome", of_tenant), "{{tenant}}: {{outcome}}"),
            unit="reqps",
        ),
        series(
            "Denied",
            query(f"topk(10, {rate(decisions, 'tenant', denied)})", "{{tenant}}"),
            unit="reqps",
            about="The ten tenants with most.",
        ),
        series(
            "Tokens",
            query(f"topk(10, {rate('tokenweir_usage_tokens_total', 'tenant', of_tenant)})", "{{tenant}}"),
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
    in_range = grown(tokens, "model", of_model, "$__range")
    rates = {kind: rate(tokens, "model", f'{{,model=~"$model",kind="{kind}"}}') for kind in ("input", "output")}
    by_kind = {
        kind: query(grown(tokens, "model", f'{{,model=~"$model",kind="{kind}"}}', "$__range"), instant=True)
        for kind in ("input", "output")
    }
    price = query(grown("tokenweir_usage_price_total", "model", of_model, "$__range"), instant=True)
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
            query(f"topk(10, {rate(tokens, 'model', of_model)})", "{{model}}"),
            about="Input and output, a second. Those beyond metrics.usage_series are (other).",
            stacked=True,
        ),
        series(
            "Output tokens for each input token",
            query(f"{rates['output']} / {rates['input']}", "{{model}}"),
        ),
        bars("Tokens in the range shown", query(f"topk(20, {in_range})", "{{model}}", instant=True)),
        series(
            "Tokens, by tenant of the model",
            query(f"topk(10, {rate(tokens, 'model, tenant', of_model)})", "{{model}}: {{tenant}}"),
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
