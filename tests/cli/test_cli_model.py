"""`tokenweir model` as a model owner uses it."""

import json
import os
import subprocess

import pytest
import yaml

from tests.charts.helm import CHARTS, tool
from tests.sizes import sampled

QWEN = """\
# Values of the model qwen (namespace models) for the chart kserve-general.
replicaCount: 1
resources: {requestCPU: 4, requestMemory: 24Gi, limitGPU: 1}
inferenceservice:
  predictor:
    model:
      modelFormat:
        name: huggingface
      storageUri: hf://Qwen/Qwen2.5-7B-Instruct # the present one
autoscaling:
  maxReplicaCount: 3
  targetQueueDepth: 4
exposeModel:
  enabled: true
  jwtVerify: {Audiences: [llm]}
ratelimitEachSAPerMinute: 100
"""
PLATFORM = "platform: {domain: models.example.org, jwt: {issuers: [{issuer: https://login.example.org}]}}\n"
RELEASE = """\
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata: {name: iris, namespace: models}
spec:
  chart: {spec: {chart: ./charts/kserve-general}}
  values:
    inferenceservice:
      predictor:
        model: {modelFormat: {name: sklearn}, storageUri: s3://models/iris}
"""
PATCH = """\
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata: {name: iris, namespace: models}
spec:
  values:
    primaryLoad: 50
    inferenceservice: {predictor: {model: {newStorageUri: s3://models/iris-2}}}
"""
NEW = "inferenceservice.predictor.model.newStorageUri"


@pytest.fixture(autouse=True)
def program(environment):
    """Helm as a user has it; its absence fails in CI."""
    environment.setenv("TOKENWEIR_HELM", tool("helm"))
    return tool("helm")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, text):
        (tmp_path / name).write_text(text)
        return name

    return put


@pytest.fixture
def qwen(write):
    return write("values.yaml", QWEN)


@pytest.fixture
def platform(write):
    return write("platform.yaml", PLATFORM)


