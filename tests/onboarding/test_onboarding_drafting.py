"""Answers become a file that is valid, renders, and says what was answered."""

from dataclasses import fields

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.onboarding import charts, checking, drafting, files, helm, writing
from extproc.onboarding.checking import Level
from extproc.onboarding.drafting import LLMS, Answers, Kind
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.questions import KINDS, QUESTIONS
from tests.charts.helm import kinds, pick, tool

QWEN = Answers(
    name="qwen",
    namespace="models",
    storage="hf://Qwen/Qwen2.5-7B-Instruct",
    gpus=1,
    cpu="4",
    memory="24Gi",
    max_replicas=4,
    publish=True,
    audiences=("llm",),
    requests_per_sa=100,
    requests_per_ip=10,
    token_limits=("service_account:200000/day", "tenant:1_000_000/month:output_tokens"),
    canary_storage="hf://Qwen/Qwen3-8B",
    primary_load=75,
)


def values(answers):
    return yaml.safe_load(drafting.draft(answers))


def test_an_llm_with_gpu_canary_and_limits_from_one_call():
    text = drafting.draft(QWEN)
    (model,) = files.models(text, "values.yaml")
    assert (model.chart, model.told, model.release, model.namespace) == ("kserve-general", True, "qwen", "models")
    assert checking.problems(model.chart, model.values, "qwen", "models", elsewhere=True) == []
    objects = helm.objects(helm.render(model.chart, model.values, "qwen", "models", tool("helm")))
    (split,) = [d for d in objects if d["kind"] == "VirtualService" and d["metadata"]["name"] == "qwen-predictor"]
    weights = [
        route["weight"] for http in split["spec"]["http"] for route in http.get("route", ()) if "weight" in route
    ]
    assert sorted(set(weights)) == [25, 75]
    assert {"ScaledObject", "EnvoyFilter", "AuthorizationPolicy"} <= kinds(objects)
    for name in ("qwen-primary", "qwen-canary"):
        predictor = pick(objects, "InferenceService", name)["spec"]["predictor"]
        assert predictor["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "service_account:100/minute" in str(objects)
    assert "tenant:1000000/month:output_tokens" in str(objects)


def test_the_parts_of_a_limits_scope_may_have_any_order():
    limit = {"scope": "service_account+client_ip", "unit": "tokens", "window": "day", "amount": 5}
    assert drafting.token_limit("client_ip+service_account:5/day") == limit


def test_nothing_stands_in_the_file_that_was_not_asked_for():
    found = values(Answers(name="iris", kind=Kind.SKLEARN, storage="s3://models/iris"))
    assert found == {
        "replicaCount": 1,
        "inferenceservice": {
            "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/iris"}}
        },
    }


@pytest.mark.parametrize("chart", charts.MODEL_CHARTS)
@pytest.mark.parametrize("kind", Kind)
def test_every_kind_gives_a_file_that_both_charts_render(chart, kind):
    where = {"image": "registry.example.com/iris:v1"} if kind is Kind.IMAGE else {"storage": "s3://models/x"}
    answers = Answers(name="x", chart=chart, kind=kind, cpu="1", memory="2Gi", max_replicas=2, **where)
    (model,) = files.models(drafting.draft(answers), "f")
    problems = checking.problems(chart, model.values, "x", "default", elsewhere=True)
    assert [each for each in problems if each.level is Level.ERROR] == []
    assert "ScaledObject" in kinds(helm.objects(helm.render(chart, model.values, "x", "default", tool("helm"))))


def test_a_helmrelease_has_the_same_values_and_is_read_back():
    (model,) = files.models(drafting.draft_helmrelease(QWEN), "qwen.yaml")
    assert model.values == values(QWEN)
    assert (model.chart, model.release, model.namespace) == ("kserve-general", "qwen", "models")
    assert (model.helmrelease, model.partial, model.elsewhere) == (True, False, True)


