"""Describe the dashboards that ask the admin API too: finance, and service accounts."""

from typing import Final

from panels import Json, asked, bars, dashboard, listed, query, row, series, stat, table, variable
from queries import ADMIN, MODEL, TENANT_OF_USE, grown, rate

_FIGURES: Final = {
    "usage": "Charged",
    "input": "Input",
    "output": "Output",
    "requests": "Requests",
    "denied": "Denied",
    "price": "Price",
    "currency": "Currency",
}


def finance() -> Json:
    tokens, price = "tokenweir_usage_tokens_total", "tokenweir_usage_price_total"
    chosen = '{,tenant=~"$tenant",model=~"$model"}'

    def of_kind(kind: str) -> Json:
        labels = f'{{,tenant=~"$tenant",model=~"$model",kind="{kind}"}}'
        return query(grown(tokens, "tenant, model", labels, "$__range"), instant=True)

    def ranked(by: str) -> Json:
        return query(f"topk(20, {grown(price, by, chosen, '$__range')})", f"{{{{{by}}}}}", instant=True)

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
            query(f"topk(10, 3600 * {rate(price, 'tenant', chosen)})", "{{tenant}}"),
            stacked=True,
        ),
        series(
            "Price an hour, by model",
            query(f"topk(10, 3600 * {rate(price, 'model', chosen)})", "{{model}}"),
            stacked=True,
        ),
        table(
            "Tenants and models",
            {
                "Input tokens": of_kind("input"),
                "Output tokens": of_kind("output"),
                "Price": query(grown(price, "tenant, model", chosen, "$__range"), instant=True),
            },
            about="For bills, use the ledger below, or usage month: Prometheus rounds, and forgets.",
            names={"tenant": "Tenant", "model": "Model"},
        ),
        row("From the ledger, by the admin API: exact"),
        listed(
            "Months, by tenant",
            report("tenant", "month", {"name": "Tenant"}, {}),
            about="Months that the range shown touches, from its first to its last day.",
        ),
        listed("Months, by model", report("model", "month", {"name": "Model"}, {})),
        listed("Charged, by tenant", ranking("tenant", {"name": "Tenant"}, {}), about="The largest of the range."),
        listed(
            "Charged, by service account",
            ranking("service-account", {"name": "Service account", "tenant": "Tenant"}, {}),
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
        listed("Service accounts", ranking("service-account", {"name": "Service account"}, of_one)),
        listed("Client IPs", ranking("client-ip", {"name": "Client IP"}, of_one)),
        listed("Models", ranking("model", {"name": "Model"}, of_one)),
        listed("Endpoints", ranking("endpoint", {"name": "Endpoint"}, of_one)),
        listed(
            "Days",
            report("service-account", "day", {"name": "Service account"}, of_one),
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


def ranking(by: str, columns: dict[str, str], parameters: dict[str, str]) -> Json:
    return asked("/v1/usage/top", {"by": by, **_dates(parameters, "100")}, columns | _FIGURES)


def report(by: str, grain: str, columns: dict[str, str], parameters: dict[str, str]) -> Json:
    dated = {"period": grain.capitalize()} | columns | _FIGURES
    return asked("/v1/usage/report", {"by": by, "grain": grain, **_dates(parameters, "1000")}, dated)


def _dates(parameters: dict[str, str], at_most: str) -> dict[str, str]:
    since, until = "${__from:date:YYYY-MM-DD}", "${__to:date:YYYY-MM-DD}"
    return {**parameters, "since": since, "until": until, "at_most": at_most}
