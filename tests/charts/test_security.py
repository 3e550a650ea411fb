"""Who gets in: what the policies of a release say to each kind of caller, judged as Istio does (tests/charts/mesh.py)."""

import pytest

from tests.charts import helm, mesh, schemas
from tests.sizes import sampled

from .mesh import Caller, principal

LLM = {
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://q/q"}}
    }
}
ONNX = {"inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://b/m"}}}}
CUSTOM = {"inferenceservice": {"predictor": {"containers": [{"image": "registry.example.com/mine:1"}]}}}
ISSUER, OTHER = "https://issuer.example.com", "https://other.example.com/"
ISSUERS = {
    "platform": {
        "jwt": {
            "issuers": [
                {"issuer": ISSUER, "jwksUri": ISSUER + "/jwks", "audiences": ["models"]},
                {"issuer": OTHER, "jwks": '{"keys": []}', "jwksUri": OTHER + "jwks", "audiences": ["others"]},
            ]
        }
    }
}
EXPOSED = {"exposeModel": {"enabled": True}}
CHAT = "/v1/chat/completions"
GATEWAY = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"
PROMETHEUS = principal("infra", "prometheus-server")
NEIGHBOUR = Caller(principal("models", "notebook"))
STRANGER = Caller(principal("elsewhere"))
THROUGH_GATEWAY = Caller(GATEWAY)


def token(issuer=ISSUER, aud="models", sub="bob", via=GATEWAY) -> Caller:
    """A caller with a token that RequestAuthentication verified."""
    return Caller(via, {"iss": issuer, "sub": sub, "aud": aud})


@pytest.fixture(scope="module")
def llm():
    return helm.render("kserve-model", LLM, ISSUERS, EXPOSED)


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_a_token_is_needed_from_outside_and_none_in_the_same_namespace(chart):
    documents = helm.render(chart, LLM, ISSUERS, EXPOSED)
    assert not mesh.admitted(documents, THROUGH_GATEWAY, CHAT)
    assert mesh.admitted(documents, token(), CHAT)
    assert mesh.admitted(documents, NEIGHBOUR, CHAT)
    assert not mesh.admitted(documents, Caller(), CHAT)


def test_a_token_counts_from_anywhere_and_being_elsewhere_does_not(llm):
    assert mesh.admitted(llm, token(via=STRANGER.principal), CHAT)
    assert not mesh.admitted(llm, STRANGER, CHAT)


@pytest.mark.parametrize(
    ("caller", "in_"),
    [
        (token(), True),
        (token(aud=["a", "models"]), True),
        (token(aud="somebody-else"), False),
        (token(aud=[]), False),
        (token(OTHER, "others"), True),
        (token(OTHER, "models"), False),  # each issuer's own audiences
        (token("https://issuer.example.com/evil"), False),
        (token("https://evil.example.com"), False),
        (Caller(GATEWAY, {"iss": ISSUER, "aud": "models"}), False),  # names nobody
    ],
)
def test_a_token_must_be_of_an_issuer_and_for_its_audience(llm, caller, in_):
    assert mesh.admitted(llm, caller, CHAT) is in_


@pytest.mark.parametrize("given", ["talk", ["talk", "talk2"]])
def test_audiences_of_the_model_replace_the_issuers_be_they_a_list_or_one(given):
    documents = helm.render("kserve-model", ISSUERS, {"exposeModel": {"jwtVerify": {"Audiences": given}}})
    path = "/v1/models/qwen:predict"
    assert mesh.admitted(documents, token(aud="talk"), path)
    assert mesh.admitted(documents, token(OTHER, "talk"), path)
    assert mesh.admitted(documents, token(aud="talk2"), path) is isinstance(given, list)
    assert not mesh.admitted(documents, token(), path)
    rules = helm.pick(documents, "RequestAuthentication")["spec"]["jwtRules"]
    assert [rule["audiences"] for rule in rules] == [given if isinstance(given, list) else [given]] * 2


