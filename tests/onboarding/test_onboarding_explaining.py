"""Which values an object is there for: what is said is what rendering without them shows."""

import pytest

from extproc.onboarding import comparing, explaining, helm
from extproc.onboarding.errors import HelmRefused, OnboardingError
from extproc.onboarding.layering import unspell, without
from tests.charts.helm import tool

LLM = {
    "inferenceservice": {
        "predictor": {
            "model": {
                "modelFormat": {"name": "huggingface"},
                "storageUri": "hf://a/b",
                "newStorageUri": "hf://a/c",
            }
        }
    },
    "replicaCount": 1,
    "resources": {"limitGPU": 1},
    "primaryLoad": 80,
    "autoscaling": {"targetQueueDepth": 4, "targetGPUUtilizationPercentage": 75},
    "exposeModel": {"enabled": True},
    "ratelimitIPPerMinute": 5,
}
# What a study renders is one chart for each value: few values are enough for most questions.
FEW = {name: LLM[name] for name in ("inferenceservice", "replicaCount", "primaryLoad", "exposeModel")}
NEW = "inferenceservice.predictor.model.newStorageUri"


@pytest.fixture(scope="module")
def program():
    return tool("helm")


@pytest.fixture(scope="module")
def study(program):
    return explaining.study("kserve-general", LLM, "qwen", "models", program)


def one(study, kind, name):
    (found,) = [each for each in study.objects if (each.kind, each.name) == (kind, name)]
    return found


def rendered(values, program, chart="kserve-general"):
    return helm.objects(helm.render(chart, values, "qwen", "models", program))


def test_every_rendered_object_is_explained_in_its_order(study, program):
    objects = [(each["kind"], each["metadata"]["name"]) for each in rendered(LLM, program)]
    assert [(each.kind, each.name) for each in study.objects] == objects


def test_the_canarys_service_is_there_for_its_model(study):
    canary = one(study, "InferenceService", "qwen-canary")
    assert (canary.because, canary.each_needed) == ([NEW], True)
    primary = one(study, "InferenceService", "qwen-primary")
    assert primary.because == []
    assert "inferenceservice.predictor.model.storageUri" in primary.shaped_by
    assert "resources.limitGPU" in primary.shaped_by


def test_publishing_is_the_reason_of_what_publishes(study):
    assert one(study, "VirtualService", "qwen-predictor").because == ["exposeModel.enabled"]
    assert set(one(study, "VirtualService", "qwen-canary-predictor").because) == {NEW, "exposeModel.enabled"}
    assert {"primaryLoad", NEW} <= set(one(study, "VirtualService", "qwen-predictor").shaped_by)


def test_what_two_values_bring_each_alone_is_there_for_either(study, program):
    scaled = one(study, "ScaledObject", "qwen-primary-scale")
    targets = ["autoscaling.targetQueueDepth", "autoscaling.targetGPUUtilizationPercentage"]
    assert (sorted(scaled.because), scaled.each_needed) == (sorted(targets), False)
    for one_of_them in targets:
        kept = rendered(without(LLM, *unspell(one_of_them)), program)
        assert "qwen-primary-scale" in {each["metadata"]["name"] for each in kept}


def test_what_is_said_is_what_rendering_without_it_shows(study, program):
    """Each claim is tried here again, from outside."""
    for each in study.objects:
        if each.each_needed:
            for path in (path for path in each.because if path not in each.by_default):
                names = {
                    (o["kind"], o["metadata"]["name"]) for o in rendered(without(LLM, *unspell(path)), program)
                }
                assert (each.kind, each.name) not in names, path


def test_what_is_on_by_default_is_named_as_such(program):
    values = {
        "inferenceservice": without(LLM["inferenceservice"], "predictor", "model", "newStorageUri"),
        "platform": {"tokenweir": {"placement": "sidecar"}},
    }
    study = explaining.study("kserve-model", values, "qwen", "models", program)
    limits = [each for each in study.objects if each.kind == "EnvoyFilter"]
    assert limits
    assert all("platform.tokenweir.enabled" in each.by_default for each in limits)


def test_values_that_change_nothing_are_named(study):
    assert study.idle == ["replicaCount"]


