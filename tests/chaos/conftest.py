"""One seed for the whole run, printed and replayable; the figures at its end; the plants."""

import os
import secrets

import pytest
import pytest_asyncio

from .figures import Figures, lines_of
from .gateway import gateway_to
from .plant import planted
from .plants import PLANTS
from .sizes import draw, seed


def pytest_configure():
    # Workers inherit it from the process that started them.
    os.environ.setdefault("SEED", str(secrets.randbelow(1_000_000)))


def pytest_report_header():
    return f"chaos seed: {seed()} (SEED={seed()} replays it)"


def pytest_terminal_summary(terminalreporter):
    reports = [report for found in terminalreporter.stats.values() for report in found]
    lines = lines_of(reports)
    if lines:
        terminalreporter.section(f"promises (SEED={seed()} replays this run)")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def figure(record_property):
    return Figures(record_property)


@pytest.fixture
def rng(request):
    """Randomness of this test alone, which other tests do not change."""
    source = draw(request.node.name)
    print(f"seed {seed()}: SEED={seed()} make chaos ONLY='{request.node.name}'")  # noqa: T201 - shown where it fails
    return source


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, one worker runs all files of a plant: each plant is started once."""
    from .by_plant import ByPlant

    return ByPlant(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def plant(request, tmp_path_factory):
    """The plant that the test's module names: see plants.py."""
    name = request.param
    async with planted(PLANTS[name], tmp_path_factory.mktemp(name)) as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(plant, tmp_path_factory):
    """The real Envoy before the plant."""
    async with gateway_to(plant, tmp_path_factory.mktemp("gateway")) as started:
        yield started
