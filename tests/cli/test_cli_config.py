import json
from pathlib import Path

import pytest
import yaml

from extproc.settings.load import load
from extproc.settings.model import Settings


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "tokenweir.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_valid_settings_are_said_to_be(run):
    assert run("config", "check").out == "The settings are valid.\n"
    assert run("config", "check", "--json").json == {"valid": True, "problems": []}


def test_every_problem_is_a_line_and_exit_code_2(run, file):
    path = file("server: {max_streams: 0}\nlog: {level: loud}\n")
    wanted = [
        "log.level: should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
        "server.max_streams: should be greater than or equal to 1",
    ]
    done = run("-c", path, "config", "check")
    assert (done.code, done.out) == (2, "")
    assert sorted(done.err.splitlines()) == [f"tokenweir: {line}" for line in wanted]
    done = run("-c", path, "config", "check", "--json")
    assert (done.code, done.err, done.json["valid"]) == (2, "", False)
    assert sorted(done.json["problems"]) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a mapping of sections"),
        ("a: [", "not valid YAML at line 2"),
        ("", None),
        ("redis: {urll: x}", "redis.urll: no such setting; see docs/settings.md"),
        ("redis: 5", "redis: must be a section"),
        ("server: {max_streams: [1]}", "server.max_streams: should be a valid integer"),
        ('"\\e[31m": 1', r"\x1b[31m: no such setting"),
    ],
)
def test_a_file_is_checked_and_what_is_wrong_is_a_line(run, file, text, message):
    done = run("--config", file(text), "config", "check")
    if message is None:
        assert done.code == 0
        return
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("path", ["/no/such/file", "/", "/\x1b[31m"])
def test_a_file_that_can_not_be_read_is_a_line(run, path):
    done = run("-c", path, "config", "check")
    assert (done.code, done.out) == (2, "")
    assert "can't be read: " in done.err
    assert "\x1b" not in done.err


def test_an_unknown_variable_is_a_line(run, environment):
    environment.setenv("TOKENWEIR_REDIS_URL", "x")
    done = run("config", "check")
    assert (done.code, done.err) == (2, "tokenweir: TOKENWEIR_REDIS_URL: no such setting; see docs/settings.md\n")


def test_the_file_can_be_named_by_a_variable_and_an_empty_one_names_none(run, file, environment):
    environment.setenv("TOKENWEIR_CONFIG", file("log: {level: ERROR}"))
    assert run("config", "show", "--json").json["log"] == {"level": "ERROR"}
    environment.setenv("TOKENWEIR_CONFIG", "")
    assert run("config", "show", "--json").json["log"] == {"level": "INFO"}


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_show_masks_the_password_and_nothing_else(run, environment, option):
    environment.setenv("TOKENWEIR_REDIS__URL", "redis://user:hunter2@redis:6379/0")
    environment.setenv("TOKENWEIR_MONGO__URL", "mongodb://u:hunter2@a:1,b:2/?replicaSet=rs0")
    done = run("config", "show", *option)
    shown = json.loads(done.out) if option else yaml.safe_load(done.out)
    assert "hunter2" not in done.out + done.err
    assert shown["redis"]["url"] == "redis://user:***@redis:6379/0"
    assert shown["mongo"]["url"] == "mongodb://u:***@a:1,b:2/?replicaSet=rs0"


def test_what_show_prints_is_a_settings_file(run, file):
    assert load(Path(file(run("config", "show").out)), {}) == Settings()