def test_a_forged_token_is_refused_whoever_brings_it(llm):
    spec = helm.pick(llm, "RequestAuthentication")["spec"]
    assert spec["selector"] == {
        "matchLabels": {"tokenweir.io/release": "qwen"}
    }  # the pods, all ports, all callers
    assert [rule["issuer"] for rule in spec["jwtRules"]] == [ISSUER, OTHER]
    assert spec["jwtRules"][0]["jwksUri"] == ISSUER + "/jwks"
    assert spec["jwtRules"][1]["jwks"] == '{"keys": []}'
    assert "jwksUri" not in spec["jwtRules"][1]  # Istio refuses both at once
    for rule in spec["jwtRules"]:
        assert rule["fromHeaders"] == [{"name": "Authorization", "prefix": "Bearer "}]  # never from the query


def test_the_model_gets_no_credential_and_the_account_of_the_verified_token_alone(llm):
    for rule in helm.pick(llm, "RequestAuthentication")["spec"]["jwtRules"]:
        assert rule["forwardOriginalToken"] is False
        # Istio removes a caller's own copy of such a header, with a token or without.
        assert rule["outputClaimToHeaders"] == [{"header": "oc_sa", "claim": "sub"}]
    values = {"platform": {**ISSUERS["platform"], "tokenweir": {"serviceAccountClaim": "client_id"}}}
    rules = helm.pick(helm.render("kserve-model", values), "RequestAuthentication")["spec"]["jwtRules"]
    assert rules[0]["outputClaimToHeaders"] == [{"header": "oc_sa", "claim": "client_id"}]
    off = helm.render("kserve-model", ISSUERS, {"security": {"serviceAccountHeader": ""}})
    assert "outputClaimToHeaders" not in helm.pick(off, "RequestAuthentication")["spec"]["jwtRules"][0]


def test_a_gateway_in_the_namespace_of_the_models_is_no_neighbour():
    gateway = principal("models", "gateway")
    edge = principal("models", "edge")
    values = {
        "platform": {
            "gateway": {"namespace": "models", "principals": [gateway]},
            "exposures": {"edge": {"gateway": {"principals": [edge]}}},
        }
    }
    documents = helm.render("kserve-model", values)
    path = "/v1/models/qwen:predict"
    assert mesh.admitted(documents, NEIGHBOUR, path)
    assert not mesh.admitted(documents, Caller(gateway), path)
    assert not mesh.admitted(documents, Caller(edge), path)
    named = helm.render("kserve-model", values, {"security": {"allowedPrincipals": [gateway]}})
    assert not mesh.admitted(named, Caller(gateway), path)


def test_the_namespace_may_be_asked_for_a_token_too():
    off = {"security": {"sameNamespaceWithoutToken": False}}
    documents = helm.render("kserve-model", LLM, ISSUERS, off)
    assert not mesh.admitted(documents, NEIGHBOUR, CHAT)
    assert mesh.admitted(documents, token(via=NEIGHBOUR.principal), CHAT)


def test_the_parts_of_a_release_may_always_call_one_another():
    values = {
        "security": {"sameNamespaceWithoutToken": False},
        "inferenceservice": {"transformer": {"containers": [{"image": "registry.example.com/t:1"}]}},
    }
    path = "/v1/models/qwen:predict"
    documents = helm.render("kserve-model", values)
    assert mesh.admitted(documents, Caller(principal("models", "qwen")), path)
    assert not mesh.admitted(documents, NEIGHBOUR, path)
    alone = helm.render("kserve-model", {"security": {"sameNamespaceWithoutToken": False}})
    assert not mesh.admitted(alone, Caller(principal("models", "qwen")), path)


def _at(documents, component):
    """The objects that hold for the pods of a component, with KServe's label on them."""
    labels = {"tokenweir.io/release": "qwen", "component": component}

    def chosen(document):
        if document["kind"] != "AuthorizationPolicy":
            return True
        return document["spec"]["selector"]["matchLabels"].items() <= labels.items()

    return [each for each in documents if chosen(each)]


