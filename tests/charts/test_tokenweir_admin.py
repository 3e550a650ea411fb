"""The admin API of the chart tokenweir: pods of their own, and who may reach them."""

import pytest

from extproc.settings.load import load

from .helm import CHARTS, ChartError, lint, pick, render
from .schemas import check

CHART = "tokenweir"
STORES = {"redis": {"url": "redis://redis:6379/0"}, "mongo": {"url": "mongodb://mongo:27017/?replicaSet=rs0"}}
FILE = CHARTS / CHART / "ci" / "admin-values.yaml"
NAME = "tokenweir-admin"
PLAIN = {"admin": {"enabled": True}}
KINDS = ["Deployment", "Service", "ServiceAccount", "PeerAuthentication", "AuthorizationPolicy", "NetworkPolicy"]


def made(*values):
    return render(CHART, *values, release="tokenweir", namespace="tokenweir")


def of_admin(documents):
    return {each["kind"]: each for each in documents if each["metadata"]["name"] == NAME}


def test_by_default_there_is_none():
    assert of_admin(made(STORES)) == {}


@pytest.mark.parametrize("values", [(STORES, PLAIN), (FILE,)])
def test_the_cluster_takes_every_object(values):
    lint(CHART, *values)
    check(made(*values))


def test_it_is_a_deployment_of_its_own_and_the_processor_stays_as_it_is():
    documents, without = made(STORES, PLAIN), made(STORES)
    assert [each for each in documents if each["metadata"]["name"] != NAME] == without
    assert set(of_admin(documents)) == set(KINDS)
    spec = of_admin(documents)["Deployment"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["admin", "serve"]
    selector = spec["selector"]["matchLabels"]
    processor = pick(documents, "Deployment", "tokenweir")
    assert not selector.items() <= processor["spec"]["template"]["metadata"]["labels"].items()
    assert not (
        processor["spec"]["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    )
    service = of_admin(documents)["Service"]["spec"]
    assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert container["ports"] == [{"name": "http-admin", "containerPort": 8460, "protocol": "TCP"}]


def test_its_pods_have_no_rights_and_no_secret_that_they_do_not_need():
    webhook = {"webhook": {"url": "https://x", "existingSecret": {"name": "hook"}}}
    spec = of_admin(made(FILE, webhook))["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert {each["name"] for each in spec["volumes"]} == {"config", "redis-secret", "mongo-secret"}
    assert not [each for each in container["env"] if "WEBHOOK" in each["name"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "http-admin"


def test_the_settings_that_it_gets_are_valid(tmp_path, monkeypatch):
    documents = made(FILE)
    file = tmp_path / "tokenweir.yaml"
    file.write_text(pick(documents, "ConfigMap", "tokenweir")["data"]["tokenweir.yaml"])
    (container,) = of_admin(documents)["Deployment"]["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    for name in ("REDIS", "MONGO"):
        secret = tmp_path / name
        secret.write_text({"REDIS": "redis://redis:6379", "MONGO": "mongodb://mongo:27017"}[name])
        env[f"TOKENWEIR_{name}__URL_FILE"] = str(secret)
    admin = load(file, env).admin
    assert (admin.address, admin.exposed(), admin.forwarded_hops) == ("0.0.0.0:8460", None, 1)
    assert admin.jwt.roles == {"platform": "admin", "team-lead": "team-lead", "finance": "viewer"}


def test_only_the_gateway_and_named_principals_reach_it_over_mtls():
    found = of_admin(made(FILE))
    assert found["PeerAuthentication"]["spec"]["mtls"] == {"mode": "STRICT"}
    (rule,) = found["AuthorizationPolicy"]["spec"]["rules"]
    assert rule["from"] == [
        {
            "source": {
                "principals": [
                    "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account",
                    "cluster.local/ns/infra/sa/grafana",
                ]
            }
        }
    ]
    assert rule["to"] == [{"operation": {"ports": ["8460"], "paths": ["/v1/*", "/openapi.json"]}}]
    (entry,) = found["NetworkPolicy"]["spec"]["ingress"]
    assert entry["ports"] == [{"port": 8460, "protocol": "TCP"}]
    assert [peer["namespaceSelector"]["matchLabels"] for peer in entry["from"]] == [
        {"kubernetes.io/metadata.name": "istio-system"},
        {"kubernetes.io/metadata.name": "infra"},
    ]
    ports = [port["port"] for rule in found["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 6379, 6380, 27017, 443, 15012]


def test_jwts_are_verified_at_the_pod_too_where_the_keys_have_a_url():
    (rule,) = of_admin(made(FILE))["RequestAuthentication"]["spec"]["jwtRules"]
    assert (rule["issuer"], rule["jwksUri"]) == ("https://login.example.com", "https://login.example.com/keys")
    assert rule["audiences"] == ["tokenweir-admin"]
    assert rule["fromHeaders"] == [{"name": "Authorization", "prefix": "Bearer "}]
    assert rule["forwardOriginalToken"] is True
    by_file = {"config": {"admin": {"jwt": {"jwks_url": None, "jwks_file": "/keys/jwks.json"}}}}
    assert "RequestAuthentication" not in of_admin(made(FILE, by_file))


def test_it_is_published_where_a_host_is_given_and_nothing_is_done_twice():
    found = of_admin(made(FILE))["VirtualService"]["spec"]
    assert (found["hosts"], found["gateways"]) == (["tokenweir.example.com"], ["istio-system/public"])
    (route,) = found["http"]
    assert route["retries"] == {"attempts": 0}
    assert [each["uri"] for each in route["match"]] == [{"prefix": "/v1/"}, {"exact": "/openapi.json"}]
    assert route["route"][0]["destination"] == {
        "host": "tokenweir-admin.tokenweir.svc.cluster.local",
        "port": {"number": 80},
    }
    assert "VirtualService" not in of_admin(made(STORES, PLAIN))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"admin": {"enabled": True}, "mesh": {"sidecar": False}}, "admin.enabled: needs mesh.sidecar"),
        ({"admin": {"enabled": True, "host": "a.example"}}, "admin.host: set admin.gateways too"),
        ({"config": {"admin": {"address": "0.0.0.0:1"}}}, "config.admin.address: leave it out"),
        ({"config": {"admin": {"tls": {"key_file": "/k"}}}}, "config.admin.tls: leave it out"),
        (
            {"admin": {"enabled": True}, "replicaCount": 1, "mongo": {"url": "memory://"}},
            "admin.enabled: mongo.url is memory://",
        ),
        ({"config": {"admin": {"jwt": {"algorithms": ["HS256"]}}}}, "algorithms"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, said):
    with pytest.raises(ChartError) as refused:
        made(STORES, values)
    assert said in str(refused.value)


def test_the_configuration_starts_its_pods_anew():
    def checksum(*values):
        return of_admin(made(STORES, PLAIN, *values))["Deployment"]["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]

    assert checksum() != checksum({"config": {"admin": {"requests_per_minute": 5}}})


def test_the_accounts_of_others_can_be_used():
    own = {"admin": {"enabled": True, "serviceAccount": {"create": False, "name": "theirs"}}}
    found = of_admin(made(STORES, own))
    assert "ServiceAccount" not in found
    assert found["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"