@pytest.mark.thorough
def test_two_values_that_say_the_same_are_not_both_called_idle(program):
    values = {**FEW, "resources": {"requestGPU": 1, "limitGPU": 1}}
    study = explaining.study("kserve-general", values, "qwen", "models", program)
    assert study.idle == ["replicaCount", "resources.requestGPU"]
    assert "resources.limitGPU" in one(study, "InferenceService", "qwen-primary").shaped_by
    kept = values
    for path in study.idle:
        kept = without(kept, *unspell(path))
    assert rendered(kept, program) == rendered(values, program)


@pytest.mark.thorough
def test_what_a_value_keeps_away_is_named(program):
    values = {key: LLM[key] for key in ("inferenceservice", "exposeModel")} | {"tokenLimit": {"enabled": False}}
    study = explaining.study("kserve-general", values, "qwen", "models", program)
    there = {(each.kind, each.name) for each in study.objects}
    assert list(study.withheld) == ["tokenLimit.enabled"]
    for path, names in study.withheld.items():
        objects = rendered(without(values, *unspell(path)), program)
        more = [
            f"{o['kind']}/{o['metadata']['name']}"
            for o in objects
            if (o["kind"], o["metadata"]["name"]) not in there
        ]
        assert names == more
    assert any(name.startswith("EnvoyFilter/") for name in study.withheld["tokenLimit.enabled"])


def test_what_helm_means_as_text_is_read_as_text(program):
    values = {**LLM}
    values["inferenceservice"] = {
        **LLM["inferenceservice"],
        "annotations": {"a": "=", "b": "<<", "c": "2025-13-45"},
    }
    (primary, *_) = [o for o in rendered(values, program) if o["kind"] == "InferenceService"]
    found = primary["metadata"]["annotations"]
    assert {key: found[key] for key in "abc"} == {"a": "=", "b": "<<", "c": "2025-13-45"}


def test_a_value_without_which_the_chart_refuses_is_named_with_its_reason(program):
    values = {
        "inferenceservice": {
            "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://a/b"}}
        }
    }
    study = explaining.study("kserve-model", values, "iris", "models", program)
    assert "modelFormat.name is missing" in study.needed["inferenceservice.predictor.model.modelFormat.name"]


@pytest.mark.thorough
def test_values_beneath_are_in_effect_and_not_asked_after(program):
    below = {"exposeModel": {"enabled": True}, "platform": {"domain": "m.example.com"}}
    values = without(FEW, "exposeModel")
    study = explaining.study("kserve-general", values, "qwen", "models", program, below=below)
    published = one(study, "VirtualService", "qwen-predictor")
    assert published.because == ["exposeModel.enabled"]
    assert published.by_default == ["exposeModel.enabled"]
    assert not any(path.startswith("platform") for each in study.objects for path in each.shaped_by)


def test_values_that_the_chart_refuses_are_not_explained(program):
    with pytest.raises(HelmRefused, match="replicCount"):
        explaining.explain("kserve-model", {"replicCount": 1}, helm=program)


def test_the_number_of_values_that_are_tried_is_bounded(program):
    labels = {f"label-{number}": "x" for number in range(201)}
    with pytest.raises(OnboardingError, match="more than 200 values"):
        explaining.explain("kserve-model", {"inferenceservice": {"labels": labels}}, helm=program)


# What differs.


def test_objects_differ_by_what_they_are_and_say():
    old = [
        {"apiVersion": "v1", "kind": "A", "metadata": {"name": "x"}, "n": 1},
        {"apiVersion": "v1", "kind": "B", "metadata": {"name": "y"}},
    ]
    new = [
        {"apiVersion": "v1", "kind": "C", "metadata": {"name": "z", "namespace": "n"}},
        {"apiVersion": "v1", "kind": "A", "metadata": {"name": "x"}, "n": 2},
    ]
    found = comparing.compare(old, new)
    assert [(each.kind, each.name, each.change.value) for each in found] == [
        ("C", "z", "added"), ("A", "x", "changed"), ("B", "y", "removed"),
    ]  # fmt: skip
    assert [line for line in found[1].diff.splitlines() if line[0] in "+-"] == ["-n: 1", "+n: 2"]
    assert comparing.compare(old, old) == []


def test_the_same_name_in_another_namespace_is_another_object():
    here = [{"apiVersion": "v1", "kind": "A", "metadata": {"name": "x", "namespace": "a"}}]
    there = [{"apiVersion": "v1", "kind": "A", "metadata": {"name": "x", "namespace": "b"}}]
    assert [each.change.value for each in comparing.compare(here, there)] == ["added", "removed"]
