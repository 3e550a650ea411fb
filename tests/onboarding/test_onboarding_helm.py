"""Rendering with the user's helm, whatever it does."""

import os
import subprocess
import time

import pytest

from extproc.onboarding import charts, helm
from extproc.onboarding.errors import HelmMissing, HelmRefused, OnboardingError
from tests.charts.helm import HELMS, tool

MODEL = {
    "inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://a/b"}}}
}


def script(folder, text):
    path = folder / "helm"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("chart", charts.MODEL_CHARTS)
def test_both_charts_render_with_both_helms(program, chart):
    objects = helm.objects(helm.render(chart, MODEL, "iris", "models", tool(program)))
    names = {each["metadata"]["name"] for each in objects if each["kind"] == "InferenceService"}
    assert names == {"iris" if chart == "kserve-model" else "iris-primary"}


@pytest.mark.parametrize("program", HELMS)
def test_a_refusal_says_what_is_wrong_and_nothing_else(program):
    with pytest.raises(HelmRefused) as refused:
        helm.render("kserve-model", {"replicCount": 1}, helm=tool(program))
    assert "replicCount" in str(refused.value)
    assert "symbolic" not in str(refused.value)
    with pytest.raises(HelmRefused) as refused:
        helm.render(
            "kserve-model",
            {"inferenceservice": {"predictor": {"model": {"storageUri": "s3://a/b"}}}},
            helm=tool(program),
        )
    assert str(refused.value).startswith("inferenceservice.predictor.model.modelFormat.name is missing: say")


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("release", ["Bad_Name", "-h", "--debug", "x" * 60, ""])
def test_a_name_that_helm_refuses_is_told_in_one_line(program, release):
    with pytest.raises(HelmRefused, match="release name") as refused:
        helm.render("kserve-model", MODEL, release, helm=tool(program))
    assert str(refused.value).count("\n") == 0


def test_without_helm_it_is_said_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TOKENWEIR_HELM", raising=False)
    with pytest.raises(HelmMissing, match=r"install Helm .* --helm or TOKENWEIR_HELM"):
        helm.render("kserve-model", MODEL)


def test_a_program_that_is_none_is_missing(tmp_path):
    (tmp_path / "text").write_text("no program")
    for path, message in (
        (tmp_path / "nothing", "no such program"),
        (tmp_path / "text", "no program"),
        (tmp_path, "no program"),
    ):
        with pytest.raises(HelmMissing, match=message):
            helm.render("kserve-model", MODEL, helm=str(path))
    broken = tmp_path / "helm"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(HelmMissing, match="can't be run as helm"):
        helm.render("kserve-model", MODEL, helm=str(broken))


def test_the_option_wins_over_the_variable_and_that_over_path(monkeypatch, tmp_path):
    for name in ("option", "variable", "path"):
        (tmp_path / name).mkdir()
        script(tmp_path / name, f"echo 'kind: {name}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    monkeypatch.delenv("TOKENWEIR_HELM", raising=False)
    assert helm.render("kserve-model", MODEL) == "kind: path\n"
    monkeypatch.setenv("TOKENWEIR_HELM", str(tmp_path / "variable" / "helm"))
    assert helm.render("kserve-model", MODEL) == "kind: variable\n"
    assert helm.render("kserve-model", MODEL, helm=str(tmp_path / "option" / "helm")) == "kind: option\n"


def test_a_helm_that_hangs_is_ended_with_its_children(monkeypatch, tmp_path):
    monkeypatch.setattr(helm, "TIMEOUT_S", 2.0)
    pids = tmp_path / "pids"
    program = script(tmp_path, f"sleep 60 &\necho $$ $! >{pids}\nwait")
    with pytest.raises(HelmRefused, match="did not answer within 2 s"):
        helm.render("kserve-model", MODEL, helm=program)
    started = time.monotonic()
    while any(alive(pid) for pid in pids.read_text().split()):
        assert time.monotonic() - started < 60
        time.sleep(0.02)


def alive(pid):
    stat = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout
    return bool(stat) and not stat.startswith("Z")


def test_a_helm_that_fails_without_a_word_is_told_by_its_code(tmp_path):
    with pytest.raises(HelmRefused, match="failed: 7"):
        helm.render("kserve-model", MODEL, helm=script(tmp_path, "exit 7"))


@pytest.mark.parametrize(
    "said", ["echo 'a: [b: : :'", "printf 'a: \\001'", "echo text", "echo '- 1'", "true", "echo 'a: 1'"]
)
def test_what_gives_no_objects_is_no_helm(tmp_path, said):
    with pytest.raises(HelmMissing, match="it is not helm"):
        helm.render("kserve-model", MODEL, helm=script(tmp_path, said))


def test_a_helm_of_another_age_is_told(tmp_path):
    old = script(tmp_path, "echo \"Error: unknown shorthand flag: 'n' in -n\" >&2; exit 1")
    with pytest.raises(HelmMissing, match=r"unknown shorthand flag: 'n' in -n: it is no Helm 3\.17 or later"):
        helm.render("kserve-model", MODEL, helm=old)


def test_nothing_of_the_users_own_helm_takes_part(monkeypatch, tmp_path):
    monkeypatch.setenv("HELM_NAMESPACE", "elsewhere")
    monkeypatch.setenv("HELM_DEBUG", "true")
    monkeypatch.setenv("KUBECONFIG", "/somewhere")
    shown = helm.render(
        "kserve-model", MODEL, helm=script(tmp_path, "echo 'kind: x\nsaid: |'; env | sed 's/^/  /'")
    )
    assert "elsewhere" not in shown
    assert "HELM_DEBUG" not in shown
    assert "KUBECONFIG=/dev/null" in shown


def test_another_chart_is_none_of_ours():
    with pytest.raises(OnboardingError, match="there is no chart 'redis'"):
        helm.render("redis", MODEL)


def test_the_charts_are_found_and_have_schema_defaults_and_version():
    for chart in charts.MODEL_CHARTS:
        assert charts.chart_path(chart).is_dir()
        assert charts.schema(chart)["$schema"].endswith("draft-07/schema#")
        assert charts.defaults(chart)["replicaCount"] == 1
        assert charts.version(chart)[0].isdigit()
