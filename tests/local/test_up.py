"""How the command is called after the demo, as the demo prints it."""

import sys

import pytest

from extproc.local.up import this_command


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Call a command that stands in .venv/bin of the current folder, from a folder of one's choice."""
    command = tmp_path / ".venv/bin/tokenweir"
    command.parent.mkdir(parents=True)
    command.touch(mode=0o755)

    def call(name, folder=tmp_path, path="/nowhere"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(name)])
        monkeypatch.setenv("PATH", str(path))
        return this_command()

    return call


@pytest.mark.parametrize("absolute", [True, False])
def test_a_command_that_is_not_on_the_path_is_called_by_its_path_from_here(called, tmp_path, absolute):
    name = ".venv/bin/tokenweir"
    assert called(tmp_path / name if absolute else name) == name


def test_a_command_outside_of_this_folder_is_called_by_its_whole_path(called, tmp_path):
    command = tmp_path / ".venv/bin/tokenweir"
    assert called(command, folder=tmp_path / "elsewhere") == str(command)


def test_a_command_on_the_path_is_called_by_its_name(called, tmp_path):
    folder = tmp_path / ".venv/bin"
    assert called(folder / "tokenweir", path=folder) == "tokenweir"
    assert called(".venv/bin/tokenweir", path=folder) == "tokenweir"


def test_a_module_is_called_as_one(called):
    assert called("/somewhere/extproc/__main__.py") == f"{sys.executable} -m extproc"