def test_metered_at_the_pods_a_predictor_behind_a_transformer_is_asked_by_the_release_s_own_parts_alone():
    values = {
        "ratelimitIPPerMinute": 10,
        "inferenceservice": {"transformer": {"containers": [{"image": "registry.example.com/t:1"}]}},
    }
    at_pods = {
        "platform": {
            **ISSUERS["platform"],
            "tokenweir": {"placement": "sidecar"},
            "prometheusPrincipals": [PROMETHEUS],
        }
    }
    path, own = "/v1/models/qwen:predict", Caller(principal("models", "qwen"))
    documents = helm.render("kserve-model", values, at_pods)
    for caller in (NEIGHBOUR, token(), token(via=NEIGHBOUR.principal)):
        assert mesh.admitted(_at(documents, "transformer"), caller, path)
        assert not mesh.admitted(_at(documents, "predictor"), caller, path)
    assert mesh.admitted(_at(documents, "predictor"), own, path)
    assert not mesh.admitted(_at(documents, "predictor"), Caller(), path)
    for component in ("transformer", "predictor"):
        assert mesh.admitted(_at(documents, component), Caller(PROMETHEUS), "/metrics")
        assert not mesh.admitted(_at(documents, component), own, "/metrics")
    # With the gateway's meter callers inside are not counted anyhow.
    assert mesh.admitted(_at(helm.render("kserve-model", values, ISSUERS), "predictor"), NEIGHBOUR, path)


def test_named_workloads_elsewhere_need_no_token():
    scorer = principal("batch", "scorer")
    documents = helm.render("kserve-model", LLM, {"security": {"allowedPrincipals": [scorer]}})
    assert mesh.admitted(documents, Caller(scorer), CHAT)
    assert not mesh.admitted(documents, Caller(principal("batch", "other")), CHAT)


@pytest.mark.parametrize("issuers", [None, {"platform": {"jwt": None}}, {"platform": {"jwt": {"issuers": []}}}])
def test_without_issuers_nobody_outside_gets_in(issuers):
    documents = helm.render("kserve-model", LLM, EXPOSED, *([issuers] if issuers else []))
    assert "RequestAuthentication" not in helm.kinds(documents)
    assert not mesh.admitted(documents, token(), CHAT)
    assert mesh.admitted(documents, NEIGHBOUR, CHAT)


def test_where_nothing_is_allowed_everything_is_refused():
    closed = {"security": {"sameNamespaceWithoutToken": False}, "metrics": {"enabled": False}}
    documents = helm.render("kserve-model", LLM, closed)
    (policy,) = mesh.policies(documents, "ALLOW", "models")  # a namespace without one would let everybody in
    assert "rules" not in policy["spec"]
    for caller in (NEIGHBOUR, STRANGER, token(), Caller(PROMETHEUS)):
        assert not mesh.admitted(documents, caller, CHAT)


