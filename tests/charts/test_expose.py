"""How a model is published: hosts, paths, weights; at the gateway and inside the mesh."""

import itertools

import pytest
import yaml

from extproc.local.envoy_config import EnvoyOptions
from tests.charts import helm, mesh, schemas
from tests.sizes import sampled

DOMAIN = "models.example.com"
LLM = {
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://q/q"}}
    }
}
ONNX = {"inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://b/m"}}}}
CUSTOM = {"inferenceservice": {"predictor": {"containers": [{"image": "registry.example.com/mine:1"}]}}}
CANARY = {
    "primaryLoad": 60,
    "inferenceservice": {
        "predictor": {
            "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/1", "newStorageUri": "s3://b/2"}
        }
    },
}
EXPOSED = {"exposeModel": {"enabled": True}}
BY_API = {"istio": EXPOSED, "gateway-api": {"exposeModel": {"enabled": True, "api": "gateway-api"}}}
APIS = pytest.mark.parametrize("exposed", BY_API.values(), ids=BY_API)
CHARTS = pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])


def host(part: str, domain: str = DOMAIN) -> str:
    return f"{part}-predictor-models.{domain}"


def published(documents, name="qwen-predictor"):
    return helm.pick(documents, "VirtualService", name)["spec"]


@APIS
@CHARTS
def test_a_model_has_the_host_of_its_release(chart, exposed):
    documents = helm.render(chart, LLM, exposed)
    service = "qwen-primary-predictor" if chart == "kserve-general" else "qwen-predictor"
    assert mesh.destinations(documents, host("qwen"), "/v1/chat/completions") == {service: 100}


@CHARTS
def test_nothing_is_published_unless_it_is_asked_for(chart):
    documents = helm.render(chart, LLM)
    assert mesh.destinations(documents, host("qwen"), "/v1/chat/completions") == 404
    assert [each["spec"]["gateways"] for each in documents if each["kind"] == "VirtualService"] == [["mesh"]]
    assert "HTTPRoute" not in helm.kinds(documents)


@APIS
def test_a_canary_gets_its_share_and_each_variant_has_a_host_of_its_own(exposed):
    documents = helm.render("kserve-general", CANARY, exposed)
    both = {"qwen-primary-predictor": 60, "qwen-canary-predictor": 40}
    path = "/v1/models/qwen:predict"
    assert mesh.destinations(documents, host("qwen"), path) == both
    assert mesh.destinations(documents, host("qwen-primary"), path) == {"qwen-primary-predictor": 100}
    assert mesh.destinations(documents, host("qwen-canary"), path) == {"qwen-canary-predictor": 100}


@APIS
def test_without_a_canary_there_is_no_host_for_one(exposed):
    documents = helm.render("kserve-general", LLM, exposed)
    assert mesh.destinations(documents, host("qwen-canary"), "/v1/models") == 404
    assert mesh.destinations(documents, host("qwen-primary"), "/v1/models") == {"qwen-primary-predictor": 100}


@pytest.mark.parametrize("load", [0, 1, 99, 100])
def test_weights_are_never_null_and_sum_to_100(load):
    documents = helm.render("kserve-general", CANARY, EXPOSED, {"primaryLoad": load})
    split = mesh.destinations(documents, host("qwen"), "/v1/models/qwen:predict")
    assert split == {"qwen-primary-predictor": load, "qwen-canary-predictor": 100 - load}


def test_inference_takes_as_long_as_it_takes_and_is_never_repeated():
    documents = helm.render("kserve-general", CANARY, EXPOSED)
    rules = [rule for d in documents if d["kind"] == "VirtualService" for rule in d["spec"]["http"]]
    assert len(rules) == 4  # three at the gateway, one in the mesh
    for rule in rules:
        # Istio's default is no timeout, and its CRD refuses one below 1ms.
        assert (rule.get("timeout"), rule["retries"]) == (None, {"attempts": 0})


