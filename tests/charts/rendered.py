"""Answers of Helm on disk: each distinct question about the charts is put to Helm once, whichever process asks."""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "rendered"


class Answer(NamedTuple):
    """Exit code, stdout and stderr of one run of Helm."""

    code: int
    out: str
    err: str


def once(program: str, arguments: tuple[str, ...], values: tuple[str, ...], ask: Callable[[], Answer]) -> Answer:
    """Return the answer to these arguments and values files; `ask` is called if no process has asked before.

    An answer belongs to the content of `charts/` and to the program: a change of either makes all answers new.
    """
    key = hashlib.sha256(json.dumps([_identity(program), arguments, values]).encode()).hexdigest()
    path = _folder() / key[:40]
    try:
        return Answer(*json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        answer = ask()
    _write(path, json.dumps(answer))
    return answer


def _identity(program: str) -> tuple[str, int, int]:
    path = Path(program).resolve()
    return str(path), path.stat().st_size, path.stat().st_mtime_ns


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all: another process may read it at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).replace(path)


@functools.cache
def _folder() -> Path:
    """Return the folder for the present charts. Answers about former ones are deleted."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "charts").rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    folder = FOLDER / digest.hexdigest()[:20]
    if not folder.is_dir():
        for old in FOLDER.glob("*"):
            shutil.rmtree(old, ignore_errors=True)
    return folder