@pytest.mark.parametrize("values", [LLM, ONNX, CUSTOM, {}], ids=["openai", "v2", "other", "v1"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics;x", "/own/stats", "//metrics", "/%2fmetrics"])
def test_metrics_are_open_to_prometheus_alone(values, path):
    documents = helm.render("kserve-model", values, ISSUERS, {"metrics": {"path": "/own/stats", "port": 9100}})
    for caller in (NEIGHBOUR, STRANGER, token(), THROUGH_GATEWAY):
        assert not mesh.admitted(documents, caller, path, port=9100)
        assert not mesh.admitted(documents, caller, path)
    scraped = path.startswith(("/metrics", "/own"))
    assert mesh.admitted(documents, Caller(PROMETHEUS), path, port=9100) is scraped
    assert not mesh.admitted(documents, Caller(PROMETHEUS), path)
    assert not mesh.admitted(documents, Caller(PROMETHEUS), path, port=9100, method="POST")
    assert not mesh.admitted(documents, Caller(PROMETHEUS), CHAT, port=9100)


def test_without_a_prometheus_nobody_reads_metrics_through_the_mesh():
    documents = helm.render("kserve-model", CUSTOM, {"platform": {"prometheusPrincipals": []}})
    for caller in (NEIGHBOUR, Caller(PROMETHEUS)):
        assert not mesh.admitted(documents, caller, "/metrics")
    assert mesh.admitted(documents, NEIGHBOUR, "/predict")


def test_metrics_that_are_not_scraped_are_closed_to_prometheus_too():
    documents = helm.render("kserve-model", CUSTOM, {"metrics": {"enabled": False}})
    assert not mesh.admitted(documents, Caller(PROMETHEUS), "/metrics")


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        (
            LLM,
            [
                "/v1/load_lora_adapter",
                "/v1/unload_lora_adapter",
                "/reset_prefix_cache",
                "/sleep",
                "/wake_up",
                "/collective_rpc",
                "/update_weights",
                "/generate",
                "/inference/v1/generate",
                "/v1/realtime",
                "/api/chat",
                "/v1/batches",
                "/v1/messages/batches",
                "/",
                "/docs",
                "//sleep",
                "/pause",
                "/v1/unheard_of",
            ],
        ),
        (
            ONNX,
            [
                "/v2/repository/index",
                "/v2/repository/models/a/unload",
                "/v2/logging",
                "/v2/trace/setting",
                "/v2/models/a/trace/setting",
                "/v2/cudasharedmemory/status",
                "/inference.GRPCInferenceService/RepositoryModelLoad",
            ],
        ),
        ({}, ["/models", "/v2/repository/index"]),
    ],
    ids=["openai", "v2", "v1"],
)
def test_administration_and_what_is_not_metered_are_open_to_nobody(values, paths):
    trusted = {"security": {"allowedPrincipals": [principal("ops")]}}
    documents = helm.render("kserve-model", values, ISSUERS, trusted)
    for path in paths:
        if values == {} and path == "/":
            continue
        for caller in (NEIGHBOUR, token(), Caller(principal("ops")), Caller(PROMETHEUS)):
            assert not mesh.admitted(documents, caller, path), path


def test_wider_paths_of_ones_own_do_not_open_administration():
    documents = helm.render("kserve-model", LLM, ISSUERS, {"exposeModel": {"paths": ["/"]}})
    assert mesh.admitted(documents, token(), "/v1/unheard_of")
    for path in ("/v1/load_lora_adapter", "/sleep", "/generate", "/v1/realtime", "/metrics"):
        assert not mesh.admitted(documents, token(), path), path
        assert not mesh.admitted(documents, NEIGHBOUR, path), path


def test_a_neighbour_may_see_whether_the_model_is_up_and_the_world_may_not(llm):
    assert mesh.admitted(llm, NEIGHBOUR, "/health")
    assert mesh.admitted(llm, NEIGHBOUR, "/tokenize")
    assert not mesh.admitted(llm, token(), "/health")


def test_mtls_is_strict_for_every_pod_of_the_release(llm):
    spec = helm.pick(llm, "PeerAuthentication")["spec"]
    assert spec == {"selector": {"matchLabels": {"tokenweir.io/release": "qwen"}}, "mtls": {"mode": "STRICT"}}
    moving = helm.render("kserve-model", {"security": {"mtls": "PERMISSIVE"}})
    assert helm.pick(moving, "PeerAuthentication")["spec"]["mtls"] == {"mode": "PERMISSIVE"}
    assert not mesh.admitted(moving, Caller(), "/v1/models")  # plain text has no name


EXT_AUTHZ = {"security": {"extAuthz": {"enabled": True}}, "platform": {"extAuthzProvider": "corporate"}}


def test_ext_authz_sees_every_request_whatever_its_host():
    documents = helm.render("kserve-general", LLM, EXT_AUTHZ, EXPOSED)
    (policy,) = mesh.policies(documents, "CUSTOM", "models")
    assert policy["spec"]["provider"] == {"name": "corporate"}
    assert policy["spec"]["selector"] == {"matchLabels": {"tokenweir.io/release": "qwen"}}
    assert "hosts" not in str(policy["spec"]["rules"])
    assert mesh.shown(documents, CHAT)
    assert mesh.shown(documents, "/anything")
    assert not mesh.shown(documents, "/metrics")  # which nobody but Prometheus gets