@APIS
def test_an_unused_connection_is_closed_before_the_model_server_closes_it(exposed):
    documents = helm.render("kserve-general", CANARY, exposed, {"primaryLoad": 90})
    found = {d["spec"]["host"]: d["spec"]["trafficPolicy"] for d in documents if d["kind"] == "DestinationRule"}
    policy = {"connectionPool": {"http": {"idleTimeout": "4s"}}}
    assert found == {"qwen-primary-predictor": policy, "qwen-canary-predictor": policy}
    (own,) = (d for d in helm.render("kserve-model", exposed) if d["kind"] == "DestinationRule")
    assert (own["metadata"]["name"], own["spec"]) == (
        "qwen-predictor",
        {"host": "qwen-predictor", "trafficPolicy": policy},
    )
    for idle, wanted in (("", 0), ("30s", 1), ("500ms", 1)):
        values = {"inferenceservice": {"predictor": {"idleTimeout": idle}}}
        rules = [d for d in helm.render("kserve-model", exposed, values) if d["kind"] == "DestinationRule"]
        assert len(rules) == wanted
        assert all(d["spec"]["trafficPolicy"]["connectionPool"]["http"]["idleTimeout"] == idle for d in rules)


def test_the_time_until_a_connection_is_closed_is_that_of_the_local_stack():
    seconds = EnvoyOptions.__dataclass_fields__["upstream_keep_alive_s"].default
    for chart in ("kserve-model", "kserve-general"):
        values = yaml.safe_load((helm.CHARTS / chart / "values.yaml").read_text())
        assert values["inferenceservice"]["predictor"]["idleTimeout"] == f"{seconds:g}s"


def test_gateway_api_has_no_timeout_and_its_repeats_are_off_by_envoyfilter():
    documents = helm.render("kserve-general", CANARY, BY_API["gateway-api"])
    routes = [each for each in documents if each["kind"] == "HTTPRoute"]
    assert len(routes) == 3
    named = {rule["name"]: rule for route in routes for rule in route["spec"]["rules"]}
    for rule in named.values():
        assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    patches = helm.pick(documents, "EnvoyFilter", "models.qwen")["spec"]["configPatches"]
    patched = {each["match"]["routeConfiguration"]["vhost"]["route"]["name"] for each in patches}
    # An Istio that doesn't know the names of rules counts them instead.
    assert patched == {*named, *(f"models.{each['metadata']['name']}.0" for each in routes)}
    for each in patches:
        assert each["patch"]["value"]["route"]["retry_policy"] == {"retry_on": "retriable-headers"}


def test_a_rule_that_comes_second_is_also_found_by_its_position():
    exposed = {"exposeModel": {"enabled": True, "api": "gateway-api"}}
    patches = helm.pick(helm.render("kserve-model", CUSTOM, exposed), "EnvoyFilter")["spec"]["configPatches"]
    names = [each["match"]["routeConfiguration"]["vhost"]["route"]["name"] for each in patches]
    assert names == ["models.qwen-predictor", "models.qwen-public.1"]


@APIS
def test_a_time_limit_of_the_predictor_is_that_of_its_routes(exposed):
    values = {"inferenceservice": {"predictor": {"timeout": 90}}}
    documents = helm.render("kserve-model", exposed, values)
    if exposed is EXPOSED:
        assert published(documents)["http"][0]["timeout"] == "90s"
    else:
        assert helm.pick(documents, "HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"] == "90s"


def test_routes_have_names_that_no_other_release_has():
    names = []
    for release, namespace in itertools.product(("a", "b"), ("x", "y")):
        documents = helm.render("kserve-general", CANARY, EXPOSED, release=release, namespace=namespace)
        routes = [d for d in documents if d["kind"] == "VirtualService" and "mesh" not in d["spec"]["gateways"]]
        names += [rule["name"] for route in routes for rule in route["spec"]["http"]]
        assert f"{namespace}.{release}-predictor" in names
    assert len(set(names)) == len(names) == 12


OPEN = {
    "openai": (
        LLM,
        [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses/resp_1",
            "/v1/models",
            "/v1/messages",
            "/openai/v1/chat/completions",
            "/v1/audio/speech",
            "/v1/rerank",
            "/v1/quota",
        ],
    ),
    "v1": ({}, ["/v1/models", "/v1/models/qwen:predict", "/v1/models/qwen:explain", "/v1/models/qwen"]),
    "v2": (ONNX, ["/v2", "/v2/models/qwen/infer", "/v2/models/qwen/versions/1/infer", "/v2/health/ready"]),
    "other": (CUSTOM, ["/", "/predict", "/anything/else"]),
}
ALWAYS_CLOSED = ["/metrics", "/metrics/", "//metrics", "/%2Fmetrics"]
CLOSED = {
    "openai": [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/reset_prefix_cache",
        "/sleep",
        "/generate",
        "/inference/v1/generate",
        "/v1/realtime",
        "/v1/batches",
        "/v1/messages/batches",
        "/api/chat",
        "/docs",
        "/update_weights",
        "/collective_rpc",
        "/openai/v1/load_lora_adapter",
        "/invocations",
        "/",
        "/v1/",
    ],
    "v1": ["/v1/load_lora_adapter", "/models", "/v2/repository/index", "/"],
    "v2": ["/v2/repository/index", "/v2/repository/models/a/load", "/v2/logging", "/v2/systemsharedmemory/status"],
    "other": [],
}


