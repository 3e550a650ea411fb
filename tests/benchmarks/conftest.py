import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from benchmarks.errors import CannotRunError
from benchmarks.forms import Phase, Step, request_bytes
from benchmarks.programs import compiled
from extproc.local.ports import free_ports
from tests.missing import missing


@pytest.fixture(scope="session")
def programs():
    try:
        return compiled()
    except CannotRunError as error:
        missing(str(error))


@pytest.fixture
def serving():
    """Start programs that listen on a port; all end with the test."""
    children = []

    @contextmanager
    def serve(program, *arguments):
        (port,) = free_ports(1)
        child = subprocess.Popen([program, str(port), *map(str, arguments)])
        children.append(child)
        wait_for(port)
        yield port

    yield serve
    for child in children:
        child.kill()
        child.wait()


def wait_for(port, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens on {port}")


@pytest.fixture
def load(programs, tmp_path):
    """Run the load generator on a port, and return its results."""

    def run(port, step, exact=None):
        request = tmp_path / "request"
        request.write_bytes(request_bytes(step, "token"))
        argv = [programs.load, port, request, step.connections, step.seconds, step.rate, step.chunks]
        done = subprocess.run([*map(str, argv), *([str(exact)] if exact else [])], capture_output=True, check=True)
        return json.loads(done.stdout)

    return run


PLAIN = Step(Phase.PEAK, 4, 0.1)
STREAM = Step(Phase.STREAM, 4, 0.05, chunks=5, chunk_rate=200)


@pytest.fixture
def as_before():
    """Leave this process on the cores, and with the variables, that it had."""
    cores, variables = os.sched_getaffinity(0), dict(os.environ)
    yield
    os.sched_setaffinity(0, cores)
    os.environ.clear()
    os.environ.update(variables)
