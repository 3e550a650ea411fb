"""Values at their edges, on an API server: features together and alone, the longest names, nothing where something was."""

import contextlib
import itertools
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHARTS, ChartError, render
from tests.charts.test_chart_properties import FEATURES, SOURCES, _nulls
from tests.charts.test_hostile_values import AGAIN, NO_TEXT, TEXTS, _fits_schema, _places, _with
from tests.charts.test_upgrades import WAYS
from tests.sizes import sampled

from .asked import told
from .cluster import Cluster, ClusterError
from .test_pods import SERVICE

GENERAL, MODEL = "kserve-general", "kserve-model"
FULL = CHARTS / GENERAL / "ci" / "full-llm-canary.yaml"


@pytest.mark.parametrize(("source", "way"), sampled(itertools.product(range(len(SOURCES)), WAYS), 6))
def test_every_way_to_serve_a_model_is_taken(cluster: Cluster, namespace: str, source: int, way: str) -> None:
    plain, canary = SOURCES[source]
    documents = render(MODEL, plain, WAYS[way]) + render(GENERAL, canary, WAYS[way], {"primaryLoad": 70})
    assert told(cluster, documents, namespace) == []


@pytest.mark.parametrize("name", sampled(sorted(FEATURES), 4))
def test_each_feature_alone_is_taken(cluster: Cluster, namespace: str, name: str) -> None:
    documents = render(GENERAL, SOURCES[1][1], FEATURES[name], {"primaryLoad": 70})
    assert told(cluster, documents, namespace) == []


@pytest.mark.parametrize("nulls", sampled(_nulls()[0], 4), ids=str)
def test_a_section_that_is_null_leaves_objects_that_are_taken(
    cluster: Cluster, namespace: str, nulls: dict[str, Any]
) -> None:
    made = render(GENERAL, nulls)
    with contextlib.suppress(ChartError):  # some of what the file says needs that section
        made += render(GENERAL, FULL, nulls)
    assert told(cluster, made, namespace) == []


def test_a_text_that_means_something_elsewhere_is_taken_or_the_server_names_its_field(
    cluster: Cluster, namespace: str
) -> None:
    """A date is a text wherever one may stand; nothing is taken for a number."""
    for base, text, paths in _places():
        if text != TEXTS[0]:
            continue
        free = [each for each in paths if not NO_TEXT & set(map(str, each)) and each[-3:] != AGAIN]
        taken = _fits_schema(base, text, free)
        assert len(taken) > 20
        said = told(cluster, render(GENERAL, _with(base, text, taken)), namespace)
        assert not [each for each in said if "expected" in each or "cannot unmarshal" in each], said


LONG = {
    "kserve-model": ("full-llm", 63 - len("-predictor-") - len("models")),
    "kserve-general": ("full-llm-canary", 63 - len("-primary-predictor-") - len("models")),
    "tokenweir": ("admin-values", 40 - len("-tokenweir")),
}


@pytest.mark.parametrize("chart", LONG)
def test_the_longest_name_of_a_release_is_taken_and_one_more_letter_refused_by_the_chart(
    cluster: Cluster, namespace: str, chart: str
) -> None:
    file, longest = LONG[chart]
    values = CHARTS / chart / "ci" / f"{file}.yaml"
    assert told(cluster, render(chart, values, release="q" * longest), namespace) == []
    with pytest.raises(ChartError, match=r"too long|longer than"):
        render(chart, values, release="q" * (longest + 1))


# What a person may write twice, and the chart says once.
TWICE = [
    (MODEL, "inferenceservice: {predictor: {imagePullSecrets: [a, a], serviceAccountSecrets: [a, a]}}"),
    ("tokenweir", "{trial: {enabled: true}, image: {pullSecrets: [a, a]}}"),
    ("platform", "messageDumper: {enabled: true, imagePullSecrets: [a, a]}"),
]


@pytest.mark.parametrize(("chart", "text"), TWICE)
def test_a_secret_that_is_named_twice_is_taken(cluster: Cluster, namespace: str, chart: str, text: str) -> None:
    where = {"release": "platform", "namespace": "infra"} if chart == "platform" else {}
    assert told(cluster, render(chart, yaml.safe_load(text), **where), namespace) == []


def test_what_an_object_may_not_become_is_refused_by_the_server(cluster: Cluster, namespace: str) -> None:
    """A dry run of an upgrade sees it too: the tests of upgrades rest on that."""
    cluster.apply([SERVICE], "-n", namespace)
    given = {**SERVICE, "spec": {**SERVICE["spec"], "clusterIP": "10.96.12.34"}}
    with pytest.raises(ClusterError, match=r"spec\.clusterIPs?.*(?:immutable|may not change)"):
        cluster.apply([given], "-n", namespace)
