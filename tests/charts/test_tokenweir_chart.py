"""The chart tokenweir: what it makes, from which values, and what it refuses."""

import functools
import itertools
import json
import re
from pathlib import Path

import certifi
import pytest
import yaml

from extproc.core.request.buffers import MAX_BODY_BYTES, MESSAGE_TIMEOUT_S
from extproc.local.envoy_config import EnvoyOptions
from extproc.settings.load import SettingsError, load
from extproc.settings.model import Settings
from tests.sizes import is_thorough, sampled

from .helm import CHARTS, HELMS, ChartError, kinds, lint, notes, pick, render
from .schemas import check

CHART = "tokenweir"
STORES = {"redis": {"url": "redis://redis:6379/0"}, "mongo": {"url": "mongodb://mongo:27017/?replicaSet=rs0"}}
SIDECARS = {"placement": "sidecar", "sidecar": {"namespaces": ["models"]}}
CI = {path.stem.removesuffix("-values"): path for path in sorted((CHARTS / CHART / "ci").glob("*.yaml"))}
OFF = {
    "mesh": {"sidecar": False},
    "filter": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "serviceAccount": {"create": False, "name": "theirs"},
    "metrics": {"scrape": "none", "rules": False, "dashboard": False},
}
MATRIX = {
    "defaults": {},
    "all off": OFF,
    "no network policy": {
        "networkPolicy": {"enabled": False},
        "metrics": {"principals": ["cluster.local/ns/infra/sa/prometheus"]},
    },
    "sidecars": SIDECARS,
    "sidecars, no sidecar of its own": {**SIDECARS, "mesh": {"sidecar": False}},
    "scaled": {"autoscaling": {"enabled": True}},
    "service monitor": {"metrics": {"scrape": "ServiceMonitor", "principals": ["cluster.local/ns/infra/sa/prom"]}},
    "annotations": {"metrics": {"scrape": "annotations"}},
    "ipv6": {"listenAddress": "[::]"},
    "scheduling": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [],
        "priorityClassName": "high",
        "podLabels": {"team": "platform"},
        "podAnnotations": {"note": "ours"},
        "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/tls/ca.crt"}],
        "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
        "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls"}],
    },
    "persistent trial": {
        "redis": {"url": ""},
        "mongo": {"url": ""},
        "trial": {"enabled": True, "storage": "5Gi", "storageClass": "gp3"},
    },
}


def made(values=(), helm="helm", release="tokenweir"):
    return _made(json.dumps(list(values)), helm, release)


@functools.cache
def _made(values, helm, release):
    return render(CHART, STORES, *json.loads(values), release=release, namespace="tokenweir", helm=helm)


def processor(documents):
    """The processor's pods; those of the admin API are another Deployment's."""
    (found,) = [
        document["spec"]["template"]["spec"]
        for document in documents
        if document["kind"] == "Deployment" and not document["metadata"]["name"].endswith("-admin")
    ]
    return found


def container(documents):
    (found,) = processor(documents)["containers"]
    return found


def environment(documents):
    return {each["name"]: each for each in container(documents)["env"]}


def settings_file(documents):
    return pick(documents, "ConfigMap", "tokenweir")["data"]["tokenweir.yaml"]


def pods(documents):
    """Labels of the processor's pods, and of the trial's."""
    labels = {"Deployment": [], "StatefulSet": []}
    for each in documents:
        if each["kind"] in labels:
            labels[each["kind"]].append(each["spec"]["template"]["metadata"]["labels"])
    return labels["Deployment"], labels["StatefulSet"]


def matches(selector, labels):
    return selector.items() <= labels.items()


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", sampled(MATRIX, 6))
def test_every_object_is_one_that_the_cluster_takes(name, helm):
    check(made([MATRIX[name]], helm=helm))


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", CI)
def test_the_example_files_are_clean_and_make_valid_objects(name, helm):
    lint(CHART, CI[name], helm=helm)
    check(render(CHART, CI[name], release="tokenweir", helm=helm))


@pytest.mark.parametrize("name", sampled(CI, 1))
def test_both_helms_make_the_same(name):
    wanted = render(CHART, CI[name], release="tokenweir")
    assert render(CHART, CI[name], release="tokenweir", helm="helm3") == wanted


def test_a_plain_installation_makes_what_production_needs():
    assert kinds(made()) == {
        *("ConfigMap", "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"),
        *("DestinationRule", "PeerAuthentication", "AuthorizationPolicy", "EnvoyFilter", "PodMonitor"),
        "PrometheusRule",
    }
    assert kinds(made([OFF])) == {"ConfigMap", "Deployment", "Service", "NetworkPolicy", "DestinationRule"}


