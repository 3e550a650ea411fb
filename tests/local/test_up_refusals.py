"""`tokenweir local up` looks at what it is given before it starts anything: each mistake is one clear line."""

import os
import socket
import sys
import tempfile

import pytest

from extproc.cli import main
from extproc.local import up
from extproc.local.ports import HOST, free_ports
from extproc.settings.load import load


def soon(path=None, environment=None):
    """Load settings with which a MongoDB that is not there is given up after half a second, not after five."""
    return load(path, (environment or {}) | {"TOKENWEIR_MONGO__TIMEOUT_S": "0.5"})


NOBODY = f"{HOST}:{{nobody}}"


@pytest.fixture
def nobody():
    """A port that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Run the command in this process; return its exit code and the only line that it writes."""
    for name in [name for name in os.environ if name.startswith("TOKENWEIR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(up, "load", soon)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokenweir", "local", "up", "--exit", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert out == "", "something was started"
        (line,) = err.splitlines()
        assert line.startswith("tokenweir: ")
        assert list(tmp_path.iterdir()) == []
        return end.value.code, line

    return call


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--upstream", "ftp://x"], "--upstream"),
        (["--upstream", "localhost:8000"], "--upstream"),
        (["--upstream", "http://"], "--upstream"),
        (["--upstream", "http://localhost:99999"], "--upstream"),
        (["--upstream", "http://localhost:0"], "--upstream"),
        (["--upstream", "http://localhost:port"], "--upstream"),
        (["--upstream", "http://localhost/some/path"], "--upstream"),
        (["--upstream", "http://user:secret@localhost"], "--upstream"),
        (["--redis", "localhost:6379"], "redis"),
        (["--mongo", "http://localhost"], "mongo"),
        (["--mongo", "memory://"], "memory://"),
    ],
)
def test_wrong_use_is_one_clear_line(refusal, arguments, named):
    code, line = refusal(*arguments)
    assert code != 0
    assert named in line


@pytest.mark.parametrize(
    ("option", "url", "words"),
    [
        ("--redis", f"redis://{NOBODY}", "Redis can't be reached"),
        ("--mongo", f"mongodb://{NOBODY}", "MongoDB can't be reached"),
        ("--upstream", f"http://{NOBODY}", "does not answer"),
    ],
)
def test_a_part_that_is_not_there_is_named(refusal, nobody, option, url, words):
    code, line = refusal(option, url.format(nobody=nobody))
    assert code == 1
    assert words in line
    assert str(nobody) in line


def test_a_port_that_is_taken_is_named(refusal):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal("--port", str(port))
    assert code == 1
    assert "Address already in use" in line
    assert str(port) in line