def test_ext_authz_without_a_provider_fails_and_says_where_to_name_it():
    with pytest.raises(helm.ChartError, match=r"set security.extAuthz.provider or platform.extAuthzProvider"):
        helm.render("kserve-model", {"security": {"extAuthz": {"enabled": True}}})
    own = {"security": {"extAuthz": {"enabled": True, "provider": "mine"}}}
    (policy,) = mesh.policies(helm.render("kserve-model", EXT_AUTHZ, own), "CUSTOM", "models")
    assert policy["spec"]["provider"] == {"name": "mine"}


def test_strangers_are_kept_away_from_the_meter_at_the_gateway(llm):
    at_gateway = {"namespace": "istio-system", "host": "qwen-predictor-models.models.example.com"}
    assert not mesh.admitted(llm, Caller(), CHAT, **at_gateway)
    assert not mesh.admitted(llm, token(aud="somebody-else", via=None), CHAT, **at_gateway)
    assert mesh.admitted(llm, token(via=None), CHAT, **at_gateway)
    at_gateway["host"] += ":443"
    assert not mesh.admitted(llm, Caller(), CHAT, **at_gateway)
    at_gateway["host"] = "shop.example.com"  # what else the gateway serves is none of ours
    assert mesh.admitted(llm, Caller(), "/", **at_gateway)


def test_all_hosts_of_a_release_are_kept_from_strangers_at_the_gateway():
    canary = {"inferenceservice": {"predictor": {"model": {"newStorageUri": "hf://q/2"}}}}
    further = {"exposeModel": {"hosts": ["chat.example.com"]}}
    documents = helm.render("kserve-general", LLM, canary, EXPOSED, further)
    names = [f"qwen{part}-predictor-models.models.example.com" for part in ("", "-primary", "-canary")]
    for host in [*names, "chat.example.com"]:
        assert not mesh.admitted(documents, Caller(), CHAT, namespace="istio-system", host=host), host


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**LLM, "platform": {"tokenweir": {"placement": "sidecar"}}},
        {**LLM, "platform": {"tokenweir": {"enabled": False}}},
    ],
    ids=["nothing to count", "counted at the pods", "not counted"],
)
def test_where_nothing_is_counted_at_the_gateway_it_gets_no_policy(values):
    assert not mesh.policies(helm.render("kserve-model", values, EXPOSED), "DENY", "istio-system")


def test_a_way_to_publish_may_have_a_gateway_of_its_own():
    exposures = {
        "edge": {"gateway": {"namespace": "edge", "selector": {"istio": "edge"}}, "gateways": ["edge/gw"]}
    }
    values = {"platform": {"exposures": exposures}, "exposeModel": {"type": "edge"}}
    documents = helm.render("kserve-model", LLM, EXPOSED, values)
    (policy,) = mesh.policies(documents, "DENY", "edge")
    assert policy["spec"]["selector"] == {"matchLabels": {"istio": "edge"}}
    patch = helm.pick(documents, "EnvoyFilter")
    assert patch["metadata"]["namespace"] == "edge"
    assert patch["spec"]["workloadSelector"] == {"labels": {"istio": "edge"}}


@pytest.mark.parametrize("version", helm.HELMS)
@pytest.mark.parametrize("chart", sampled(["kserve-model", "kserve-general"], 1))
def test_all_objects_are_what_their_schemas_say(chart, version):
    for values in (LLM, ONNX, CUSTOM, {}):
        documents = helm.render(chart, values, ISSUERS, EXT_AUTHZ, EXPOSED, helm=version)
        mine = [each for each in documents if each["apiVersion"].startswith("security.istio.io/")]
        assert len(mine) >= 5
        schemas.check(mine)


@pytest.mark.parametrize("section", ["security", "platform", "exposeModel", "metrics"])
def test_a_section_may_be_null_and_is_then_as_strict_as_ever(section):
    documents = helm.render("kserve-model", LLM, {section: None})
    assert helm.pick(documents, "PeerAuthentication")["spec"]["mtls"] == {"mode": "STRICT"}
    assert mesh.admitted(documents, NEIGHBOUR, CHAT)
    for caller in (STRANGER, Caller(), token()):
        assert not mesh.admitted(documents, caller, CHAT)
    assert not mesh.admitted(documents, NEIGHBOUR, "/metrics")