@pytest.mark.parametrize("section", sampled(yaml.safe_load((CHARTS / CHART / "values.yaml").read_text()), 9))
def test_any_section_may_be_null(section):
    """It is then off or as by default, or the message says what is missing."""
    try:
        check(made([{section: None}]))
    except ChartError as error:
        assert section in {"redis", "mongo", "gateway"}, str(error)  # noqa: PT017
        assert re.search(rf"{section}[.:]", str(error))  # noqa: PT017


@pytest.mark.parametrize("section", ["filter", "networkPolicy"])
def test_a_section_taken_out_takes_no_protection_away(section):
    """Without the filters nothing is metered; without the policy others reach the processor."""
    documents = made([{section: None}])
    assert {"EnvoyFilter", "NetworkPolicy"} <= kinds(documents)
    assert pick(documents, "EnvoyFilter")["spec"]["priority"] == 10


@pytest.mark.parametrize("store", ["redis", "mongo"])
def test_the_parts_of_a_store_may_be_null(store):
    nothing = {store: {"ca": None, "existingSecret": None}}
    assert kinds(made([nothing])) == kinds(made())
    assert "StatefulSet" in kinds(
        made([{"redis": {"url": ""}, "mongo": {"url": ""}}, {store: None, "trial": {"enabled": True}}])
    )


def test_sidecars_of_no_namespace_are_refused_whatever_is_null():
    with pytest.raises(ChartError, match=r"sidecar\.namespaces: name the namespaces"):
        made([{"placement": "sidecar", "sidecar": None}])


# ---- names and selectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampled([*MATRIX, *CI], 6))
def test_every_selector_finds_the_processors_pods_and_no_others(name):
    values = [STORES, MATRIX[name]] if name in MATRIX else [CI[name]]
    documents = render(CHART, *values, release="tokenweir")
    ((processor,), stores) = pods(documents)
    spec = pick(documents, "Deployment")["spec"]
    found = [spec["selector"]["matchLabels"], pick(documents, "Service", "tokenweir")["spec"]["selector"]]
    found += [
        each["labelSelector"]["matchLabels"] for each in spec["template"]["spec"]["topologySpreadConstraints"]
    ]
    for each in documents:
        if each["kind"] in {"PodDisruptionBudget", "PodMonitor", "PeerAuthentication", "AuthorizationPolicy"}:
            found.append(each["spec"]["selector"]["matchLabels"])
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "tokenweir":
            found.append(each["spec"]["podSelector"]["matchLabels"])
    assert all(matches(selector, processor) for selector in found)
    assert not any(matches(selector, labels) for selector, labels in itertools.product(found, stores))


def test_a_service_monitor_finds_the_service():
    documents = made([{"metrics": {"scrape": "ServiceMonitor"}}])
    labels = pick(documents, "Service")["metadata"]["labels"]
    assert matches(pick(documents, "ServiceMonitor")["spec"]["selector"]["matchLabels"], labels)


