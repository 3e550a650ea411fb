"""The code of version 0.1, from the repository's history: replicas of it run beside replicas of this version."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.missing import missing

_ROOT = Path(__file__).parents[2]
_COMMIT = "f9cb3afa8ffaa954a3cfe9664dd71063b170ef53"  # the last one of version 0.1
_SERVE = Path(__file__).with_name("former_serve.py")
# Only this version counts single fields of a limit document that can't be used.
_ONLY_HERE = "tokenweir_limits_bad_fields"


def unpacked(folder):
    """Return `folder` with the code in it. End the test as not run where the history does not have it."""
    if shutil.which("git") is None:
        missing("version 0.1: git is not on the PATH")
    git = ("git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT))
    archive = subprocess.run(
        [*git, "archive", "--format=tar", _COMMIT, "extproc"], capture_output=True, check=False
    )
    if archive.returncode:
        missing("version 0.1 is not in this checkout's history: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def program(code):
    """Return what Python is given to run the code, and the variables that it needs."""
    path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    return ("-P", str(_SERVE), str(code)), {"PYTHONPATH": path}


async def runs_former(replica):
    """Tell whether the process of a replica is one of version 0.1, by the metrics that it serves."""
    return _ONLY_HERE not in await replica.metrics()
