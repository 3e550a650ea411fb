import json
import re
import signal
import subprocess
import sys
import time

import pytest
import typer

import extproc
from extproc.cli import app, values
from extproc.core.quota.policies import METERED
from extproc.local.ports import free_ports
from tests.sizes import sampled


def commands(command=None, path=()):
    """Every command and group, with the words that call it."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


PATHS = [path for path, _ in commands()]
LEAVES = [path for path, command in commands() if not hasattr(command, "commands")]
STORES = [
    ("tenant", "list"),
    ("tenant", "show", "t"),
    ("tenant", "set", "t", "--sa-limit", "1"),
    ("tenant", "delete", "t", "--yes"),
    ("tenant", "suspend", "t", "--reason", "r"),
    ("tenant", "resume", "t"),
    ("tenant", "top-up", "t", "--amount", "1", "--until", "+1h"),
    ("tenant", "cancel-top-up", "t", "sale"),
    ("tenant", "history", "t"),
    ("audit", "list"),
    ("audit", "show", "t:1"),
    ("export",),
    ("limit", "add", "t", "tenant:1/day"),
    ("tenant", "limit", "add", "t", "tenant:1/day"),
    ("tenant", "limit", "remove", "t", "tenant/day"),
    ("usage", "daily"),
    ("usage", "top"),
    ("usage", "entries"),
    ("usage", "export"),
    ("usage", "shadow"),
    ("explain", "t", "sa"),
    ("admin", "token", "issue", "--name", "ci", "--role", "viewer"),
    ("admin", "token", "list"),
    ("admin", "token", "revoke", "3f1c9a0b7d52e864"),
]
JOURNAL = [("ledger", "waiting"), ("ledger", "aside")]


def test_all_commands_are_known_here():
    assert [" ".join(path) for path in LEAVES] == [
        "serve", "apply", "export", "explain", "erase", "doctor", "simulate", "config check", "config show", "tenant apply",
        "tenant list", "tenant history", "tenant show", "tenant set", "tenant suspend", "tenant resume",
        "tenant top-up", "tenant cancel-top-up", "tenant delete", "tenant limit list", "tenant limit add", "tenant limit remove",
        "limit list", "limit add", "limit remove", "audit list", "audit show", "usage report", "usage top", "usage of",
        "usage month", "usage rebuild", "usage close", "usage daily", "usage entries", "usage export",
        "usage shadow", "usage closed list", "usage closed show", "usage closed verify", "request show",
        "request list",
        "ledger waiting", "ledger aside", "local up", "local token", "message-dumper serve", "admin serve",
        "admin openapi", "admin token issue", "admin token list", "admin token revoke", "model init", "model validate", "model render", "model explain", "model diff",
        "model ui", "model canary start", "model canary shift", "model canary promote", "model canary abort",
    ]  # fmt: skip


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_the_help_of_every_command_has_an_example_of_it(run, path):
    done = run(*path, "--help")
    assert (done.code, done.err) == (0, "")
    _, _, examples = done.out.partition("Example")
    assert f"tokenweir {path[0]}" in examples or f"tokenweir.yaml {path[0]}" in examples
    assert " ".join(path) in examples


def test_the_help_of_the_whole_has_an_example_and_the_exit_codes(run):
    done = run("-h")
    assert done.code == 0
    assert "Example: tokenweir" in done.out
    assert "Exit codes: 0 done, 1 a fault" in done.out


@pytest.mark.parametrize("path", [path for path in PATHS if path not in LEAVES], ids=" ".join)
def test_a_group_without_a_command_shows_its_commands(run, path):
    done = run(*path)
    assert done.code == 2
    assert "Commands" in done.out + done.err


def test_the_version_is_printed(run):
    assert run("--version").out == f"tokenweir {extproc.__version__}\n"


@pytest.mark.parametrize(
    ("path", "option"),
    sampled(
        [(path, "--nonsense") for path in PATHS]
        + [(path, option) for path in PATHS[::8] for option in ("--[/red]", "--\x1b[31m")],
        quick=20,
    ),
)
def test_an_unknown_option_is_exit_code_2(run, path, option):
    done = run(*path, option)
    assert (done.code, done.out) == (2, "")
    assert "No such option" in done.err


@pytest.mark.parametrize(
    "words", [["nonsense"], ["[/red]"], ["tenant", "[red]"], ["tenant", "show"], ["explain", "t"]]
)
def test_an_unknown_command_or_a_missing_argument_is_exit_code_2(run, words):
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert re.search("No such command|Missing argument", done.err)


@pytest.mark.parametrize("value", ["nonsense", "[/red]", ""])
def test_a_choice_that_is_none_is_exit_code_2_and_names_the_choices(run, value):
    done = run("usage", "top", "--by", value)
    assert (done.code, done.out) == (2, "")
    assert "'service-account', 'client-ip'" in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize("words", sampled(map(list, [*STORES, *JOURNAL]), quick=12), ids=" ".join)
def test_a_command_that_would_look_into_an_empty_store_of_its_own_refuses(run, environment, words):
    environment.setenv("TOKENWEIR_MONGO__URL", "memory://")
    environment.setenv("TOKENWEIR_REDIS__URL", "memory://")
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"tokenweir: \w+\.url: memory:// is inside the serving process.*\n", done.err)


# Stores that are down.


def fails_in_one_line(done, message):
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"tokenweir: {message}")
    assert done.err.count("\n") == 1
    assert "hunter2" not in done.err


@pytest.mark.system
def test_redis_down_is_one_line_and_exit_code_1(run, database, environment):
    (port,) = free_ports(1)
    environment.setenv("TOKENWEIR_REDIS__URL", f"redis://u:hunter2@127.0.0.1:{port}/0")
    started = time.monotonic()
    fails_in_one_line(run("explain", "t", "sa", "--json"), "Redis can't be reached: ")
    assert time.monotonic() - started < 25
    # What needs no Redis goes on.
    assert run("usage", "daily").code == 0


@pytest.mark.system
def test_a_redis_that_refuses_the_password_is_one_line_without_it(run, database, environment, stores):
    environment.setenv("TOKENWEIR_REDIS__URL", stores.redis.replace("redis://", "redis://u:hunter2@"))
    fails_in_one_line(run("explain", "t", "sa"), "Redis")


@pytest.mark.parametrize("words", sampled(map(list, STORES), quick=5), ids=" ".join)
def test_mongodb_down_is_one_line_and_exit_code_1(run, environment, words):
    (port,) = free_ports(1)
    environment.setenv("TOKENWEIR_MONGO__URL", f"mongodb://u:hunter2@127.0.0.1:{port}/?authSource=admin")
    environment.setenv("TOKENWEIR_MONGO__TIMEOUT_S", "0.3")
    started = time.monotonic()
    fails_in_one_line(run(*words), "MongoDB can't be reached: ")
    assert time.monotonic() - started < 25


def test_both_stores_down_ends_within_a_few_seconds_by_default(process):
    first, second = free_ports(2)
    variables = {
        "TOKENWEIR_REDIS__URL": f"redis://u:hunter2@127.0.0.1:{first}",
        "TOKENWEIR_MONGO__URL": f"mongodb://u:hunter2@127.0.0.1:{second}",
    }
    started = time.monotonic()
    fails_in_one_line(process("explain", "t", "sa", **variables), "")
    assert time.monotonic() - started < 25  # the drivers' own bounds add up to more than 30 s


def test_serve_with_both_stores_down_logs_json_lines_without_passwords_and_ends_on_sigterm(tmp_path, environment):
    first, second, *listen = free_ports(4)
    for name, value in {
        "REDIS__URL": f"redis://u:hunter2@127.0.0.1:{first}",
        "MONGO__URL": f"mongodb://u:hunter2@127.0.0.1:{second}",
        "SERVER__ADDRESS": f"127.0.0.1:{listen[0]}",
        "METRICS__ADDRESS": f"127.0.0.1:{listen[1]}",
    }.items():
        environment.setenv(f"TOKENWEIR_{name}", value)
    with subprocess.Popen(
        [sys.executable, "-m", "extproc", "serve"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as child:
        lines = [child.stderr.readline()]
        child.send_signal(signal.SIGTERM)
        lines += child.stderr.readlines()
        assert child.wait(30) == 0
    records = [json.loads(line) for line in lines]
    assert records[0]["message"] == "not ready: no requests are served yet"
    assert records[0]["error"].startswith("Redis can't be reached")
    assert records[-1]["message"] == "stopped"
    assert "hunter2" not in "".join(lines)


# As a process.


@pytest.mark.system
def test_as_a_process_output_exit_codes_and_messages_are_the_same(process, database):
    database.tenantLimitation.insert_one({"tenant_id": "t", "sa_limit": 5})
    table = process("tenant", "list")
    assert (table.code, table.rows[1]) == (0, ["t", "5", "-", "UTC", *"----", "1", "-", "deny", "-"])
    wrong = process("tenant", "set", "t", "--sa-limit", "-5")
    assert (wrong.code, wrong.out) == (2, "")
    assert (
        wrong.err
        == "tokenweir: --sa-limit must be a whole number of tokens (12000, 12k, 1.5M) or 'none', not '-5'\n"
    )


@pytest.mark.system
def test_a_name_that_the_encoding_of_the_output_can_not_show_is_written_out(process, database):
    database.tenantLimitation.insert_one({"tenant_id": "zoë", "sa_limit": 1})
    done = process("tenant", "list", PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert r"zo\xeb" in done.out


@pytest.mark.system
def test_arguments_that_are_no_text_are_wrong_use(process, database):
    done = process("usage", "daily", "--tenant", b"\xff")
    assert (done.code, done.err) == (2, "tokenweir: the tenant must be a printable name of 1 to 256 characters\n")
    done = process("-c", b"/\xff", "config", "check")
    assert (done.code, done.out) == (2, "")
    assert "can't be read" in done.err
    assert "Traceback" not in done.err


# What the library says of a value.


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["tenant", "set", "t", "--mode", "strikt"], "'soft', 'reserve', 'strict', 'shadow'"),
        (
            ["tenant", "limit", "add", "t", "tenant:1/day", "--unit", "strikt"],
            "'tokens', 'input_tokens', 'output_tokens', 'requests'",
        ),
        (["usage", "top", "--by", "strikt"], "'service-account', 'client-ip', 'tenant', 'model', 'endpoint'"),
    ],
)
def test_a_wrong_choice_is_told_with_the_option_and_the_values_and_no_words_of_the_library(run, words, values):
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    told = " ".join(done.err.replace("│", " ").split())
    assert f"Invalid value for '{words[-2]}': 'strikt' is not one of {values}." in told


@pytest.mark.parametrize("value", ["nonsense", "quota", ""])
@pytest.mark.parametrize(
    "words",
    [
        ["tenant", "limit", "add", "t", "tenant:1/day"],
        ["tenant", "limit", "remove", "t", "tenant/day"],
        ["tenant", "top-up", "t", "--amount", "1", "--until", "+1h"],
        ["explain", "t", "sa"],
    ],
    ids=" ".join,
)
def test_an_endpoint_that_no_limit_can_bind_is_refused_with_those_that_one_can(run, environment, words, value):
    environment.setenv("TOKENWEIR_REDIS__URL", "redis://127.0.0.1:1")
    done = run(*words, "--endpoint", value)
    kinds = ", ".join(METERED)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"tokenweir: --endpoint must be one of {kinds}, not {value!r}\n"


def test_the_endpoints_that_a_limit_can_bind_are_completed():
    assert values.endpoint_names() == [endpoint.value for endpoint in METERED]


@pytest.mark.parametrize(
    "path", [["tenant", "limit", "add"], ["tenant", "limit", "remove"], ["explain"]], ids=" ".join
)
def test_help_lists_the_endpoints(run, environment, path):
    environment.setenv("COLUMNS", "400")
    assert ", ".join(METERED) in run(*path, "--help").out


@pytest.mark.parametrize("field", ["sa_limit", "ip_limit", "ratelimitEachSAPerMinute", "ratelimitIPPerMinute"])
def test_help_of_set_names_the_fields_of_documents(run, environment, field):
    environment.setenv("COLUMNS", "300")
    assert field in run("tenant", "set", "--help").out


@pytest.mark.parametrize("path", [["set"], ["suspend"], ["top-up"], ["limit", "add"]], ids=" ".join)
def test_help_says_which_commands_create_a_tenant(run, path):
    assert "Creates the tenant if it does not exist" in run("tenant", *path, "--help").out