def test_pods_to_scale_to_bring_a_target_along():
    assert values(QWEN)["autoscaling"] == {"maxReplicaCount": 4, "targetQueueDepth": 4}
    iris = Answers(name="iris", kind=Kind.SKLEARN, storage="s3://a/b", max_replicas=3)
    assert values(iris)["autoscaling"] == {"maxReplicaCount": 3, "targetCPUUtilizationPercentage": 80}
    rate = Answers(name="iris", kind=Kind.SKLEARN, storage="s3://a/b", max_replicas=3, target_rate=12.5)
    assert values(rate)["autoscaling"] == {"maxReplicaCount": 3, "targetRequestRate": 12.5}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"storage": "hf://a/b"}, Kind.HUGGINGFACE),
        ({"image": "a:v1"}, Kind.IMAGE),
        ({"storage": "hf://a/b", "kind": "vllm"}, Kind.VLLM),
    ],
)
def test_the_kind_follows_from_where_the_model_is(given, kind):
    assert drafting.answers_from({"name": "x", **given}).kind is kind


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the model needs a name"),
        ({"name": "x"}, "what kind of model is it"),
        ({"name": "x", "storage": "s3://a/b"}, "what kind of model is it"),
        ({"name": "x", "storage": "s3://a/b", "kind": "keras"}, "the kind is one of huggingface, .*, not 'keras'"),
        ({"name": "x", "stroage": "hf://a/b"}, "there is no answer 'stroage'"),
        ({"name": "X", "storage": "hf://a/b"}, "small letters"),
        ({"name": "7b", "storage": "hf://a/b"}, "a letter first"),
        ({"name": "x", "storage": "hf://a/b", "namespace": "a.b"}, "the namespace 'a.b'"),
        ({"name": "x", "storage": "a/b", "kind": "vllm"}, "has no scheme: hf://a/b"),
        ({"name": "x", "kind": "vllm"}, "where is the model"),
        ({"name": "x", "kind": "image"}, "which one"),
        ({"name": "x", "kind": "image", "image": "a b"}, "is no image"),
        ({"name": "x", "kind": "image", "image": "a:1", "storage": "hf://a/b"}, "brings its model"),
        ({"name": "x", "storage": "hf://a/b", "cpu": "lots"}, "'lots' is no amount"),
        ({"name": "x", "storage": "hf://a/b", "memory": "24 GB"}, "'24 GB' is no amount"),
        ({"name": "x", "storage": "hf://a/b", "token_limits": ["5/day"]}, "a token limit is SCOPE:AMOUNT/WINDOW"),
        ({"name": "x", "storage": "hf://a/b", "token_limits": ["sa:5/day"]}, "the scope is one of"),
        ({"name": "x", "storage": "hf://a/b", "token_limits": ["tenant:5/day:words"]}, "the unit is one of"),
        ({"name": "x", "storage": "hf://a/b", "canary_storage": "a"}, "has no scheme"),
        (
            {"name": "x", "storage": "hf://a/b", "canary_storage": "hf://a/c", "chart": "kserve-model"},
            "needs the chart",
        ),
        ({"name": "x", "storage": "hf://a/b", "target_gpu": 200}, "target gpu: 200 is out of bounds: 1 to 100"),
        ({"name": "x", "storage": "hf://a/b", "target_rate": 0.0}, "more than 0"),
        ({"name": "x", "storage": "hf://a/b", "target_queue": float("nan")}, "nan is out of bounds"),
        ({"name": "x", "storage": "hf://a/b", "requests_per_sa": 10**10}, "requests per sa: .* out of bounds"),
        ({"name": "x", "storage": "hf://a/b", "audiences": ["llm"]}, "publish the model too"),
        ({"name": "x", "storage": "hf://a/b", "primary_load": 50}, "and no canary"),
        ({"name": "x", "storage": "hf://a/b", "chart": "redis"}, "there is no chart 'redis'"),
    ],
)
def test_an_answer_that_makes_no_sense_is_told(given, message):
    with pytest.raises(OnboardingError, match=message):
        drafting.draft(drafting.answers_from(given))


def test_a_target_without_a_most_of_pods_stands_in_the_file():
    answers = Answers(name="x", storage="hf://a/b", gpus=1, target_gpu=70, target_rate=1234567.5)
    assert values(answers)["autoscaling"] == {"targetGPUUtilizationPercentage": 70, "targetRequestRate": 1234567.5}