def git(*words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def objects(text):
    return {(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(text) if each}


# validate


def test_a_good_file_is_valid_and_was_rendered(run, qwen, platform):
    done = run("model", "validate", qwen, "--base", platform)
    assert (done.code, done.err) == (0, "")
    assert done.out == "values.yaml: qwen valid (chart kserve-general, rendered)\n"


def test_a_warning_does_not_fail_unless_strict(run, qwen):
    done = run("model", "validate", qwen)
    assert done.code == 0
    assert "values.yaml: warning: platform.jwt.issuers: " in done.out
    assert "valid (chart kserve-general, rendered, 1 warning)" in done.out
    done = run("model", "validate", qwen, "--strict")
    assert done.code == 1
    assert "qwen invalid" in done.out


def test_an_error_has_its_line_and_what_helps(run, write):
    file = write(
        "values.yaml", QWEN.replace("maxReplicaCount: 3", "maxReplicas: 3\n  targetGPUUtilizationPercentage: 75%")
    )
    done = run("model", "validate", file)
    assert done.code == 1
    assert (
        "values.yaml:11: error: autoscaling.maxReplicas: there is no such value (did you mean autoscaling.maxReplicaCount?)"
        in done.out
    )
    assert "values.yaml:12: error: autoscaling.targetGPUUtilizationPercentage: " in done.out


def test_several_files_are_all_checked_and_json_says_all(run, qwen, platform, write):
    bad = write("bad.yaml", RELEASE.replace("s3://models/iris", "models/iris"))
    done = run("model", "validate", qwen, bad, "missing.yaml", "-b", platform, "--json")
    assert done.code == 2
    assert [(each["file"], each["valid"], each["rendered"]) for each in done.json] == [
        ("values.yaml", True, True), ("bad.yaml", False, False), ("missing.yaml", False, False),
    ]  # fmt: skip
    (problem,) = done.json[1]["problems"]
    assert problem == {
        "level": "error",
        "path": "inferenceservice.predictor.model.storageUri",
        "line": 9,
        "message": "'models/iris' has no scheme",
        "fix": "hf://models/iris, if it is on Hugging Face",
    }
    assert (done.json[1]["release"], done.json[1]["chart"]) == ("iris", "kserve-general")
    assert done.json[2]["problems"][0]["message"] == "can't be read: No such file or directory"
    assert run("model", "validate", qwen, bad, "-b", platform, "--json").code == 1


def test_what_only_the_chart_refuses_is_an_error_too(run, write):
    file = write("values.yaml", QWEN + "logger: {enabled: true}\nplatform: {messageDumper: null}\n")
    done = run("model", "validate", file, "--json")
    assert done.code == 1
    (error,) = [each for each in done.json[0]["problems"] if each["level"] == "error"]
    assert error["message"].startswith("logger.enabled is true, but neither")


def test_without_helm_the_rest_is_checked(run, qwen, platform, environment, tmp_path):
    environment.delenv("TOKENWEIR_HELM")
    environment.setenv("PATH", str(tmp_path))
    done = run("model", "validate", qwen, "-b", platform)
    assert done.code == 0
    assert done.out == "values.yaml: qwen valid (chart kserve-general)\n"
    assert done.err.startswith("Not rendered: helm is needed to render, and there is none: install Helm")
    assert run("model", "validate", qwen, "--helm", "/nowhere").code == 1
    assert run("model", "validate", qwen, "--no-render", "-b", platform).err == ""


def test_what_flux_fills_in_is_a_warning_and_not_rendered(run, write):
    file = write("flux.yaml", QWEN + "ratelimitIPPerMinute: ${LIMIT}\n")
    done = run("model", "validate", file)
    assert done.code == 0
    assert "ratelimitIPPerMinute: ${LIMIT} is filled in later" in done.out
    assert "rendered" not in done.out
    assert done.err == f"Not rendered: {file}: the chart refuses what Flux has yet to fill in\n"


def test_a_patch_is_checked_as_far_as_it_goes_and_whole_on_its_base(run, write):
    base, patch = write("base.yaml", RELEASE), write("patch.yaml", PATCH)
    done = run("model", "validate", patch)
    assert (done.code, done.out) == (0, "patch.yaml: iris valid (chart kserve-general)\n")
    assert run("model", "validate", patch, "--base", base).out.endswith("valid (chart kserve-general, rendered)\n")
    # The platform's values alone are no base of a patch.
    platform = write("platform.yaml", PLATFORM)
    assert (
        run("model", "validate", patch, "--base", platform).out
        == "patch.yaml: iris valid (chart kserve-general)\n"
    )
    both = run("model", "validate", patch, "--base", platform, "--base", base)
    assert both.out.endswith("valid (chart kserve-general, rendered)\n")
    worse = write("worse.yaml", PATCH.replace("iris-2", "iris"))
    assert "the canary's model is the primary's" in run("model", "validate", worse, "--base", base).out


def test_what_a_base_gets_from_elsewhere_is_not_missed(run, write):
    published = RELEASE.replace(
        "  values:\n", "  valuesFrom: [{kind: ConfigMap, name: p}]\n  values:\n    exposeModel: {enabled: true}\n"
    )
    base, patch = write("base.yaml", published), write("patch.yaml", PATCH)
    assert run("model", "validate", base, "--strict").code == 0
    assert run("model", "validate", patch, "--base", base, "--strict").code == 0


def test_every_release_of_a_file_is_checked(run, write):
    file = write("two.yaml", RELEASE + "---\n" + RELEASE.replace("iris", "wine").replace("sklearn", "''"))
    done = run("model", "validate", file)
    assert done.code == 1
    assert "two.yaml: iris valid" in done.out
    assert "two.yaml: wine invalid" in done.out
    assert run("model", "validate", file, "--release", "iris").code == 0
    assert run("model", "validate", file, "--release", "beer").code == 2


@pytest.mark.parametrize("path", sorted(CHARTS.glob("kserve-*/ci/slide-*.yaml")), ids=lambda path: path.stem)
def test_the_talks_values_are_known_and_what_a_fragment_lacks_is_said(run, path):
    done = run("model", "validate", str(path), "--chart", path.parents[1].name, "--json")
    errors = [each["message"] for each in done.json[0]["problems"] if each["level"] == "error"]
    expected = ("no model is named", "a target for GPUs, and the model has none")
    assert all(message.startswith(expected) for message in errors)
    assert done.code == (1 if errors else 0)


def test_the_slides_scaling_on_gpus_without_one_is_an_error(run, write):
    slide = "replicaCount: 1\nautoscaling:\n   maxReplicaCount: 10\n   targetGPUUtilizationPercentage: 75\n"
    done = run("model", "validate", write("slide.yaml", slide))
    assert done.code == 1
    assert "slide.yaml:4: error: autoscaling.targetGPUUtilizationPercentage: a target for GPUs" in done.out


def test_stdin_is_a_file_too(process, run, program):
    done = process("model", "validate", "-", "--json", stdin=QWEN, TOKENWEIR_HELM=program)
    assert (done.code, done.json[0]["file"], done.json[0]["valid"]) == (0, "-", True)
    assert "give '-' once" in run("model", "validate", "-", "-").err
    assert "give '-' once" in run("model", "render", "-", "--base", "-").err


# render


def test_a_file_is_rendered_as_helm_would_install_it(run, qwen, platform, tmp_path):
    done = run("model", "render", qwen, "-b", platform)
    assert (done.code, done.err) == (0, "")
    assert ("InferenceService", "qwen-primary") in objects(done.out)
    assert "qwen-predictor-models.models.example.org" in done.out
    found = {
        (each["kind"], each["metadata"]["name"])
        for each in run("model", "render", qwen, "-b", platform, "--json").json
    }
    assert found == objects(done.out)
    assert run("model", "render", qwen, "-b", platform, "-o", "out.yaml").out == ""
    assert (tmp_path / "out.yaml").read_text() == done.out
    assert run("model", "render", qwen, "-o", "no/out.yaml").code == 2


def test_options_win_over_what_the_file_says(run, qwen):
    done = run("model", "render", qwen, "--release", "other", "-n", "elsewhere", "--chart", "kserve-model")
    assert ("InferenceService", "other") in objects(done.out)
    assert {each["metadata"]["namespace"] for each in yaml.safe_load_all(done.out)} >= {"elsewhere"}


def test_a_patch_is_rendered_on_its_base(run, write):
    base, patch = write("base.yaml", RELEASE), write("patch.yaml", PATCH)
    done = run("model", "render", patch, "--base", base)
    assert {("InferenceService", "iris-primary"), ("InferenceService", "iris-canary")} <= objects(done.out)


def test_what_the_chart_refuses_is_exit_code_2_and_no_helm_1(run, write, qwen):
    done = run("model", "render", write("bad.yaml", "replicCount: 1"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tokenweir: ")
    assert "replicCount" in done.err
    done = run("model", "render", qwen, "--helm", "/nowhere/helm")
    assert (done.code, done.out) == (1, "")
    assert done.err == "tokenweir: /nowhere/helm: there is no such program to run as helm\n"


# explain


def test_explain_names_each_object_and_the_values_that_it_is_there_for(run, qwen, platform):
    done = run("model", "explain", qwen, "-b", platform)
    assert done.code == 0
    assert "InferenceService/qwen-primary: there whatever this file says\n" in done.out
    assert "VirtualService/qwen-predictor: for exposeModel.enabled\n" in done.out
    assert "ScaledObject/qwen-primary-scale: for autoscaling.targetQueueDepth\n" in done.out
    assert "    shaped by exposeModel.jwtVerify.Audiences" in done.out
    assert "Nothing changes without: replicaCount" in done.err


@pytest.mark.thorough
def test_explain_says_the_same_as_json(run, qwen, platform):
    found = run("model", "explain", qwen, "-b", platform, "--json").json
    (route,) = [
        each for each in found["objects"] if each["name"] == "qwen-predictor" and each["kind"] == "VirtualService"
    ]
    assert route["because"] == ["exposeModel.enabled"]
    assert "replicaCount" in found["idle"]


# diff


def test_diff_shows_the_objects_that_differ(run, qwen, write):
    new = write("new.yaml", QWEN.replace("maxReplicaCount: 3", "maxReplicaCount: 5") + "primaryLoad: 90\n")
    done = run("model", "diff", qwen, new)
    assert (done.code, done.err) == (0, "1 changed\n")
    assert done.out.splitlines()[0] == "ScaledObject/qwen-primary-scale: changed"
    assert "    +  maxReplicaCount: 5" in done.out
    assert run("model", "diff", qwen, new, "--exit-code").code == 1
    (found,) = run("model", "diff", qwen, new, "--json").json
    assert (found["kind"], found["name"], found["change"]) == ("ScaledObject", "qwen-primary-scale", "changed")
    same = run("model", "diff", qwen, qwen, "--exit-code")
    assert (same.code, same.out, same.err) == (0, "", "No object differs.\n")


def test_diff_against_a_revision_shows_what_a_change_does(run, qwen, tmp_path):
    git("init", "-q", ".")
    git("add", ".")
    git("commit", "-qm", "first")
    run("model", "canary", "start", qwen, "--storage", "hf://Qwen/Qwen3-8B")
    found = run("model", "diff", qwen, "--against", "HEAD", "--json").json
    assert {(each["name"], each["change"]) for each in found} >= {
        ("qwen-canary", "added"),
        ("qwen-predictor", "changed"),
    }
    done = run("model", "diff", qwen, "--against", "nonsense")
    assert (done.code, done.out) == (2, "")
    assert "values.yaml at nonsense: " in done.err
    (tmp_path / "x:.").mkdir()  # `git show --output=x:./values.yaml` would write there
    assert run("model", "diff", qwen, "--against", "--output=x").code == 2
    assert list((tmp_path / "x:.").iterdir()) == []
    assert run("model", "diff", qwen).code == 2
    assert run("model", "diff", qwen, qwen, "--against", "HEAD").code == 2


# canary


def test_a_canary_goes_from_start_to_promotion_and_every_comment_stays(run, qwen, tmp_path):
    started = run("model", "canary", "start", qwen, "--storage", "hf://Qwen/Qwen3-8B", "--primary-load", "90")
    assert started.code == 0
    assert "+      newStorageUri: hf://Qwen/Qwen3-8B" in started.out
    assert "values.yaml is edited. Nothing is applied" in started.err
    rendered = run("model", "render", qwen).out
    assert ("InferenceService", "qwen-canary") in objects(rendered)
    assert "weight: 90" in rendered
    shifted = run("model", "canary", "shift", qwen, "--primary-load", "25", "--json").json
    assert shifted == {
        "file": "values.yaml", "changed": True, "written": True, "primary_load": 25, "canary": {NEW: "hf://Qwen/Qwen3-8B"},
    }  # fmt: skip
    assert run("model", "canary", "promote", qwen).code == 0
    text = (tmp_path / "values.yaml").read_text()
    assert text == QWEN.replace("Qwen2.5-7B-Instruct", "Qwen3-8B").replace(
        "inferenceservice:", "primaryLoad: 100\ninferenceservice:"
    )
    assert run("model", "validate", qwen).code == 0


def test_abort_ends_a_canary(run, qwen, tmp_path):
    run("model", "canary", "start", qwen, "--image", "vllm/vllm-openai:v2")
    assert run("model", "canary", "abort", qwen, "--json").json["canary"] == {}
    assert "vllm-openai" not in (tmp_path / "values.yaml").read_text()


def test_a_dry_run_writes_nothing(run, qwen, tmp_path):
    done = run("model", "canary", "start", qwen, "--storage", "hf://a/b", "--dry-run")
    assert "+      newStorageUri: hf://a/b" in done.out
    assert done.err == "Nothing was written: --dry-run.\n"
    assert (
        run("model", "canary", "start", qwen, "--storage", "hf://a/b", "--dry-run", "--json").json["written"]
        is False
    )
    assert (tmp_path / "values.yaml").read_text() == QWEN


def test_the_same_load_again_changes_nothing(run, qwen, tmp_path):
    run("model", "canary", "start", qwen, "--storage", "hf://a/b", "--primary-load", "50")
    before = (tmp_path / "values.yaml").stat().st_mtime_ns
    done = run("model", "canary", "shift", qwen, "--primary-load", "50")
    assert (done.code, done.out, done.err) == (0, "", "Nothing to change: it says so already.\n")
    assert (tmp_path / "values.yaml").stat().st_mtime_ns == before


def test_a_canary_of_one_release_of_several(run, write, tmp_path):
    file = write("two.yaml", RELEASE + "---\n" + RELEASE.replace("iris", "wine"))
    assert run("model", "canary", "start", file, "--storage", "s3://models/wine-2").code == 2
    done = run("model", "canary", "start", file, "--storage", "s3://models/wine-2", "--release", "wine", "--json")
    assert done.json["canary"] == {NEW: "s3://models/wine-2"}
    assert (tmp_path / "two.yaml").read_text().startswith(RELEASE)


def test_a_canary_through_a_pipe(process):
    done = process("model", "canary", "start", "-", "--storage", "hf://a/b", stdin=QWEN)
    assert done.code == 0
    assert yaml.safe_load(done.out)["inferenceservice"]["predictor"]["model"]["newStorageUri"] == "hf://a/b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "values.yaml"], "no canary runs: start one first"),
        (["abort", "values.yaml"], "no canary runs"),
        (["shift", "values.yaml", "--primary-load", "5"], "no canary runs"),
        (["start", "values.yaml"], "what should the canary be"),
        (["start", "values.yaml", "--storage", "hf://a/b", "--primary-load", "101"], "0 to 100, not 101"),
        (["start", "values.yaml", "--storage", "a/b"], "has no scheme: hf://a/b"),
        (["start", "missing.yaml", "--storage", "hf://a/b"], "missing.yaml: can't be read: No such file"),
        (["start", "values.yaml", "--storage", "hf://a/b", "--chart", "redis"], "there is no chart 'redis'"),
        (
            ["start", "values.yaml", "--storage", "hf://a/b", "--chart", "kserve-model"],
            "needs the chart kserve-general",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_canary_that_makes_no_sense_is_wrong_use_and_writes_nothing(run, qwen, tmp_path, words, message):
    done = run("model", "canary", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert (tmp_path / "values.yaml").read_text() == QWEN


def test_a_second_start_is_refused(run, qwen):
    run("model", "canary", "start", qwen, "--storage", "hf://a/b")
    done = run("model", "canary", "start", qwen, "--storage", "hf://a/c")
    assert done.code == 2
    assert "a canary runs already" in done.err


# What may be wrong with any file.

BROKEN = {
    "a tab": "a:\n\tb: 1",
    "a key twice": "replicaCount: 1\nreplicaCount: 2",
    "no map": "[1]",
    "empty": "",
    "a bomb": "l0: &l0 [a]\n" + "".join(f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "deep": "a: " + "[" * 300_000,
    "itself": "a: &a [*a]",
    "binary": "a: \0",
    "large": "a: " + "x" * 600_000,
    "another kind": "apiVersion: v1\nkind: Pod",
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize(
    "command", [["validate"], ["render"], ["explain"], ["diff", "good.yaml"], ["canary", "promote"]], ids=" ".join
)
def test_a_file_that_can_not_be_used_is_one_line_and_exit_code_2(run, write, command, what):
    write("good.yaml", QWEN)
    done = run("model", *command, write("broken.yaml", BROKEN[what]))
    assert done.code == 2
    said = done.err + done.out
    assert "broken.yaml: " in said
    assert "Traceback" not in said
    assert said.count("\n") <= 1


@pytest.mark.parametrize("command", [["validate"], ["render"], ["explain"], ["canary", "abort"]], ids=" ".join)
@pytest.mark.parametrize("file", ["missing.yaml", ".", "no/such.yaml", "x" * 300])
def test_a_file_that_is_not_there_is_exit_code_2(run, write, command, file):
    done = run("model", *command, file)
    assert done.code == 2
    assert "can't be read" in done.err + done.out


def test_a_helm_that_hangs_ends_the_command(run, qwen, tmp_path, monkeypatch):
    path = tmp_path / "helm"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    monkeypatch.setattr("extproc.onboarding.helm.TIMEOUT_S", 0.2)
    done = run("model", "render", qwen, "--helm", str(path))
    assert (done.code, done.out) == (2, "")
    assert "did not answer within 0.2 s" in done.err


@pytest.mark.parametrize(
    "words",
    sampled([["validate", "values.yaml", "--json"], ["init", "x", "--storage", "hf://a/b"]], 1),
    ids=" ".join,
)
def test_without_the_extra_it_is_said_what_to_install(process, tmp_path, words):
    """A Python that can't import jsonschema, as an installation without the extra."""
    (tmp_path / "values.yaml").write_text(QWEN) if words[0] == "validate" else None
    (tmp_path / "jsonschema.py").write_text("raise ModuleNotFoundError(name='jsonschema')")
    root = os.fspath(CHARTS.parent)
    done = process("model", *words, PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
    assert "pip install 'tokenweir[models]'" in done.err
    assert done.code == (1 if words[0] == "validate" else 0)
    assert "Traceback" not in done.err


def test_values_that_a_terminal_would_act_on_are_written_out(run, write):
    file = write("values.yaml", QWEN + json.dumps("\x1b[31m").strip() + ": 1\n")
    done = run("model", "validate", file)
    assert "\x1b" not in done.out
    assert r"\x1b[31m" in done.out
