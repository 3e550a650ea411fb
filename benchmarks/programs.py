"""Compile the C programs of the benchmark into the cache."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import CannotRunError

SOURCES = Path(__file__).parent / "c"
CACHE = Path(__file__).parent.parent / ".cache" / "bench"
NAMES = ("upstream", "load", "meter", "sink")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-std=gnu11")


@dataclass(frozen=True, slots=True)
class Programs:
    """Hold the paths of the compiled programs."""

    upstream: Path
    load: Path
    meter: Path
    sink: Path


def compiled(cache: Path = CACHE) -> Programs:
    """Return the programs, compiled if the sources changed. Raise `CannotRunError` without a compiler."""
    sources = sorted(SOURCES.iterdir())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = cache / digest
    if not all((folder / name).is_file() for name in NAMES):
        _compile(folder)
    return Programs(*(folder / name for name in NAMES))


def _compile(folder: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotRunError(
            "There is no C compiler (cc). The load generator and the upstream are small C programs, because a "
            "Python client would measure itself. On Debian: apt-get install gcc libc6-dev"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        partial = folder / f"{name}.partial"
        argv = (compiler, *_FLAGS, "-o", str(partial), str(SOURCES / f"{name}.c"))
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunError(
                f"{name}.c can't be compiled (on Debian: apt-get install libc6-dev):\n{done.stderr}"
            )
        partial.replace(folder / name)