def test_every_number_is_asked_again_in_the_bounds_of_its_value():
    for question in QUESTIONS:
        if question.type in {"integer", "number"}:
            with pytest.raises(OnboardingError, match="out of bounds"):
                drafting.check_number(question.name, -1)
            with pytest.raises(OnboardingError, match="out of bounds"):
                drafting.check_number(question.name, 10**10)


TEXT = st.text(alphabet="abzAZ019:/._-#'\"{}[],&*!%@` ", min_size=1, max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(audiences=st.lists(TEXT.filter(str.strip), min_size=1, max_size=3), uri=TEXT)
def test_whatever_is_answered_stands_in_the_file_as_it_is(audiences, uri):
    answers = Answers(
        name="x", kind=Kind.SKLEARN, storage=f"s3://models/{uri}", publish=True, audiences=tuple(audiences)
    )
    found = values(answers)
    assert found["exposeModel"]["jwtVerify"]["Audiences"] == audiences
    assert found["inferenceservice"]["predictor"]["model"]["storageUri"] == f"s3://models/{uri}"


# Questions.


def test_questions_are_the_fields_of_the_answers():
    asked = {question.name for question in QUESTIONS}
    assert asked | {"chart"} == {each.name for each in fields(Answers)}
    assert {name for question in QUESTIONS for name in question.only_if} <= asked
    assert set(KINDS) == set(Kind)


def test_a_question_is_asked_only_where_it_makes_sense():
    (queue,) = [each for each in QUESTIONS if each.name == "target_queue"]
    assert queue.is_asked({"kind": "vllm", "max_replicas": 3})
    assert not queue.is_asked({"kind": "sklearn", "max_replicas": 3})
    assert not queue.is_asked({"kind": "vllm", "max_replicas": None})


@pytest.mark.parametrize("kind", Kind)
def test_suggestions_alone_make_a_good_file(kind):
    answers = {"kind": kind.value, "name": "x", "storage": "hf://a/b", "image": "a:v1"}
    for question in QUESTIONS:
        if question.name not in answers and question.is_asked(answers):
            answers[question.name] = question.suggestion(answers)
    del answers["storage" if kind is Kind.IMAGE else "image"]
    (model,) = files.models(drafting.draft(drafting.answers_from(answers)), "f")
    assert checking.problems(model.chart, model.values, "x", "default", elsewhere=True) == []
    assert ("limitGPU" in model.values["resources"]) == (kind in LLMS)


# Files.


def test_a_file_is_replaced_whole_with_its_mode_and_through_links(tmp_path):
    real = tmp_path / "real.yaml"
    real.write_bytes(b"a: 1\r\n")
    real.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to("real.yaml")
    writing.replace(str(link), "a: 1\r\n", "a: 2\r\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"a: 2\r\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.yaml", "real.yaml"]


def test_what_somebody_changed_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "v.yaml"
    path.write_text("theirs")
    with pytest.raises(OnboardingError, match="somebody has changed it meanwhile"):
        writing.replace(str(path), "as it was", "ours")
    assert path.read_text() == "theirs"


def test_a_write_that_fails_leaves_the_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "v.yaml"
    path.write_text("a: 1")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OnboardingError, match="No space left"):
        writing.replace(str(path), "a: 1", "a: 2")
    assert path.read_text() == "a: 1"
    assert [each.name for each in tmp_path.iterdir()] == ["v.yaml"]


def test_a_file_that_is_there_is_only_replaced_by_force(tmp_path):
    path = tmp_path / "v.yaml"
    writing.create(str(path), "a: 1", force=False)
    with pytest.raises(OnboardingError, match="is there already: --force replaces it"):
        writing.create(str(path), "a: 2", force=False)
    assert path.read_text() == "a: 1"
    writing.create(str(path), "a: 2", force=True)
    assert path.read_text() == "a: 2"
    with pytest.raises(OnboardingError, match="can't be written: No such file"):
        writing.create(str(tmp_path / "no" / "v.yaml"), "a", force=True)
