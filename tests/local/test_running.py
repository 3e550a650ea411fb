"""What stacks on this machine know of each other, and what becomes of those that were killed."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import jwt
import msgspec
import pytest

from extproc.cli import main
from extproc.local import running, up
from extproc.local.errors import LocalError
from extproc.local.issuer import AUDIENCE, TokenIssuer
from extproc.local.process import Command, start
from extproc.local.up import UpOptions
from extproc.settings.load import load


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def stack(temporary):
    """Note a stack of this process, or of another one."""

    def make(name, pid=None, **note):
        folder = temporary / f"tokenweir-{name}"
        folder.mkdir()
        running.write_note(folder, **note)
        if pid is not None:
            path = folder / "stack.json"
            noted = msgspec.json.decode(path.read_bytes())
            path.write_bytes(msgspec.json.encode(noted | {"pid": pid}))
        return folder

    return make


def dead():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def test_a_note_is_for_its_user_alone(stack):
    folder = stack("a", issuer_key="secret")
    assert (folder / "stack.json").stat().st_mode & 0o077 == 0


def test_a_stack_runs_as_long_as_its_process(stack):
    stack("a", gateway="http://127.0.0.1:1")
    stack("b", pid=dead(), gateway="http://127.0.0.1:2")
    stack("c", pid=1, gateway="http://127.0.0.1:3")  # the id is another process's now
    assert [each.gateway for each in running.running_stacks()] == ["http://127.0.0.1:1"]


def test_what_a_killed_one_left_is_removed_with_its_processes_and_nothing_else_is(stack, temporary):
    mine = stack("mine")
    left = stack("left", pid=dead())
    other = temporary / "tokenweir-bench"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=left) as child:
        assert len(running.clean_up()) == 1
        assert child.wait(10) == -9
    assert sorted(path.name for path in temporary.iterdir()) == [other.name, mine.name]
    assert running.clean_up() == []


def test_who_has_a_port_is_named(stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert running.holder_of(port).endswith(f"process {os.getpid()}")
        stack("a", gateway=f"http://127.0.0.1:{port}")
        assert running.holder_of(port) == f"another `tokenweir local up`, process {os.getpid()}"


async def test_a_part_that_ends_is_named_with_its_last_lines_and_what_went_on_is_cancelled(tmp_path):
    async def at_once():
        return True

    command = Command("valkey", ("/bin/sh", "-c", "sleep 0.3; echo last words; exit 3"), tmp_path)
    child = await start(command, at_once)
    with pytest.raises(LocalError, match=r"the part valkey ended with status 3.*\nlast words"):
        await up._unless_a_part_ends(SimpleNamespace(children=[child]), asyncio.sleep(60))


async def test_work_that_ends_first_has_its_result(tmp_path):
    async def at_once():
        return True

    child = await start(Command("valkey", ("/bin/sleep", "60"), tmp_path), at_once)
    try:
        assert await up._unless_a_part_ends(SimpleNamespace(children=[child]), asyncio.sleep(0, "done")) == "done"
    finally:
        await child.stop()


# The settings file.


def options(config=None, **given):
    fields = dict.fromkeys(("upstream", "model", "redis", "mongo", "port")) | given
    return UpOptions(**fields, story=False, stay=False, workers=1, config=config)


def test_the_settings_file_applies_and_what_the_stack_decides_wins(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(
        "cost: {typical_output_tokens: 77}\nredis: {url: 'redis://127.0.0.1:7'}\n"
        "server: {tls: {certificate_file: /a, key_file: /b, client_ca_file: /c, allowed_sans: [x]}}\n"
    )
    asked = options(file)
    settings = up._checked(asked)
    with_stores = up._with_stores(asked, settings)
    assert (with_stores.redis, with_stores.mongo) == ("redis://127.0.0.1:7", None)
    variables = up._environment(with_stores, settings)
    whole = load(file, variables | {"TOKENWEIR_SERVER__ADDRESS": "127.0.0.1:1"})
    assert (whole.cost.typical_output_tokens, whole.server.tls.enabled) == (77, False)
    assert whole.reservation.decision_timeout_s == 0.5
    assert variables["TOKENWEIR_CONFIG"] == str(file)


def test_without_a_file_the_processor_gets_the_stacks_own_settings_alone():
    asked = options()
    assert up._environment(asked, up._checked(asked)).keys() == {
        "TOKENWEIR_COST__TYPICAL_OUTPUT_TOKENS",
        "TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S",
    }


# Tokens.


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokenweir", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_token_names_any_identity_and_is_of_the_stacks_issuer(run, stack):
    issuer = TokenIssuer()
    stack("a", gateway="http://127.0.0.1:8080", issuer_key=issuer.private_pem())
    code, out, err = run("local", "token", "sa@x", "--tenant", "tenant01", "--ttl", "60")
    assert (code, err) == (0, "")
    key = jwt.PyJWKSet.from_json(issuer.jwks_json()).keys[0]
    claims = jwt.decode(out.strip(), key, algorithms=["RS256"], audience=AUDIENCE, issuer=issuer.issuer)
    assert (claims["sub"], claims["tenant"], claims["exp"] - claims["iat"]) == ("sa@x", "tenant01", 60)


def test_which_stack_is_asked_for_is_told_by_its_port(run, stack):
    for port in (8080, 8081):
        stack(str(port), gateway=f"http://127.0.0.1:{port}", issuer_key=TokenIssuer().private_pem())
    code, out, err = run("local", "token", "sa")
    assert (code, out) == (2, "")
    assert "give --port, one of" in err
    assert run("local", "token", "sa", "--port", "8081")[0] == 0
    code, _, err = run("local", "token", "sa", "--port", "8082")
    assert code == 1
    assert err.startswith("tokenweir: no local stack of yours runs with its gateway on port 8082: start one with")


@pytest.mark.parametrize("arguments", [[""], ["sa", "--tenant", ""], ["a\nb"]])
def test_names_that_can_not_be_get_no_token(run, stack, arguments):
    code, out, _ = run("local", "token", *arguments)
    assert (code, out) == (2, "")
