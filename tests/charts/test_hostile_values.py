"""Texts that mean something to YAML, to Helm or to a shell are texts in every value that takes one."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.charts import schemas
from tests.sizes import sampled

from .helm import CHARTS, ChartError, pick, render

GENERAL, MODEL = "kserve-general", "kserve-model"
Path = tuple[str | int, ...]
# One is a number, a date or a word of YAML's wherever it stands bare; the other breaks out of whatever it stands in.
TEXTS = ("2024-01-01", 'a\'b"c: {{ fail "x" }}\n---\nkind: Evil\nevil: é✓ #&*!|>%@`\\')
REFUSED_AS_MEANT = "refused as meant"
# These have a form of their own, name something that must be there, or exclude others.
NO_TEXT = {
    "graph", "runtime", "modelFormat", "storageUri", "newStorageUri", "storageKey", "newImageTag", "newImage",
    "domain", "hosts", "type", "gateways",
}  # fmt: skip
AGAIN = ("var_env", 0, "name")  # the same name in `env` and here is refused
WORDS = ("true", "null", "on", "1", "1e3", "0x1f")


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for each in schema.get("allOf", ()):
        schema = {**_resolved(definitions[each["$ref"].rpartition("/")[2]], definitions), **schema}
    return schema


def _texts(schema: dict[str, Any], definitions: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Where a text may stand, and whether any text may."""
    schema = _resolved(schema, definitions)
    types = schema.get("type", ())
    if "string" in ((types,) if isinstance(types, str) else types) and "enum" not in schema:
        yield path, "pattern" not in schema
    if "items" in schema:
        yield from _texts(schema["items"], definitions, (*path, 0))
    for key, each in schema.get("properties", {}).items():
        yield from _texts(each, definitions, (*path, key))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _texts(schema["additionalProperties"], definitions, (*path, "key"))


def _leaves() -> list[tuple[Path, bool]]:
    schema = json.loads((CHARTS / GENERAL / "values.schema.json").read_text(encoding="utf-8"))
    return list(_texts(schema, schema["definitions"]))


# Everything is on, so that every text is used somewhere.
LLM = yaml.safe_load((CHARTS / GENERAL / "ci" / "full-llm-canary.yaml").read_text(encoding="utf-8"))
LLM["logger"] = {"enabled": True}
LLM["security"] = {"extAuthz": {"enabled": True, "provider": "opa"}}
CONTAINERS: dict[str, Any] = {
    "exposeModel": {"enabled": True, "api": "gateway-api"},
    "ratelimitIPPerMinute": 3,
    "inferenceservice": {
        "protocol": "v1",
        "predictor": {"containers": [{"image": "a:1", "newImageTag": "2"}]},
        "transformer": {"containers": [{"image": "t:1"}]},
        "explainer": {"containers": [{"image": "e:1"}]},
        "graph": {"root": {"routerType": "Sequence", "steps": [{}]}},
    },
}
BESIDE = {
    "containers": {"image": "a:1"},
    "ports": {"containerPort": 8000},
    "issuers": {"issuer": "https://a"},
    "env": {"name": "N"},
    "var_env": {"name": "N"},
    "limits": {"scope": "tenant", "window": "day", "amount": 1, "unit": "requests"},
}


def _put(values: Any, path: Path, text: str) -> Any:
    """A copy of `values` with the text at `path`, and what has to stand beside it."""
    if not path:
        return text
    key, *rest = path
    if isinstance(key, int):
        first = values[0] if values else {}
        return [_put(first, tuple(rest), text), *(values or ())[1:]]
    values = dict(values) if isinstance(values, dict) else {}
    inner = values.get(key)
    if rest and rest[0] == 0:
        beside = BESIDE.get(str(key), {})
        first = inner[0] if inner else {}
        inner = [{**beside, **first} if beside and isinstance(first, dict) else first, *(inner or ())[1:]]
    return {**values, key: _put(inner, tuple(rest), text)}


def _told(values: dict[str, Any]) -> str:
    """Return what is wrong with the objects; `REFUSED_AS_MEANT` if the chart refuses the values in its own words."""
    try:
        documents = render(GENERAL, values)
    except ChartError as error:
        text = str(error)
        as_meant = "don't meet the specifications" in text or (
            "execution error at" in text and "error calling" not in text
        )
        return REFUSED_AS_MEANT if as_meant else text
    except yaml.YAMLError as error:
        return str(error)
    found = [problem for each in documents for problem in schemas.problems(each)]
    keys = [each["kind"] for each in documents if each["kind"] == "Evil" or "evil" in each]
    return "; ".join(found + keys)


def _wrong(base: dict[str, Any], text: str, paths: list[Path]) -> dict[Path, str]:
    """Return what is wrong where, with the text at all paths at once; halves are tried if something is."""
    told = _told(_with(base, text, paths))
    if not told or len(paths) < 2:
        return dict.fromkeys(paths, told) if told else {}
    middle = len(paths) // 2
    return _wrong(base, text, paths[:middle]) | _wrong(base, text, paths[middle:])


def _with(base: dict[str, Any], text: str, paths: list[Path]) -> dict[str, Any]:
    for path in paths:
        base = _put(base, path, text)
    return base


def _fits_schema(base: dict[str, Any], text: str, paths: list[Path]) -> list[Path]:
    """Return the paths without those that the chart's schema names when the text stands at all of them."""
    try:
        render(GENERAL, _with(base, text, paths))
    except ChartError as error:
        return [path for path in paths if f"at '/{'/'.join(map(str, path))}'" not in str(error)]
    return paths


