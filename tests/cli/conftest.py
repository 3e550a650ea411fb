"""The command against real stores: called in this process where that is enough, and as a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pymongo
import pytest

from extproc.cli import main
from extproc.local import parts
from extproc.local.ports import free_ports
from extproc.stores.redis import RedisCounters, RedisOptions
from tests.missing import missing


@dataclass(frozen=True)
class Stores:
    redis: str
    mongo: str


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def rows(self):
        """The cells of a table's rows, its head first; no cell of ours has two spaces in it."""
        lines = [line.split("  ") for line in self.out.splitlines() if line.strip(" ─")]
        return [[cell.strip() for cell in line if cell.strip()] for line in lines]


async def _ready(redis):
    """Counters that a processor has rebuilt, from nothing."""
    counters = RedisCounters(RedisOptions(redis))
    for epoch in await counters.epochs():
        await counters.complete(epoch)
    await counters.aclose()


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    with asyncio.Runner() as runner:
        started = []
        try:
            redis_port, mongo_port = free_ports(2)
            started.append(runner.run(parts.start_valkey(folder, redis_port)))
            started.append(runner.run(parts.start_mongo_store(folder, mongo_port)))
            runner.run(_ready(started[0].url))
            yield Stores(*(part.url for part in started))
        except parts.MissingPartError as error:
            missing(str(error))
        finally:
            for part in started:
                os.killpg(part.process.pid, signal.SIGKILL)  # what it would write at a proper end is thrown away
                runner.run(part.process.stop())


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of the caller's settings."""
    for name in list(os.environ):
        if name.startswith("TOKENWEIR_"):
            monkeypatch.delenv(name)
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):  # rich would see a terminal where there is none
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def database(stores, environment):
    """A database of the test's own, which the command uses."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    environment.setenv("TOKENWEIR_REDIS__URL", stores.redis)
    environment.setenv("TOKENWEIR_MONGO__URL", stores.mongo)
    environment.setenv("TOKENWEIR_MONGO__DATABASE", name)
    with pymongo.MongoClient(stores.mongo) as client:
        yield client[name]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process: everything but the interpreter's start is as for a user."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["tokenweir", *args])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def process(tmp_path):
    """Runs `python -m extproc` as a process of its own, outside the checkout."""

    def call(*args, stdin="", **variables):
        done = subprocess.run(
            [sys.executable, "-m", "extproc", *args],
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
