"""A command loads what it needs: the list of all commands comes at once, and most commands need no store."""

import subprocess
import sys

import pytest
import typer

from extproc.cli import app
from extproc.cli.commands import PLACES, Commands
from tests.sizes import sampled

# What takes most of the time to load.
DRIVERS = {"pymongo", "redis", "grpc", "google.protobuf", "extproc.app"}


@pytest.mark.parametrize("name", PLACES)
def test_the_list_of_commands_describes_each_as_its_own_help_does(name):
    command = typer.main.get_command(app).commands[name]
    assert command.help.partition("\n\n")[0].replace("\n", " ") == PLACES[name].brief


def test_a_command_is_made_once_and_one_that_is_not_there_is_none():
    commands = Commands()
    assert list(commands) == list(PLACES)
    assert commands["limit"] is commands.get("limit") is dict(commands.items())["limit"]
    assert commands["limit"] in commands.values()
    assert commands.get("nonsense") is None
    with commands.described():
        assert commands["limit"].help == PLACES["limit"].brief
        assert commands.get("nonsense") is None
    assert list(commands["limit"].commands) == ["list", "add", "remove"]


@pytest.mark.parametrize(
    "words",
    sampled(
        [["--help"], ["--version"], ["model", "validate", "--help"], ["config", "check"], ["nonsense"]], quick=2
    ),
    ids=" ".join,
)
def test_a_command_without_a_store_loads_no_driver(environment, tmp_path, words):
    environment.setenv("TOKENWEIR_REDIS__URL", "memory://")
    environment.setenv("TOKENWEIR_MONGO__URL", "memory://")
    script = f"""
import sys
from extproc.cli import main
sys.argv = ["tokenweir", *{words}]
try:
    main()
finally:
    print(*({DRIVERS} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "", done.stderr
    assert done.returncode == (2 if words == ["nonsense"] else 0)
