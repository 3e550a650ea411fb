"""The form of a run, and what it says at its end: which tests were not run, and why.

Nothing that was skipped or left out counts as passed.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from .order import longest_first
from .sizes import choose_form, is_thorough

# Before anything imports grpc: its handlers crash some of the children that are started while it is in use. None of
# them uses gRPC before it is another program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Stacks of real processes, for any test that asks for one. They are started once in a worker.
pytest_plugins = ("tests.system.stacks",)

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run rare tests too, and all in full size")


def pytest_configure(config):
    choose_form(thorough=config.getoption("--thorough"))
    config.stash[LEFT_OUT] = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("loadscopereorder", default=True) is False:
        longest_first(items, Path(__file__).parent)
    if is_thorough():
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if not left_out:
        return
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    _note_left_out(config, len(left_out))
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take the number from a worker of pytest-xdist: the process that reports has collected nothing itself."""
    _note_left_out(node.config, getattr(node, "workeroutput", {}).get("left_out", 0))


def _note_left_out(config, number):
    config.stash[LEFT_OUT] = max(number, config.stash[LEFT_OUT])


def pytest_terminal_summary(terminalreporter, config):
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.section("not run")
    if not skipped:
        terminalreporter.write_line("nothing: every part was there")
    reasons = Counter(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    for reason, tests in reasons.most_common():
        terminalreporter.write_line(f"{tests} tests: {reason.removeprefix('Skipped: ')}")
    if not is_thorough():
        terminalreporter.write_line(f"{config.stash[LEFT_OUT]} thorough tests left out; `make test-all` runs them")
