"""Write the queries and variables that several dashboards have."""

from typing import Final

from panels import data_source, variable

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
OF_TENANT: Final = '{,tenant=~"$tenant"}'
BY_LIMIT: Final = "by (tenant, scope, window, unit)"


def rate(name: str, by: str, labels: str = "{}") -> str:
    return f"sum by ({by}) (rate({name}{labels}{RATE}))"


def grown(name: str, by: str, labels: str = "{}", over: str = "$__rate_interval") -> str:
    return f"sum by ({by}) (increase({name}{labels}[{over}]))"


def quantile(part: float) -> str:
    return f"histogram_quantile({part}, sum by (le) (rate(tokenweir_reserve_seconds_bucket{{}}{RATE})))"
