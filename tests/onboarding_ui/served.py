"""The form as its users start it: a process of its own, and the address that it prints."""

import os
import shutil
import signal
import subprocess
import sys
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
        said = "".join(self.process.communicate(timeout=20))
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
        _, said = process.communicate(timeout=20)
        raise AssertionError(f"the form did not start: {line}{said}")
    return Served(process, line.removeprefix("The form: ").strip())
