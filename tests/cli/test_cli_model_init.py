"""`tokenweir model init`: by flags, and by answering."""

import io
import re
import shlex
import sys

import pytest
import yaml

from tests.charts.helm import tool

FLAGS = [
    "qwen", "--storage", "hf://Qwen/Qwen2.5-7B-Instruct", "--publish", "--audience", "llm", "--audience", "chat",
    "--max-replicas", "4", "--requests-per-sa", "100", "--tokens", "service_account:200000/day", "--canary-storage",
    "hf://Qwen/Qwen3-8B", "--primary-load", "80", "-n", "models",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, environment):
    monkeypatch.chdir(tmp_path)
    environment.setenv("TOKENWEIR_HELM", tool("helm"))
    return tmp_path


@pytest.fixture
def answer(run, monkeypatch):
    """Runs `model init` in a terminal, and answers."""

    def call(*lines, words=()):
        stdin = io.StringIO("".join(f"{line}\n" for line in lines))
        stdin.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stdin)
        return run("model", "init", *words)

    return call


def test_an_llm_with_gpu_canary_and_limits_in_one_line_that_then_is_valid(run, folder):
    done = run("model", "init", *FLAGS)
    assert done.code == 0
    assert done.out == "Wrote values.yaml: huggingface by the chart kserve-general.\n"
    values = yaml.safe_load((folder / "values.yaml").read_text())
    assert values["resources"] == {"requestCPU": 4, "requestMemory": "24Gi", "limitGPU": 1}
    assert values["exposeModel"]["jwtVerify"]["Audiences"] == ["llm", "chat"]
    assert values["primaryLoad"] == 80
    assert run("model", "validate", "values.yaml").code == 0
    rendered = run("model", "render", "values.yaml").out
    assert "name: qwen-canary" in rendered
    assert "namespace: models" in rendered


