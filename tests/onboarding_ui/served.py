"""The form as its users start it: a process of its own, and the address that it prints."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.missing import missing

ROOT = Path(__file__).parents[2]
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


def part(name: str, found: str | None, how: str) -> str:
    """A program's path. Missing: a failure in CI, elsewhere a skip that says how to get it."""
    if found is None:
        missing(f"{name} is missing: {how}")
    return found


def helm() -> str:
    own = ROOT / ".cache" / "tools" / "helm"
    return part("helm", str(own) if own.exists() else shutil.which("helm"), "python tests/charts/fetch_tools.py")


def git() -> str:
    return part("git", shutil.which("git"), "install git")


def until(condition, deadline_s=30.0):
    """Wait for the condition."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s} s"
        time.sleep(0.02)


class SlowHelm:
    """A program in the place of helm: each run waits until it may go on. It writes when it begins and when it ends."""

    def __init__(self, folder: Path) -> None:
        self._log, self._go = folder / "log", folder / "go"
        program = folder / "helm"
        program.write_text(
            f"#!/bin/sh\necho begin >> {self._log}\nwhile [ ! -e {self._go} ]; do sleep 0.02; done\n"
            f"echo end >> {self._log}\necho 'kind: X'\n"
        )
        program.chmod(0o755)
        self.path = str(program)

    def go_on(self) -> None:
        self._go.touch()

    def wait(self) -> None:
        """Let the runs that begin from now on wait."""
        self._go.unlink()

    def log(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []


@dataclass
class Served:
    """`address` has the key behind its #."""

    process: subprocess.Popen[str]
    address: str

    @property
    def url(self) -> str:
        return self.address.partition("#")[0]

    @property
    def key(self) -> str:
        return self.address.partition("#")[2]

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])

    def end(self) -> tuple[int, str]:
        """By Ctrl-C: the exit code, and all that it still said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        said = "".join(self.process.communicate(timeout=60))
        return self.process.returncode, said


def serve(*arguments: str, **environment: str) -> Served:
    process = subprocess.Popen(
        [sys.executable, "-m", "extproc", "model", "ui", "--no-browser", *arguments],
        cwd=ROOT,
        env={**os.environ, "TOKENWEIR_HELM": environment.pop("helm", None) or helm(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    if not line.startswith("The form: "):
        _, said = process.communicate(timeout=60)
        raise AssertionError(f"the form did not start: {line}{said}")
    return Served(process, line.removeprefix("The form: ").strip())