def _places() -> Iterator[tuple[dict[str, Any], str, list[Path]]]:
    """Yield values, a text, and where to put it. A text with a pattern has met the regular expression already."""
    leaves = list(enumerate(_leaves()))
    for base, text in itertools.product((LLM, CONTAINERS), TEXTS):
        yield (
            base,
            text,
            [
                path
                for number, (path, free) in leaves
                if (free or text == TEXTS[0]) and (base is CONTAINERS) == _is_for_containers(path, number)
            ],
        )


def _is_for_containers(path: Path, number: int) -> bool:
    return "containers" in path or (number % 2 == 1 and "model" not in path)


@pytest.mark.parametrize("base", [LLM, CONTAINERS], ids=["model", "containers"])
def test_the_values_that_texts_are_put_into_make_valid_objects(base: dict[str, Any]) -> None:
    schemas.check(render(GENERAL, base))


def test_a_text_is_a_text_wherever_it_may_stand() -> None:
    """The text stands at all places at once, but for those that take no text as it is."""
    for base, text, paths in _places():
        free = [path for path in paths if not NO_TEXT & set(path) and path[-3:] != AGAIN]
        taken = _fits_schema(base, text, free)
        assert len(taken) > 20
        told = _told(_with(base, text, taken))
        assert not told, (told, _wrong(base, text, taken))


@pytest.mark.thorough
def test_a_text_is_a_text_or_refused_in_the_charts_words_wherever_it_stands_alone() -> None:
    for base, text, paths in _places():
        alone = [_put(base, path, text) for path in paths]
        with ThreadPoolExecutor(4) as pool:
            told = zip(paths, pool.map(_told, alone), strict=True)
        assert {path: message for path, message in told if message not in {"", REFUSED_AS_MEANT}} == {}, text


@pytest.mark.parametrize("word", sampled(WORDS, 3))
def test_a_release_and_a_namespace_may_be_called_what_yaml_takes_for_something_else(word: str) -> None:
    for chart in (MODEL, GENERAL):
        release = "qwen" if word[0].isdigit() else word
        documents = render(chart, CONTAINERS if chart == GENERAL else {}, release=release, namespace=word)
        schemas.check(documents)
        assert pick(documents, "ServiceAccount")["metadata"]["name"] == release
        service = next(each for each in documents if each["kind"] == "InferenceService")
        assert service["metadata"]["namespace"] == word
        assert service["spec"]["predictor"]["serviceAccountName"] == release


def test_a_label_of_the_platforms_takes_the_place_of_the_charts() -> None:
    labels = {"app.kubernetes.io/instance": "prometheus", "release": "kube-prometheus-stack"}
    documents = render(MODEL, {"platform": {"monitorLabels": labels}})
    found = pick(documents, "PodMonitor")["metadata"]["labels"]
    assert labels.items() <= found.items()
    assert found["tokenweir.io/release"] == "qwen"


REFUSED = [
    ({"exposeModel": {"enabled": True}, "platform": {"domain": "{{ .Values.env }}.x.io"}}, "platform.domain"),
    ({"exposeModel": {"enabled": True}, "platform": {"domain": "https://x.io"}}, "is no host name"),
    ({"exposeModel": {"enabled": True, "hosts": ["https://x.io/a"]}}, "see exposeModel.hosts"),
    ({"exposeModel": {"paths": ["/v1/*"]}}, "does not match pattern"),
    ({"inferenceservice": {"labels": {"team": "a b"}}}, "does not match pattern"),
    ({"inferenceservice": {"predictor": {"serviceAccountName": "a b"}}}, "does not match pattern"),
    ({"inferenceservice": {"predictor": {"affinity": {"nodeAffinity": []}}}}, "/affinity/nodeAffinity"),
]
_GRAPH = {"root": {"routerType": "Splitter", "steps": [{"weight": 60}, {"weight": 60, "serviceName": "b"}]}}
REFUSED += [
    ({"inferenceservice": {"graph": _GRAPH}}, "must be 100 together, and are 120"),
    (
        {"inferenceservice": {"graph": {"root": {"routerType": "Sequence", "steps": [{"nodeName": "b"}]}}}},
        "the node b, which there is none of",
    ),
    ({"inferenceservice": {"graph": {"root": {"routerType": "Sequence", "steps": "b"}}}}, "/graph/root/steps"),
]
REFUSED += [
    ({"inferenceservice": {"predictor": {"containers": containers}}}, message)
    for containers, message in (
        ([{"image": "a", "ports": [{"containerPort": "8000"}]}], "ports/0/containerPort"),
        ([{"image": "a", "ports": [{"port": 8000}]}], "containerPort"),
        ([{"image": "a"}, {"image": "b", "name": "B_c"}], "can't be a container's"),
        ([{"image": "a b"}], "does not match pattern"),
        ([{"image": "a", "newImageTag": ":2"}], "does not match pattern"),
        (
            [{"image": "a", "resources": {"limitGPU": 1}, "var_resource": {"limitCPU": 1}}],
            "resources and var_resource",
        ),
        ([{"image": "a", "env": [{"name": "A"}], "var_env": [{"name": "A"}]}], "sets A twice"),
    )
]
REFUSED += [
    ({"inferenceservice": {"predictor": {"model": {"modelFormat": {"name": name}, "storageUri": uri}}}}, message)
    for name, uri, message in (
        ("scikit-learn", "s3://a/b", "write sklearn"),
        ("sklearn", "s3://a/b ", "has a blank in it"),
    )
]


@pytest.mark.parametrize(("values", "message"), sampled(REFUSED, 8), ids=[message for _, message in REFUSED])
def test_what_kubernetes_would_refuse_is_refused_here_and_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartError) as caught:
        render(GENERAL, values)
    assert message in " ".join(str(caught.value).split())