def test_what_is_said_to_come_next_works(run, folder):
    done = run("model", "init", *FLAGS)
    commands = re.findall(r"^  tokenweir (.+)$", done.err, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["validate", "explain"]
    for command in commands:
        assert run(*command.split()).code == 0


@pytest.mark.parametrize("name", ["a b/it's.yaml", "-x.yaml", "$(id).yaml"])
def test_what_comes_next_can_be_pasted_whatever_the_file_is_called(run, folder, name):
    (folder / "a b").mkdir()
    done = run("model", "init", *FLAGS, f"--output={name}")
    commands = [shlex.split(each) for each in re.findall(r"^  tokenweir (.+)$", done.err, re.MULTILINE)]
    assert all((folder / command[-1]).is_file() for command in commands)
    assert run(*commands[0]).code == 0
    (install,) = re.findall(r"^  (helm .+)$", done.err, re.MULTILINE)
    assert (folder / shlex.split(install)[-1]).is_file()


def test_a_helmrelease_is_named_after_the_model_and_is_valid(run, folder):
    done = run("model", "init", *FLAGS, "--helmrelease")
    assert "Wrote qwen.yaml" in done.out
    document = yaml.safe_load((folder / "qwen.yaml").read_text())
    assert (document["kind"], document["metadata"]) == ("HelmRelease", {"name": "qwen", "namespace": "models"})
    assert run("model", "validate", "qwen.yaml").code == 0
    assert run("model", "canary", "promote", "qwen.yaml").code == 0


def test_a_file_that_is_there_stays_without_force(run, folder):
    (folder / "values.yaml").write_text("mine: true\n")
    done = run("model", "init", *FLAGS)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "tokenweir: values.yaml is there already: --force replaces it"
    assert (folder / "values.yaml").read_text() == "mine: true\n"
    assert run("model", "init", *FLAGS, "--force").code == 0
    assert "qwen" in (folder / "values.yaml").read_text()


def test_the_file_goes_to_stdout_or_elsewhere_where_asked(run, folder):
    done = run("model", "init", *FLAGS, "-o", "-")
    assert yaml.safe_load(done.out)["primaryLoad"] == 80
    assert list(folder.iterdir()) == []
    run("model", "init", *FLAGS, "-o", "other.yaml")
    assert (folder / "other.yaml").read_text() == done.out
    assert run("model", "init", *FLAGS, "-o", "no/such.yaml").code == 2


def test_json_says_what_was_written_and_what_is_wrong_with_it(run):
    found = run(
        "model",
        "init",
        "iris",
        "--kind",
        "sklearn",
        "--storage",
        "s3://a/b",
        "--replicas",
        "5",
        "--max-replicas",
        "2",
        "--json",
    ).json
    assert (found["file"], found["chart"]) == ("values.yaml", "kserve-general")
    assert [(each["level"], each["path"]) for each in found["problems"]] == [
        ("error", "autoscaling.maxReplicaCount")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the model needs a name"),
        (["x"], "what kind of model is it"),
        (["x", "--storage", "Qwen/Qwen3"], "what kind of model is it"),
        (["x", "--kind", "vllm", "--storage", "Qwen/Qwen3"], "has no scheme: hf://Qwen/Qwen3"),
        (["X", "--storage", "hf://a/b"], "small letters"),
        (["x", "--storage", "hf://a/b", "--tokens", "5"], "a token limit is SCOPE:AMOUNT/WINDOW"),
        (["x", "--storage", "hf://a/b", "--chart", "redis"], "there is no chart 'redis'"),
        (["x", "--storage", "hf://a/b", "--chart", "kserve-model", "--canary-storage", "hf://a/c"], "needs the chart"),
        (["x", "--storage", "hf://a/b", "--memory", "much"], "'much' is no amount"),
    ],
)  # fmt: skip
def test_flags_that_make_no_sense_are_wrong_use_and_nothing_is_written(run, folder, words, message):
    done = run("model", "init", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert list(folder.iterdir()) == []


def test_questions_lead_to_the_same_file(run, answer, folder):
    answers = [
        "qwen", "models", "", "Qwen/Qwen2.5", "hf://Qwen/Qwen2.5-7B-Instruct", "", "", "", "", "four", "0", "4", "", "", "", "",
        "", "maybe", "y", "llm, chat", "100", "", "sa:5", "service_account:200000/day", "hf://Qwen/Qwen3-8B", "80",
    ]  # fmt: skip
    done = answer(*answers)
    assert done.code == 0
    asked = (folder / "values.yaml").read_text()
    assert "has no scheme: hf://Qwen/Qwen2.5" in done.err
    assert "'four' is no whole number" in done.err
    assert "0 is out of bounds: 1 to 1000" in done.err
    run("model", "init", *FLAGS, "--force")
    assert (folder / "values.yaml").read_text() == asked


def test_enter_is_enough_but_for_name_and_place(answer, folder):
    assert answer("iris", "", "3", "s3://models/iris", *[""] * 12).code == 0
    values = yaml.safe_load((folder / "values.yaml").read_text())
    assert values["inferenceservice"]["predictor"]["model"]["modelFormat"]["name"] == "sklearn"
    assert values["resources"] == {"requestCPU": 1, "requestMemory": "2Gi"}


def test_who_has_the_file_already_is_told_before_the_first_question(answer, folder):
    (folder / "values.yaml").write_text("mine: true\n")
    done = answer("qwen")
    assert (done.code, done.out, done.err) == (
        2,
        "",
        "tokenweir: values.yaml is there already: --force replaces it\n",
    )


def test_a_dash_is_none(answer, folder):
    assert answer("qwen", "", "vllm", "hf://a/b", "0", "-", "-", "", *[""] * 12).code == 0
    assert "resources" not in yaml.safe_load((folder / "values.yaml").read_text())


def test_who_stops_answering_gets_no_file(answer, folder):
    done = answer("qwen", "models")
    assert (done.code, done.out) == (2, "")
    assert "no more answers; nothing was written" in done.err
    assert list(folder.iterdir()) == []


def test_without_a_terminal_nothing_is_asked(process):
    done = process("model", "init", stdin="qwen\n")
    assert (done.code, done.out) == (2, "")
    assert done.err == "tokenweir: the model needs a name: tokenweir model init NAME --storage hf://org/model\n"