@pytest.mark.parametrize("scrape", ["PodMonitor", "ServiceMonitor"])
def test_ports_are_called_the_same_everywhere(scrape):
    documents = made([{"metrics": {"scrape": scrape}}])
    ports = {port["name"]: port["containerPort"] for port in container(documents)["ports"]}
    served = {port["name"]: port for port in pick(documents, "Service")["spec"]["ports"]}
    assert ports == {name: port["port"] for name, port in served.items()} == {"grpc": 50051, "http-metrics": 9464}
    assert all(port["targetPort"] in ports for port in served.values())
    monitor = pick(documents, scrape)["spec"]
    (endpoint,) = monitor.get("podMetricsEndpoints") or monitor["endpoints"]
    assert endpoint["port"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(documents)[probe]["grpc"]["port"] == ports["grpc"]
    assert environment(documents)["TOKENWEIR_SERVER__ADDRESS"]["value"] == "0.0.0.0:50051"
    assert environment(documents)["TOKENWEIR_METRICS__ADDRESS"]["value"] == "0.0.0.0:9464"
    # Off loopback the processor starts only because it is told that the mesh's mTLS ends in front of it.
    assert environment(documents)["TOKENWEIR_SERVER__ALLOW_PLAINTEXT"]["value"] == "true"
    assert pick(documents, "PeerAuthentication")["spec"]["mtls"] == {"mode": "STRICT"}


@pytest.mark.parametrize("release", ["tokenweir", "prod", "x" * 28, "tokenweir-" + "y" * 30])
def test_names_are_short_enough_and_say_what_it_is(release):
    documents = made([{"trial": {"enabled": True}, "redis": {"url": ""}, "mongo": {"url": ""}}], release=release)
    assert all(
        "tokenweir" in each["metadata"]["name"] and len(each["metadata"]["name"]) <= 63 for each in documents
    )


# ---- settings ------------------------------------------------------------------------------------------------


def loaded(documents, tmp_path, **secrets):
    """Return the settings that the pod would have, with its files in `tmp_path` and the values of `secrets`."""
    path = tmp_path / "tokenweir.yaml"
    path.write_text(settings_file(documents))
    values = {name: each.get("value", secrets.get(name)) for name, each in environment(documents).items()}
    values = {name: value.replace("/etc/tokenweir", str(tmp_path)) for name, value in values.items()}
    volumes = {each["name"]: each for each in processor(documents)["volumes"]}
    for mount in container(documents)["volumeMounts"]:
        if mount["mountPath"].startswith("/etc/tokenweir/") and "subPath" not in mount:
            folder = tmp_path / mount["mountPath"].removeprefix("/etc/tokenweir/")
            folder.mkdir(parents=True)
            for item in volumes[mount["name"]].get("secret", {}).get("items", []):
                secret = secrets.get(item["key"], "").replace("/etc/tokenweir", str(tmp_path))
                (folder / item["path"]).write_text(secret)
            if mount["name"].endswith("-ca"):
                (folder / "ca.crt").write_text(Path(certifi.where()).read_text())
    return load(path, values)


def test_the_spool_has_a_directory_of_its_own_in_a_volume_with_room_for_several(tmp_path):
    documents = made([STORES, {"config": {"spool": {"max_bytes": 100_000_000}}}])
    spool = loaded(documents, tmp_path).spool
    mounts = {each["name"]: each for each in container(documents)["volumeMounts"]}
    volumes = {each["name"]: each for each in processor(documents)["volumes"]}
    # Not the volume itself, which any user of the pod may write to.
    assert str(spool.directory.parent) == mounts["spool"]["mountPath"]
    assert not mounts["spool"].get("readOnly")
    assert spool.max_bytes == 100_000_000
    assert volumes["spool"] == {"name": "spool", "emptyDir": {"sizeLimit": "382Mi"}}


@pytest.mark.parametrize("directory", ["/data/spool", None])
def test_a_spool_elsewhere_or_nowhere_needs_no_volume(directory, tmp_path):
    documents = made([STORES, {"config": {"spool": {"directory": directory}}}])
    assert loaded(documents, tmp_path).spool.directory == (Path(directory) if directory else None)
    names = {each["name"] for each in processor(documents)["volumes"]}
    assert "spool" not in names | {each["name"] for each in container(documents)["volumeMounts"]}


SECRETS = {
    "redis-url": "rediss://u:p@redis:6380/0?ssl_ca_certs=/etc/tokenweir/redis/ca.crt",
    "mongo-url": "mongodb://u:p@mongo/?tls=true&tlsCAFile=/etc/tokenweir/mongo/ca.crt",
    "webhook-secret": "s" * 32,
}


@pytest.mark.parametrize("name", ["defaults", "sidecars", "ipv6", "persistent trial", *CI])
def test_the_processor_takes_the_settings_that_are_made(name, tmp_path):
    values = [STORES, MATRIX[name]] if name in MATRIX else [CI[name]]
    documents = render(CHART, *values, release="tokenweir")
    secrets = dict(SECRETS)
    if not any(each["name"] == "redis-ca" for each in container(documents)["volumeMounts"]):
        secrets |= {name: url.partition("?")[0] for name, url in SECRETS.items()}
    assert loaded(documents, tmp_path, **secrets).server.drain_s > 0


@pytest.mark.parametrize("helm", HELMS)
def test_settings_reach_the_file_as_they_were_written(tmp_path, helm):
    config = {
        "server": {"max_body_bytes": 67108864, "drain_s": 12.5},
        "limits": {"default": {"sa_limit": None, "ip_limit": 1_000_000_000_000, "mode": "strict"}},
        "identity": {"tenant_claim": None, "tenant_pattern": r"^[^@]+@([^.]+)\."},
        "alerts": {"thresholds": []},
        "models": [{"match": "*", "prices": {"input": 0.25, "output": 1e-3}}],
        "cost": {"weights": {"cached_input": 0.1}},
        "spool": {"directory": "/data/spool"},
    }
    documents = made([{"config": config}], helm=helm)
    assert yaml.safe_load(settings_file(documents)) == config
    settings = loaded(documents, tmp_path)
    assert settings.limits.default.ip_limit == 10**12
    assert settings.limits.default.sa_limit is None


def test_at_sidecars_the_callers_certificate_names_it_and_the_gateways_nobody(tmp_path):
    identity = loaded(made([SIDECARS]), tmp_path).identity
    assert identity.peer_principals
    assert identity.gateway_principals == (
        "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account",
    )
    assert "peer_principals" not in settings_file(made())


def test_what_was_set_by_hand_wins_at_sidecars(tmp_path):
    values = {"config": {"identity": {"peer_principals": False, "service_account_claim": "azp"}}}
    identity = loaded(made([SIDECARS, values]), tmp_path).identity
    assert (identity.peer_principals, identity.service_account_claim) == (False, "azp")


def test_the_charts_schema_knows_exactly_the_settings_there_are():
    definitions = yaml.safe_load((CHARTS / "definitions.yaml").read_text())
    schema = Settings.model_json_schema()
    wanted = _section(schema, schema["$defs"])
    assert definitions["processorSettings"] == wanted, f"should be\n{yaml.safe_dump(wanted, sort_keys=False)}"


def _section(section, definitions):
    names = {name: _setting(field, definitions) for name, field in section["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": names}


def _setting(field, definitions):
    if "$ref" in field:
        named = definitions[field["$ref"].rpartition("/")[2]]
        return _section(named, definitions) if "properties" in named else _setting(named, definitions)
    if "anyOf" in field:
        found = _setting(field["anyOf"][0], definitions)
        found["type"] = [found["type"], "null"]
        return {**found, "enum": [*found["enum"], None]} if "enum" in found else found
    kept = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "maxItems")
    found = {name: field[name] for name in kept if name in field}
    if found["type"] == "array":
        found["items"] = _setting(field["items"], definitions)
    return found


def test_a_change_of_the_settings_restarts_the_pods():
    def checksum(config):
        spec = pick(made([{"config": config}]), "Deployment")["spec"]["template"]
        return spec["metadata"]["annotations"]["checksum/config"]

    assert (
        checksum({"log": {"level": "DEBUG"}})
        != checksum({"log": {"level": "INFO"}})
        == checksum({"log": {"level": "INFO"}})
    )


# ---- stores and secrets --------------------------------------------------------------------------------------


def test_secrets_are_files_that_follow_their_secret():
    """A variable keeps the value that the pod started with, and so does a mount with a subPath."""
    documents = render(CHART, CI["existing-secrets"], release="tokenweir")
    found = environment(documents)
    mounts = {each["mountPath"]: each for each in container(documents)["volumeMounts"]}
    volumes = {each["name"]: each for each in processor(documents)["volumes"]}
    for name, key in {
        "TOKENWEIR_REDIS__URL": "redis-url",
        "TOKENWEIR_MONGO__URL": "mongo-url",
        "TOKENWEIR_ALERTS__WEBHOOK_SECRET": "webhook-secret",
    }.items():
        assert name not in found
        folder, _, file = found[f"{name}_FILE"]["value"].rpartition("/")
        assert "subPath" not in mounts[folder]
        assert mounts[folder]["readOnly"]
        assert volumes[mounts[folder]["name"]]["secret"] == {
            "secretName": "tokenweir",
            "items": [{"key": key, "path": file}],
        }


def test_a_url_that_is_secret_itself_stays_in_its_secret():
    values = {"webhook": {"existingSecret": {"name": "hook", "urlKey": "url"}}}
    found = environment(made([values]))["TOKENWEIR_ALERTS__WEBHOOK_URL"]
    assert found == {
        "name": "TOKENWEIR_ALERTS__WEBHOOK_URL",
        "valueFrom": {"secretKeyRef": {"name": "hook", "key": "url"}},
    }


@pytest.mark.parametrize(
    ("url", "joined"), [("rediss://r:6380/0", "?"), ("rediss://r:6380/0?health_check_interval=5", "&")]
)
def test_a_ca_is_mounted_and_named_in_the_url(url, joined, tmp_path):
    values = {
        "redis": {"url": url, "ca": {"secret": "redis-ca"}},
        "mongo": {"url": "mongodb+srv://mongo.example.com/?tls=true", "ca": {"configMap": "ca", "key": "b.pem"}},
    }
    documents = made([values])
    found = environment(documents)
    assert found["TOKENWEIR_REDIS__URL"]["value"] == f"{url}{joined}ssl_ca_certs=/etc/tokenweir/redis/ca.crt"
    assert found["TOKENWEIR_MONGO__URL"]["value"].endswith("?tls=true&tlsCAFile=/etc/tokenweir/mongo/ca.crt")
    volumes = {each["name"]: each for each in processor(documents)["volumes"]}
    assert volumes["mongo-ca"]["configMap"] == {"name": "ca", "items": [{"key": "b.pem", "path": "ca.crt"}]}
    assert volumes["redis-ca"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert loaded(documents, tmp_path).redis.url.get_secret_value().startswith(url)


def test_the_trials_stores_are_found_and_reached_by_the_processor_alone():
    documents = render(CHART, CI["trial"], release="tokenweir", namespace="try")
    found = environment(documents)
    ((processor,), (mongo, redis)) = pods(documents)
    for name, store, labels in (("REDIS", "redis", redis), ("MONGO", "mongo", mongo)):
        url = found[f"TOKENWEIR_{name}__URL"]["value"]
        assert f"tokenweir-trial-{store}.try.svc" in url
        service = pick(documents, "Service", f"tokenweir-trial-{store}")["spec"]
        assert matches(service["selector"], labels)
        assert (
            url.partition("?")[0].removesuffix("/").removesuffix("/0").endswith(f":{service['ports'][0]['port']}")
        )
    probe = pick(documents, "StatefulSet", "tokenweir-trial-mongo")["spec"]["template"]["spec"]["containers"][0]
    assert (
        "tokenweir-trial-mongo-0.tokenweir-trial-mongo.try.svc:27017"
        in probe["startupProbe"]["exec"]["command"][-1]
    )
    policy = pick(documents, "NetworkPolicy", "tokenweir-trial")["spec"]
    callers = [peer["podSelector"]["matchLabels"] for peer in policy["ingress"][0]["from"]]
    assert matches(policy["podSelector"]["matchLabels"], mongo)
    assert [matches(each, processor) for each in callers] == [True, False]
    egress = pick(documents, "NetworkPolicy", "tokenweir")["spec"]["egress"][1]
    assert matches(egress["to"][0]["podSelector"]["matchLabels"], redis)


# ---- pods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CI)
def test_every_pod_is_restricted(name):
    """Kubernetes' pod security standard `restricted`, and a root file system that nobody writes."""
    for each in render(CHART, CI[name], release="tokenweir"):
        if each["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        spec = each["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == (65532 if each["kind"] == "Deployment" else 999)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"]["limits"]["memory"]


@pytest.mark.parametrize(("drain", "pre_stop"), sampled([(20, 5), (300, 5), (12.2, 1), (3600, 60)], 2))
def test_a_pod_has_time_to_drain_and_to_record(drain, pre_stop):
    documents = made([{"config": {"server": {"drain_s": drain}}, "preStopSeconds": pre_stop}])
    spec = pick(documents, "Deployment")["spec"]["template"]
    assert container(documents)["lifecycle"]["preStop"] == {"sleep": {"seconds": pre_stop}}
    grace = spec["spec"]["terminationGracePeriodSeconds"]
    assert drain + pre_stop + 10 <= grace < drain + pre_stop + 11
    proxy = yaml.safe_load(spec["metadata"]["annotations"]["proxy.istio.io/config"])
    assert proxy["holdApplicationUntilProxyStarts"] is True
    assert proxy["terminationDrainDuration"] == f"{grace}s"


def test_the_number_of_pods_is_the_autoscalers_where_there_is_one():
    documents = made([{"autoscaling": {"enabled": True, "minReplicas": 3}}])
    assert "replicas" not in pick(documents, "Deployment")["spec"]
    scaler = pick(documents, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == pick(documents, "Deployment")["metadata"]["name"]
    assert scaler["metrics"][0]["containerResource"]["container"] == container(documents)["name"]
    grace = pick(documents, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert scaler["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": grace}]
    assert pick(made(), "Deployment")["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ({}, "tokenweir:0.2.0"),
        ({"repository": "r.example.com/t", "tag": "1"}, "r.example.com/t:1"),
        ({"tag": "1", "digest": "sha256:" + "a" * 64}, "tokenweir@sha256:" + "a" * 64),
    ],
)
def test_the_image_is_the_one_that_was_asked_for(image, wanted):
    assert container(made([{"image": image}]))["image"] == wanted


# ---- who may call --------------------------------------------------------------------------------------------


def test_nobody_but_the_gateway_may_call_the_processor():
    documents = made()
    assert pick(documents, "PeerAuthentication")["spec"]["mtls"] == {"mode": "STRICT"}
    policy = pick(documents, "AuthorizationPolicy")["spec"]
    assert policy["action"] == "ALLOW"
    (callers,) = [rule for rule in policy["rules"] if rule["to"][0]["operation"]["ports"] == ["50051"]]
    principals = ["cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"]
    assert callers["from"] == [{"source": {"principals": principals}}]
    (peer,) = _open_to(documents, 50051)
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "istio-system"}
    assert peer["podSelector"]["matchLabels"] == {"istio": "ingressgateway"}
    assert pick(documents, "DestinationRule")["spec"]["trafficPolicy"]["tls"] == {"mode": "ISTIO_MUTUAL"}


def test_at_sidecars_nobody_but_metered_pods_may_call_the_processor():
    documents = made([SIDECARS])
    (callers, _) = pick(documents, "AuthorizationPolicy")["spec"]["rules"]
    assert callers["from"] == [{"source": {"namespaces": ["models"]}}]
    (peer,) = _open_to(documents, 50051)
    assert peer["podSelector"]["matchLabels"] == {"tokenweir.io/metered": "true"}
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["models"]


def test_metrics_are_open_to_prometheus_alone():
    documents = made([{"networkPolicy": {"metricsNamespace": "monitoring"}}])
    (peer,) = _open_to(documents, 9464)
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert pick(documents, "PeerAuthentication")["spec"]["portLevelMtls"] == {"9464": {"mode": "PERMISSIVE"}}
    documents = made([{"metrics": {"principals": ["cluster.local/ns/infra/sa/prom"]}}])
    assert "portLevelMtls" not in pick(documents, "PeerAuthentication")["spec"]
    (_, scrapers) = pick(documents, "AuthorizationPolicy")["spec"]["rules"]
    assert scrapers["from"] == [{"source": {"principals": ["cluster.local/ns/infra/sa/prom"]}}]
    assert _open_to(made([{"metrics": {"scrape": "none"}}]), 9464) == []


def test_only_the_stores_and_what_was_named_are_reached():
    values = {
        "networkPolicy": {
            "redis": {"ports": [6380], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
            "extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        },
        "mesh": {"sidecar": False},
    }
    egress = pick(made([values]), "NetworkPolicy")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in egress] == [[53, 53], [6380], [27017], [443]]
    assert egress[1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def _open_to(documents, port):
    rules = pick(documents, "NetworkPolicy", "tokenweir")["spec"]["ingress"]
    return [peer for rule in rules if port in [each["port"] for each in rule["ports"]] for peer in rule["from"]]


def test_without_a_sidecar_istio_speaks_plainly_to_the_processor():
    documents = made([{"mesh": {"sidecar": False}}])
    assert pick(documents, "DestinationRule")["spec"]["trafficPolicy"]["tls"] == {"mode": "DISABLE"}
    assert not kinds(documents) & {"PeerAuthentication", "AuthorizationPolicy"}
    labels = pick(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["sidecar.istio.io/inject"] == "false"


def test_every_bound_towards_the_processor_is_written_down():
    pool = pick(made(), "DestinationRule")["spec"]["trafficPolicy"]["connectionPool"]
    assert pool["http"] == {
        "http2MaxRequests": 50000,
        "http1MaxPendingRequests": 50000,
        "maxRequestsPerConnection": 0,
        "maxRetries": 50000,
    }
    assert pool["tcp"] == {"maxConnections": 1024, "connectTimeout": "1s"}


# ---- what is refused -----------------------------------------------------------------------------------------

REFUSED = {
    "no pods": ({"replicaCount": 0}, "replicaCount.*(minimum|greater than or equal to 1)"),
    "no store": ({"redis": {"url": ""}}, r"redis: set redis.existingSecret.name .* or redis.url"),
    "a data source of nothing": (
        {"metrics": {"dataSource": {"enabled": True}}}, "metrics.dataSource.url: name the URL of the admin API"
    ),
    "a store twice": ({"mongo": {"existingSecret": {"name": "a"}}}, "mongo.url and mongo.existingSecret.name are both"),
    "a password": ({"redis": {"url": "redis://:hunter2@r:6379"}}, "redis.url holds a password: put the URL into a Secret"),
    "a password in the query": (
        {"redis": {"url": "redis://r:6379/0?db=1&Password=hunter2"}},
        "redis.url holds a password: put the URL into a Secret",
    ),
    "a password of a certificate": (
        {"mongo": {"url": "mongodb://m/?tlsCertificateKeyFilePassword=hunter2"}},
        "mongo.url holds a password",
    ),
    "a webhook's password": (
        {"webhook": {"url": "https://user:hunter2@a", "existingSecret": {"name": "a"}}},
        "webhook.url holds a password.*webhook.existingSecret.urlKey",
    ),
    "a route twice": ({"routes": [{"name": "a"}, {"name": "a", "key": "b"}]}, "routes: a stands there twice"),
    "another scheme": ({"redis": {"url": "http://r"}}, "redis[./]url"),
    "a CA of nowhere": ({"redis": {"ca": {"key": "a"}}}, "redis.ca: name the secret or configMap"),
    "a CA without TLS": ({"redis": {"ca": {"secret": "a"}}}, "redis.url must start with rediss://"),
    "two CAs": ({"mongo": {"ca": {"secret": "a", "configMap": "b"}}}, "mongo.ca: give secret or configMap, not both"),
    "memory for several": ({"redis": {"url": "memory://"}}, "redis.url is memory://.*set replicaCount: 1"),
    "memory, scaled": (
        {"mongo": {"url": "memory://"}, "replicaCount": 1, "autoscaling": {"enabled": True}},
        "mongo.url is memory://.*autoscaling.enabled: false",
    ),
    "an unknown placement": ({"placement": "ambient"}, "placement.*'gateway', 'sidecar'|placement.*gateway.*sidecar"),
    "nobody's sidecars": ({"placement": "sidecar"}, "sidecar.namespaces: name the namespaces"),
    "nobody's gateway": ({"gateway": {"principals": []}}, "gateway.principals: name the gateway's mTLS principals"),
    "open to all": ({"mesh": {"sidecar": False}, "networkPolicy": {"enabled": False}}, "can claim any identity; turn one on"),
    "metrics for the whole mesh": ({"networkPolicy": {"enabled": False}}, "name Prometheus in metrics.principals"),
    "no time": ({"terminationGracePeriodSeconds": 60}, "terminationGracePeriodSeconds: 60 is too short.*are 315"),
    "an unsigned webhook": ({"webhook": {"url": "https://a"}}, "set webhook.existingSecret.name too"),
    "a webhook of nowhere": ({"webhook": {"existingSecret": {"name": "a"}}}, "set webhook.url, or webhook.existingSecret.urlKey"),
    "an address": ({"config": {"server": {"address": "0.0.0.0:1"}}}, "config.server.address: set listenAddress instead"),
    "TLS beside the mesh's": ({"config": {"server": {"tls": {"key_file": "/k"}}}}, "config.server.tls: leave it out: the mesh"),
    "plaintext, said twice": ({"config": {"server": {"allow_plaintext": False}}}, "config.server.allow_plaintext: leave it out"),
    "a URL in the settings": ({"config": {"redis": {"url": "redis://r"}}}, "config.redis.url: set redis.url or"),
    "a secret in the settings": (
        {"config": {"alerts": {"webhook_secret": "s" * 16}}},
        "config.alerts.webhook_secret: set webhook.existingSecret instead",
    ),
    "an unknown setting": ({"config": {"server": {"drain": 5}}}, "drain.*not allowed|not allowed.*drain"),
    "an unknown value": ({"replicas": 2}, "replicas.*not allowed|not allowed.*replicas"),
    "an impossible setting": ({"config": {"reservation": {"decision_timeout_s": 3}}}, "decision_timeout_s"),
    "fewer than the fewest": ({"autoscaling": {"enabled": True, "maxReplicas": 1}}, "maxReplicas is less than"),
    "a share of nothing": (
        {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}},
        "set resources.requests.cpu",
    ),
    "a trial beside stores": ({"trial": {"enabled": True}}, "leave redis.url and redis.existingSecret.name empty"),
    "a route of requests without any": ({"routes": [{"name": "a", "meter": "requests"}]}, "routes: a: meter requests needs limits"),
    "tokens of what has none": (
        {"routes": [{"name": "a", "meter": "requests", "limits": [{"scope": "tenant", "window": "day", "amount": 1, "unit": "tokens"}]}]},
        "routes: a: meter requests counts requests, not tokens",
    ),
    "a route of pods at the gateway": ({"routes": [{"name": "a", "namespace": "b"}]}, "namespace and selector are for placement sidecar"),
    "a route of no pods": ({**SIDECARS, "routes": [{"name": "default", "key": "a"}]}, "needs the pods' namespace and selector"),
    "a name that is too long": ({"fullnameOverride": "x" * 41}, "fullnameOverride"),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(REFUSED, 13))
def test_what_can_not_be_meant_is_refused_with_the_way_out(name):
    values, message = REFUSED[name]
    # One of the two Helms each: their messages on the schema differ, those of the chart do not.
    helm = "helm3" if is_thorough() and list(REFUSED).index(name) % 2 else "helm"
    with pytest.raises(ChartError) as refused:
        made([values], helm=helm)
    assert re.search(message, str(refused.value), re.DOTALL), str(refused.value)


def test_a_setting_that_only_the_processor_understands_is_refused_by_it(tmp_path):
    """The chart's schema has types and bounds; the rest stops the start, with the setting's name."""
    documents = made([{"config": {"limits": {"default": {"timezone": "Mars/Olympus"}}}}])
    with pytest.raises(SettingsError, match=r"limits\.default\.timezone"):
        loaded(documents, tmp_path)


# ---- notes ---------------------------------------------------------------------------------------------------


def said(*values):
    return notes(CHART, STORES, *values, release="tokenweir", namespace="tw")


def test_the_notes_say_what_is_there_and_how_to_try_it():
    text = said()
    assert "Service tokenweir.tw" in text
    assert "curl -i https://" in text
    assert "Nothing is metered yet" in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("values", "message"),
    sampled(
        [
            ({"redis": {"url": ""}, "mongo": {"url": ""}, "trial": {"enabled": True}}, "FOR TRIALS ONLY"),
            ({"redis": {"url": "memory://"}, "replicaCount": 1}, "WARNING: redis.url is memory://"),
            ({"mesh": {"sidecar": False}}, "WARNING: mesh.sidecar: false"),
            ({"filter": {"failureModeAllow": True}}, "WARNING: filter.failureModeAllow"),
            ({"filter": {"enabled": False}}, "nothing is metered"),
            ({"routes": [{"name": "llm", "key": "a/llm"}]}, "Metered here: a/llm"),
            (SIDECARS, "pods that are labelled tokenweir.io/metered, in: models"),
            (
                {**SIDECARS, "config": {"identity": {"service_account_header": "oc_sa"}}},
                "the header oc_sa is removed",
            ),
        ],
        4,
    ),
)
def test_the_notes_are_loud_about_what_is_dangerous(values, message):
    assert message in said(values)


def test_a_secret_never_shows_in_what_is_made():
    text = json.dumps(render(CHART, CI["existing-secrets"], release="tokenweir"))
    assert "Secret" not in kinds(render(CHART, CI["existing-secrets"]))
    assert "password" not in text


def test_every_place_has_the_processors_bound_on_bodies():
    """The settings, Envoy's configuration, the charts' values and what they take where a value is missing."""
    assert Settings().server.max_body_bytes == EnvoyOptions.__dataclass_fields__["max_body_bytes"].default
    assert Settings().server.max_body_bytes == MAX_BODY_BYTES
    values = {
        chart: yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
        for chart in ("tokenweir", "kserve-model", "kserve-general", "platform")
    }
    assert values.pop("tokenweir")["config"]["server"]["max_body_bytes"] == MAX_BODY_BYTES
    for each in values.values():
        assert each["platform"]["tokenweir"]["maxBodyBytes"] == MAX_BODY_BYTES
    for template in ("tokenweir/templates/_config.tpl", "kserve-lib/templates/_limits.tpl"):
        assert f"default {MAX_BODY_BYTES} | int64" in (CHARTS / template).read_text(), template
    operators = (CHARTS.parent / "docs/operators.md").read_text()
    assert f"`server.max_body_bytes` ({MAX_BODY_BYTES >> 20} MiB)" in operators


def test_every_place_has_the_time_that_envoy_waits_for_an_answer():
    assert Settings().server.message_timeout_s == MESSAGE_TIMEOUT_S
    assert EnvoyOptions.__dataclass_fields__["message_timeout_s"].default == MESSAGE_TIMEOUT_S
    template = (CHARTS / "tokenweir/templates/_config.tpl").read_text()
    assert f"message_timeout_s | default {MESSAGE_TIMEOUT_S:g} |" in template
    for text in ("charts/tokenweir/values.yaml", "docs/operators.md"):
        found = (CHARTS.parent / text).read_text()
        assert f"server.message_timeout_s` ({MESSAGE_TIMEOUT_S:g} s)" in found, text


def test_paths_that_may_pass_unmetered_reach_the_settings():
    values = {"config": {"server": {"unmetered_paths": ["/v1/vector_stores*"]}}}
    made = pick(render(CHART, STORES, values, release="tokenweir"), "ConfigMap", "tokenweir")
    assert "/v1/vector_stores*" in next(iter(made["data"].values()))
    with pytest.raises(ChartError):
        render(CHART, STORES, {"config": {"server": {"unmetered_paths": "/v1/vector_stores*"}}})
