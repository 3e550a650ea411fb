"""Routes with limits of their own, through the real Envoy: what a chart writes into a route is what binds there."""

import pytest_asyncio

from .callers import chat
from .marks import SYSTEM

pytestmark = SYSTEM

OVERRIDES = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
ROUTES = {
    "primary.example.com": ("models/qwen", "client_ip:3/minute,service_account:900/day:tokens"),
    "canary.example.com": ("models/qwen", "client_ip:3/minute,service_account:900/day:tokens"),
    "other.example.com": ("models/other", "client_ip:3/minute"),
    "mistaken.example.com": ("models/mistaken", "client_ip:many/minute"),
}


def with_routes(configuration):
    """Add a virtual host for each of `ROUTES`."""
    hosts = configuration.manager["route_config"]["virtual_hosts"]
    [everything] = hosts
    for host, (name, limits) in ROUTES.items():
        metadata = [{"key": "tokenweir-route", "value": name}, {"key": "tokenweir-limits", "value": limits}]
        route = dict(everything["routes"][-1])
        per_route = {"@type": OVERRIDES, "overrides": {"grpc_initial_metadata": metadata}}
        route["typed_per_filter_config"] = {**route["typed_per_filter_config"], "tokenweir": per_route}
        hosts.append({"name": host, "domains": [host, f"{host}:*"], "routes": [route]})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routed(stack, before):
    async with before(stack, change=with_routes) as found:
        yield found


async def ask(caller, host, **fields):
    return await caller.post(chat(**fields), headers={"host": host})


async def test_a_routes_limit_on_requests_binds_on_that_route_alone(routed, caller):
    caller = caller.on(routed)
    statuses = [(await ask(caller, "primary.example.com", max_tokens=5)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert (await ask(caller, "other.example.com", max_tokens=5)).status_code == 200
    assert (await ask(caller, "no-limits.example.com", max_tokens=5)).status_code == 200


async def test_a_denied_answer_says_which_limit_of_the_route_it_was(routed, caller):
    caller = caller.on(routed)
    for _ in range(3):
        await ask(caller, "other.example.com", max_tokens=5)
    denied = await ask(caller, "other.example.com", max_tokens=5)
    assert denied.json()["error"]["message"].startswith("Usage over limit -- IP.")
    assert denied.headers["x-ratelimit-limit-requests"] == "3"
    assert int(denied.headers["retry-after"]) <= 60


async def test_a_canary_gives_nobody_a_second_budget(routed, caller):
    caller = caller.on(routed)
    first = await ask(caller, "primary.example.com", max_tokens=800)
    assert first.status_code == 200
    used = first.json()["usage"]["total_tokens"]
    second = await ask(caller, "canary.example.com", max_tokens=900 - used)
    assert second.status_code == 429, "what the primary used is gone for the canary"
    assert second.headers["x-ratelimit-limit-tokens"] == "900"
    fits = await ask(caller.colleague("someone-else"), "canary.example.com", max_tokens=800)
    assert fits.status_code == 200


async def test_the_tenants_own_limits_bind_beside_those_of_the_route(routed, caller):
    await caller.limit(sa_limit=100)
    denied = await ask(caller.on(routed), "primary.example.com", max_tokens=200)
    assert denied.status_code == 429
    assert denied.headers["x-ratelimit-limit-tokens"] == "100"


async def test_the_own_quota_shows_the_limits_of_the_route_it_was_asked_on(routed, caller):
    caller = caller.on(routed)
    await ask(caller, "primary.example.com", max_tokens=5)
    async with caller.http() as client:
        own = await client.get("/v1/quota", headers={"host": "primary.example.com"})
    limits = {(limit["scope"], limit["unit"]): limit for limit in own.json()["limits"]}
    assert limits["client_ip", "requests"]["used"] == 1
    assert limits["service_account", "tokens"]["limit"] in (900, 100_000)


async def test_a_route_whose_limits_can_not_be_read_admits_nothing_and_the_log_names_the_fix(loud, before, caller):
    async with before(loud, change=with_routes) as routed:
        answer = await ask(caller.on(routed), "mistaken.example.com", max_tokens=5)
        assert answer.status_code >= 500
        assert "'client_ip:many/minute'" in loud.processors[0].log_path.read_text(encoding="utf-8")
