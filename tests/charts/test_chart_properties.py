"""What holds for the objects of a model's release, whatever its values are."""

import copy
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.charts import schemas
from tests.sizes import is_thorough, sampled, sized

from .helm import CHARTS, ChartError, Document, render

LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
ISSUERS = [
    {"issuer": "https://login.example.com", "jwksUri": "https://login.example.com/jwks", "audiences": ["llm"]}
]
Values = dict[str, Any]


def _merged(*parts: Values) -> Values:
    whole: Values = {}
    for part in parts:
        for key, value in part.items():
            old = whole.get(key)
            whole[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return copy.deepcopy(whole)


def _model(name: str, uri: str, **more: Any) -> Values:
    return {
        "inferenceservice": {"predictor": {"model": {"modelFormat": {"name": name}, "storageUri": uri, **more}}}
    }


# What a model is, each with what makes it a canary.
SOURCES = [
    (_model("sklearn", "gs://a/b"), _model("sklearn", "gs://a/b", newStorageUri="gs://a/c")),
    (_model("vllm", "hf://a/b"), _model("vllm", "hf://a/b", image="r:5000/v:1", newImageTag="2")),
    (_model("huggingface", "hf://a/b"), _model("huggingface", "hf://a/b", newStorageUri="hf://a/b:next")),
    (_model("onnx", "pvc://a/b"), _model("onnx", "pvc://a/b", newStorageUri="pvc://a/c")),
    (_model("mlflow", "s3://a/b"), _model("mlflow", "s3://a/b", image="m:1", newImage="m:2")),
    *(
        (
            {"inferenceservice": {"predictor": {"containers": [container, *others]}}},
            {"inferenceservice": {"predictor": {"containers": [{**container, "newImageTag": "9"}, *others]}}},
        )
        for container, others in (
            ({"image": "vllm/vllm-openai:v1", "ports": [{"containerPort": 8000}]}, [{"image": "side:1"}]),
            ({"image": "omen:1", "var_env": [{"name": "A", "value": "b"}]}, []),
        )
    ),
]
FEATURES: dict[str, Values] = {
    "gpu": {"resources": {"requestGPU": 1}},
    "cpu": {"resources": {"requestCPU": "500m", "limitCPU": 2, "requestMemory": "1Gi"}},
    "scale": {
        "autoscaling": {"maxReplicaCount": 9, "targetCPUUtilizationPercentage": 80, "targetRequestRate": 100}
    },
    "scale on gpu": {"autoscaling": {"maxReplicaCount": 9, "targetGPUUtilizationPercentage": 75}},
    "hpa": {"autoscaling": {"engine": "hpa"}},
    "expose": {
        "exposeModel": {"enabled": True, "jwtVerify": {"Audiences": "llm"}},
        "platform": {"jwt": {"issuers": ISSUERS}},
    },
    "gateway api": {"exposeModel": {"api": "gateway-api"}},
    "sidecar": {"platform": {"tokenweir": {"placement": "sidecar"}}},
    "ext authz": {"security": {"extAuthz": {"enabled": True, "provider": "opa"}}},
    "closed": {"security": {"sameNamespaceWithoutToken": False}},
    "no metrics": {"metrics": {"enabled": False}},
    "metrics": {"metrics": {"port": 9000, "path": "/m"}},
    "logger": {"logger": {"enabled": True}},
    "no access log": {"accessLog": {"enabled": False}},
    "rates": {"ratelimitIPPerMinute": 10, "ratelimitEachSAPerMinute": 100},
    "transformer": {"inferenceservice": {"transformer": {"containers": [{"image": "t:1"}], "replicas": 2}}},
    "own account": {"inferenceservice": {"predictor": {"serviceAccountName": "own"}}},
    "labels": {"inferenceservice": {"labels": {"team": "x"}, "annotations": {"a": "b"}}, "env": "prod/1"},
    "where": {"clusterName": "c", "region": "r", "regionCode": "x", "reconcileInterval": "10m"},
}


def _components(service: Document) -> Iterator[tuple[str, dict[str, str]]]:
    """The Deployment and the pods' labels that KServe makes of each component."""
    name = service["metadata"]["name"]
    for component, spec in service["spec"].items():
        labels = {
            **service["metadata"]["labels"],
            **spec.get("labels", {}),
            "app": f"isvc.{name}-{component}",
            "component": component,
            "serving.kserve.io/inferenceservice": name,
        }
        yield f"{name}-{component}", labels


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for each in selector.get("matchExpressions", []):
        value = labels.get(each["key"])
        found = value is not None if each["operator"] in {"Exists", "DoesNotExist"} else value in each["values"]
        if found != (each["operator"] in {"In", "Exists"}):
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _selectors(document: Document) -> Iterator[dict[str, Any]]:
    spec = document.get("spec", {})
    if document["kind"] == "Service":
        yield {"matchLabels": spec["selector"]}
    elif "workloadSelector" in spec:
        yield {"matchLabels": spec["workloadSelector"]["labels"]}
    elif isinstance(spec.get("selector"), dict):
        yield spec["selector"]


def _labels(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"labels", "matchLabels"} and isinstance(value, dict):
                yield from value.items()
            else:
                yield from _labels(value)
    elif isinstance(node, list):
        for each in node:
            yield from _labels(each)


def _services(documents: list[Document]) -> list[Document]:
    return [each for each in documents if each["kind"] == "InferenceService"]


def _check_names(documents: list[Document]) -> None:
    seen = set()
    for document in documents:
        metadata = document["metadata"]
        name = (document["kind"], metadata.get("namespace"), metadata["name"])
        assert name not in seen, f"{name} twice"
        seen.add(name)
        assert len(metadata["name"]) <= 63, name
        for key, value in _labels(document):
            assert len(str(value)) <= 63, (name, key)
            assert LABEL.fullmatch(str(value)), (name, key, value)
    for service in _services(documents):
        for deployment, labels in _components(service):
            assert len(deployment) <= 63
            assert len(labels["app"]) <= 63


def _check_selectors(documents: list[Document]) -> None:
    pods = [labels for service in _services(documents) for _, labels in _components(service)]
    for document in documents:
        if document["metadata"].get("namespace", "models") != "models":
            continue  # at the gateway: its pods, not ours
        for selector in _selectors(document):
            assert any(_selects(selector, labels) for labels in pods), (document["metadata"]["name"], selector)


def _check_scaling(documents: list[Document]) -> None:
    deployments = {name for service in _services(documents) for name, _ in _components(service)}
    scaled = []
    for document in documents:
        if document["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}:
            assert not document["metadata"]["name"].endswith("-predictor")
            scaled.append(document["spec"]["scaleTargetRef"]["name"])
    assert set(scaled) <= deployments
    assert len(scaled) == len(set(scaled))
    for service in _services(documents):
        external = service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
        assert external == (f"{service['metadata']['name']}-predictor" in scaled)
        assert external != ("minReplicas" in service["spec"]["predictor"])


def _check_variants(documents: list[Document]) -> None:
    variants = []
    for service in copy.deepcopy(_services(documents)):
        service["metadata"].pop("name")
        predictor = service["spec"]["predictor"]
        predictor.pop("minReplicas", None)
        for holder in (predictor.get("model", {}), *predictor.get("containers", [])):
            holder.pop("storageUri", None)
            holder.pop("image", None)
        variants.append(service)
    assert all(each == variants[0] for each in variants)


def _splits(document: Document) -> Iterator[list[dict[str, Any]]]:
    if document["kind"] == "VirtualService":
        yield from (route["route"] for route in document["spec"]["http"] if len(route.get("route", [])) > 1)
    elif document["kind"] == "HTTPRoute":
        yield from (
            rule["backendRefs"] for rule in document["spec"]["rules"] if len(rule.get("backendRefs", [])) > 1
        )


def _check_weights(documents: list[Document], load: int | None) -> None:
    for document in documents:
        for split in _splits(document):
            assert sum(each["weight"] for each in split) == 100
            assert load in {None, split[0]["weight"]}


def _check_accounts(documents: list[Document]) -> None:
    made = {each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"}
    for service in _services(documents):
        for spec in service["spec"].values():
            assert spec["serviceAccountName"] in made | {"own"}


def _check(documents: list[Document], load: int | None = None) -> None:
    schemas.check(documents)
    _check_names(documents)
    _check_selectors(documents)
    _check_scaling(documents)
    _check_variants(documents)
    _check_weights(documents, load)
    _check_accounts(documents)


class Case(NamedTuple):
    """A release: its chart, values and name. `load` is what the primary gets while there is a canary."""

    chart: str
    canary: bool
    load: int
    values: Values
    release: str


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    chart = draw(st.sampled_from(["kserve-model", "kserve-general"]))
    canary = chart == "kserve-general" and draw(st.booleans())
    features = draw(st.sets(st.sampled_from(sorted(FEATURES))))
    values = _merged(draw(st.sampled_from(SOURCES))[canary], *(FEATURES[name] for name in sorted(features)))
    load = draw(st.integers(0, 100))
    values["replicaCount"] = draw(st.integers(1, 9))
    if chart == "kserve-general":
        values["primaryLoad"] = load
    return Case(chart, canary, load, values, draw(st.from_regex(r"\A[a-z][a-z0-9-]{0,20}[a-z0-9]\Z")))


@settings(max_examples=sized(6, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(_cases())
def test_what_holds_holds_for_any_values(case: Case) -> None:
    documents = render(case.chart, case.values, release=case.release)
    _check(documents, case.load)
    assert len(_services(documents)) == 1 + case.canary


@pytest.mark.parametrize("name", sampled(sorted(FEATURES), 5))
def test_each_feature_may_be_on_alone_or_off_alone(name: str) -> None:
    source = SOURCES[1][1]
    _check(render("kserve-general", _merged(source, FEATURES[name]), {"primaryLoad": 70}), 70)
    others = [values for other, values in FEATURES.items() if other != name]
    _check(render("kserve-general", _merged(source, *others), {"primaryLoad": 70}), 70)


def _sections(values: Values, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _sections(value, (*path, key))


def _nested(path: tuple[str, ...]) -> Values:
    value: Any = None
    for key in reversed(path):
        value = {key: value}
    return value


def _nulls() -> tuple[list[Values], list[Values]]:
    """Every section and top-level key as null, one by one; and each section with everything in it null."""
    text = (CHARTS / "kserve-general" / "values.yaml").read_text(encoding="utf-8")
    paths = list(_sections(yaml.safe_load(text)))
    whole = [path for path in paths if len(path) == 1 or any(other[:-1] == path for other in paths)]
    inner = [_merged(*map(_nested, group)) for _, group in itertools.groupby(paths, key=lambda path: path[:-1])]
    return [_nested(path) for path in whole], inner


def _together(values: list[Values]) -> list[Values]:
    """Merge as many of them as say nothing about the same value; in the thorough form each stays alone."""
    batches: list[Values] = []
    for each in values:
        free = (number for number, batch in enumerate(batches) if not _meet(batch, each))
        number = None if is_thorough() else next(free, None)
        if number is None:
            batches.append(each)
        else:
            batches[number] = _merged(batches[number], each)
    return batches


def _meet(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return True
    return any(_meet(one[key], other[key]) for key in one.keys() & other.keys())


def _tried(*values: Values) -> str:
    try:
        _check(render("kserve-general", *values))
    except ChartError as error:
        return str(error)
    return ""


def test_any_section_may_be_null() -> None:
    with ThreadPoolExecutor(4) as pool:
        every = _together(list(itertools.chain(*_nulls())))
        failed = dict(zip(map(str, every), pool.map(_tried, every), strict=True))
    assert {values: message for values, message in failed.items() if message} == {}


FULL = CHARTS / "kserve-general/ci/full-llm-canary.yaml"


@pytest.mark.parametrize("nulls", sampled(_nulls()[0], 6), ids=str)
def test_a_section_that_is_missed_is_named_and_nothing_breaks(nulls: Values) -> None:
    message = _tried(yaml.safe_load(FULL.read_text(encoding="utf-8")), nulls)
    # What `fail` says is an execution error without a template's own words.
    assert not message or ("execution error at" in message and "error calling include" not in message), message
