"""`tokenweir local up`, as somebody types it: it tells the story, proves it, and leaves nothing behind.

What it refuses before it starts anything is in tests/local/test_up_refusals.py.
"""

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from extproc.local.ports import HOST, free_ports
from tests.sizes import sampled

from .marks import SYSTEM
from .upstreams import ANSWER, Upstream
from .waiting import until

pytestmark = [*SYSTEM, pytest.mark.timeout(300)]

MARK = "STACK_OF_A_TEST"
NEVER_S = 240.0  # for what hangs
LAST_LINES = r"\nEverything is stopped; nothing is left behind\.\nTo call the command again: \S.* --help\n\Z"


@dataclass
class Up:
    """One run of the command. Everything that it starts inherits a mark, by which it is found."""

    tmp: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    output: str = ""
    errors: str = ""
    code: int | None = None

    async def run(self, *arguments, interrupt_at=None, number=signal.SIGINT):
        """Runs it to its end; `interrupt_at`: sends a signal as soon as the output has that."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TOKENWEIR_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "extproc", "local", "up", *arguments,
            env=environment | {MARK: self.mark, "TMPDIR": str(self.tmp), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=self.tmp,
        )  # fmt: skip
        errors = asyncio.create_task(process.stderr.read())
        try:
            async with asyncio.timeout(NEVER_S):
                while piece := await process.stdout.read(4096):
                    self.output += piece.decode()
                    if interrupt_at is not None and interrupt_at in self.output:
                        interrupt_at = None
                        process.send_signal(number)
                self.errors = (await errors).decode()
                self.code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert interrupt_at is None, self.output
        return self

    async def left_nothing_behind(self):
        await until(lambda: not self.processes(), f"its children are gone: {self.processes()}")
        assert list(self.tmp.iterdir()) == []

    def processes(self):
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture
def up(tmp_path):
    return Up(tmp_path)


@pytest.fixture
def stores(stack):
    """The options with which the command uses stores that run already."""
    return "--redis", stack.redis, "--mongo", stack.mongo


def told(up):
    assert "Traceback" not in up.output + up.errors
    assert "  NO   " not in up.output, up.output
    return up.output


async def test_it_proves_that_every_token_is_counted_stays_and_leaves_nothing_behind(up):
    (port,) = free_ports(1)
    await up.run("--stay", "--port", str(port), interrupt_at="Ctrl-C ends it.")
    assert up.code == 0, up.output + up.errors
    output = told(up)
    charged, served = re.search(
        r"yes  ledger (\d+) tokens = (\d+) tokens that the model server counted itself", output
    ).groups()
    assert 300 < int(charged) == int(served) <= 400
    assert "yes  429, as it should be" in output
    assert output.count("tokens <= the limit of 400") == 1
    assert f"curl http://{HOST}:{port}/v1/chat/completions" in output
    assert re.search(LAST_LINES, output)
    assert up.errors == ""
    await up.left_nothing_behind()


MOMENTS = [
    ("  Tokenweir", signal.SIGTERM),
    ("Starting the stack", signal.SIGINT),
    ("  Envoy", signal.SIGINT),
    ("The same question", signal.SIGTERM),
]


@pytest.mark.parametrize(("moment", "number"), sampled(MOMENTS, 1))
async def test_interrupted_at_any_moment_it_leaves_nothing_behind(up, moment, number):
    await up.run("--exit", interrupt_at=moment, number=number)
    assert up.code == 130, up.output + up.errors
    assert "Interrupted; everything is stopped." in told(up)
    assert up.errors == ""
    await up.left_nothing_behind()


async def test_killed_it_takes_its_children_with_it(up, stack, stores):
    arguments = ("--stay", "--no-story", "--upstream", stack.upstream, *stores)
    await up.run(*arguments, interrupt_at="Ctrl-C ends it.", number=signal.SIGKILL)
    assert up.code == -signal.SIGKILL
    await until(lambda: not up.processes(), "its children are gone")


@pytest.mark.thorough
async def test_what_runs_already_is_used_and_nobodys_limits_are_touched(up, stack, records, stores):
    tenants = records.database["tenantLimitation"]
    before = await tenants.find().to_list()
    await up.run("--exit", "--upstream", f"{stack.upstream}/v1/", "--workers", "2", *stores)
    assert up.code == 0, up.output + up.errors
    for part in ("Valkey", "SecantusDB", "sample model server"):
        assert part not in told(up)
    assert re.search(r"yes  ledger \d+ tokens of plain calls = \d+ that the client was shown", up.output)
    assert await tenants.find().to_list() == before
    (name,) = re.findall(r"The limits of (demo-\w+) are deleted again", told(up))
    assert await records.database["sa_ip_usage_daily"].count_documents({"tenant_id": name}) == 1
    await up.left_nothing_behind()


@pytest.mark.thorough
async def test_a_server_that_reports_no_usage_is_told_of_and_is_no_failure(up, stores):
    async def without_usage(received, reply):
        if received.method == "GET":
            await reply.whole(b'{"data": [{"id": "toy"}]}')
        elif received.json.get("stream"):
            piece = ANSWER | {"choices": [{"index": 0, "delta": {"content": "Two."}}], "usage": None}
            await reply.stream([b"data: " + json.dumps(piece).encode() + b"\n\n"] * 3 + [b"data: [DONE]\n\n"])
        else:
            await reply.whole(json.dumps(ANSWER | {"usage": None}).encode())

    async with Upstream(script=without_usage).serving() as upstream:
        await up.run("--exit", "--upstream", upstream.url, *stores)
    assert up.code == 0, up.output + up.errors
    assert re.search(r"\d+ requests are estimated: no usage was reported for them", up.output)