@APIS
@pytest.mark.parametrize("protocol", OPEN)
def test_only_paths_of_inference_are_published(protocol, exposed):
    values, paths = OPEN[protocol]
    documents = helm.render("kserve-model", values, exposed)
    for path in paths:
        assert mesh.destinations(documents, host("qwen"), path) == {"qwen-predictor": 100}, path
    # Gateway API has no path with a doubled or escaped slash: there the pods refuse it.
    closed = [p for p in ALWAYS_CLOSED if exposed is EXPOSED or p.startswith("/metrics")]
    for path in closed + CLOSED[protocol]:
        assert mesh.destinations(documents, host("qwen"), path) in (404, 500), path


@APIS
def test_paths_of_ones_own_replace_the_protocols_and_never_open_what_is_closed(exposed):
    values = {"exposeModel": {"paths": ["/v1/", "/tokenize"]}, "metrics": {"path": "/v1/stats"}}
    documents = helm.render("kserve-model", LLM, exposed, values)
    for path in ("/v1/anything", "/tokenize", "/v1/chat/completions"):
        assert mesh.destinations(documents, host("qwen"), path) == {"qwen-predictor": 100}, path
    for path in ("/v1/load_lora_adapter", "/v1/realtime", "/v1/batches/1", "/v1/stats", "/openai/v1/models"):
        assert mesh.destinations(documents, host("qwen"), path) in (404, 500), path


@APIS
def test_a_callers_own_identity_header_goes_no_further(exposed):
    documents = helm.render("kserve-model", exposed)
    if exposed is EXPOSED:
        assert published(documents)["http"][0]["headers"] == {"request": {"remove": ["oc_sa"]}}
    else:
        (change,) = helm.pick(documents, "HTTPRoute")["spec"]["rules"][0]["filters"]
        assert change["requestHeaderModifier"] == {"remove": ["oc_sa"]}
    within = helm.pick(documents, "VirtualService", "qwen-mesh")["spec"]["http"][0]
    assert within["headers"] == {"request": {"remove": ["oc_sa"]}}


def test_without_an_identity_header_none_is_removed():
    documents = helm.render("kserve-model", EXPOSED, {"security": {"serviceAccountHeader": ""}})
    assert "headers" not in published(documents)["http"][0]


EXPOSURES = {
    "internal": {"domain": "int.{{ .Values.env }}.example.com", "gateways": ["gw/internal"]},
    "external": {"gateways": ["gw/external"]},
}


def test_a_type_is_one_of_the_platforms_ways_to_publish():
    platform = {"platform": {"exposures": EXPOSURES}, "env": "dev"}
    spec = published(helm.render("kserve-model", EXPOSED, platform, {"exposeModel": {"type": "internal"}}))
    assert (spec["hosts"], spec["gateways"]) == ([host("qwen", "int.dev.example.com")], ["gw/internal"])
    spec = published(helm.render("kserve-model", EXPOSED, platform, {"exposeModel": {"type": "external"}}))
    assert (spec["hosts"], spec["gateways"]) == ([host("qwen")], ["gw/external"])


def test_an_unknown_type_fails_and_says_which_ones_there_are():
    platform = {"platform": {"exposures": EXPOSURES}}
    with pytest.raises(helm.ChartError, match=r'exposeModel.type is "intern", but .* has external, internal'):
        helm.render("kserve-model", EXPOSED, platform, {"exposeModel": {"type": "intern"}})


def test_any_type_will_do_where_the_platform_has_but_one_way():
    spec = published(helm.render("kserve-model", EXPOSED, {"exposeModel": {"type": "INTERNAL"}}))
    assert spec["gateways"] == ["istio-system/istio-ingressgateway"]


