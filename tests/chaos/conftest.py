"""One seed for the whole run, printed and replayable; the figures at its end; plants that live as long as a module."""

import os
import secrets

import pytest
import pytest_asyncio

from .figures import Figures, lines_of
from .plant import PlantOptions, planted
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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def plant(tmp_path_factory):
    """Nothing of it is killed: for what needs no fault."""
    # What is measured is who gets in, not how long a busy machine takes to say so.
    settings = {"TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5"}
    async with planted(PlantOptions(settings=settings), tmp_path_factory.mktemp("plant")) as started:
        yield started