def test_the_domain_may_use_values_and_further_hosts_are_added():
    values = {
        "exposeModel": {"hosts": ["chat.example.com", host("qwen", "api.sandbox-uw2.sample.io")]},
        "regionCode": "uw2",
        "env": "sandbox",
        "platform": {"domain": "api.{{ .Values.env }}-{{ .Values.regionCode }}.sample.io"},
    }
    documents = helm.render("kserve-general", EXPOSED, values)
    assert published(documents)["hosts"] == [host("qwen", "api.sandbox-uw2.sample.io"), "chat.example.com"]
    assert published(documents, "qwen-primary-predictor")["hosts"] == [
        host("qwen-primary", "api.sandbox-uw2.sample.io")
    ]


def test_gateway_api_names_its_gateway_with_its_namespace():
    api = BY_API["gateway-api"]
    (parent,) = helm.pick(helm.render("kserve-model", api), "HTTPRoute")["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == ("istio-system", "istio-ingressgateway")
    with pytest.raises(helm.ChartError, match="gateways as namespace/name"):
        helm.render("kserve-model", api, {"platform": {"gateways": ["public"]}})


def test_inside_the_mesh_the_release_has_one_name_that_is_split_as_outside():
    documents = helm.render("kserve-general", CANARY)
    spec = helm.pick(documents, "VirtualService", "qwen-mesh")["spec"]
    assert (spec["hosts"], spec["gateways"]) == (["qwen-predictor"], ["mesh"])
    (rule,) = spec["http"]
    assert "match" not in rule
    assert [(r["destination"]["host"], r["weight"]) for r in rule["route"]] == [
        ("qwen-primary-predictor", 60),
        ("qwen-canary-predictor", 40),
    ]
    service = helm.pick(documents, "Service", "qwen-predictor")["spec"]
    assert service["selector"] == {"app": "isvc.qwen-primary-predictor"}  # never the canary alone
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": 8080}]


@pytest.mark.parametrize(
    ("values", "port"),
    [
        (
            {
                "inferenceservice": {
                    "predictor": {"containers": [{"image": "a", "ports": [{"containerPort": 9000}]}]}
                }
            },
            9000,
        ),
        ({"logger": {"enabled": True, "url": "http://dumper/"}}, 9081),
    ],
)
def test_the_service_of_a_release_leads_where_kserves_own_does(values, port):
    service = helm.pick(helm.render("kserve-general", values), "Service", "qwen-predictor")
    assert service["spec"]["ports"][0]["targetPort"] == port


def test_kserve_makes_the_service_of_a_single_model_itself():
    documents = helm.render("kserve-model", LLM)
    assert "Service" not in helm.kinds(documents)
    assert helm.pick(documents, "VirtualService", "qwen-mesh")["spec"]["hosts"] == ["qwen-predictor"]


@APIS
def test_a_transformer_is_where_requests_arrive(exposed):
    values = {"inferenceservice": {"transformer": {"containers": [{"image": "registry.example.com/t:1"}]}}}
    path = "/v1/models/qwen:predict"
    model = helm.render("kserve-model", exposed, values)
    assert mesh.destinations(model, host("qwen"), path) == {"qwen-transformer": 100}
    assert helm.pick(model, "VirtualService", "qwen-mesh")["spec"]["hosts"] == ["qwen-transformer"]
    general = helm.render("kserve-general", CANARY, exposed, values)
    both = {"qwen-primary-transformer": 60, "qwen-canary-transformer": 40}
    assert mesh.destinations(general, host("qwen"), path) == both
    service = helm.pick(general, "Service", "qwen-predictor")["spec"]
    assert service["selector"] == {"app": "isvc.qwen-primary-transformer"}


@pytest.mark.parametrize("version", helm.HELMS)
@pytest.mark.parametrize("api", sampled(BY_API, 1))
@CHARTS
def test_all_objects_are_what_their_schemas_say(chart, api, version):
    for values in (LLM, ONNX, CUSTOM, {"exposeModel": {"paths": ["/"]}}):
        if chart == "kserve-general":
            values = {**values, "primaryLoad": 50}  # noqa: PLW2901 -- this chart's own value
        documents = helm.render(chart, values, BY_API[api], helm=version)
        schemas.check([each for each in documents if each["kind"] in ("VirtualService", "HTTPRoute", "Service")])
        for route in (each for each in documents if each["kind"] == "HTTPRoute"):
            assert all(len(rule["matches"]) <= 64 for rule in route["spec"]["rules"])


@pytest.mark.parametrize(
    "section", ["exposeModel", "platform", "inferenceservice", "security", "metrics", "logger"]
)
def test_a_section_may_be_null(section):
    documents = helm.render("kserve-general", EXPOSED, {section: None})
    assert helm.pick(documents, "VirtualService", "qwen-mesh")
