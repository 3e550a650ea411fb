"""Know the stacks that run on this machine: a note in each one's folder, for other commands and later runs.

The note is in a folder that only its user can enter. It has the key of the stack's token issuer, so `local token`
can issue tokens; the key ends with the folder.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

FOLDER_PREFIX: Final = "tokenweir-"
_NOTE: Final = "stack.json"
_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # the state in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class Note:
    """Describe a stack. `started` tells its process from a later one of the same id; `gateway` is '' at first."""

    pid: int
    started: str
    gateway: str = ""
    admin_port: int = 0
    issuer_key: str = ""


def write_note(folder: Path, *, gateway: str = "", admin_port: int = 0, issuer_key: str = "") -> None:
    """Note that this process runs a stack in the folder."""
    note = Note(os.getpid(), _started(os.getpid()), gateway, admin_port, issuer_key)
    path = folder / _NOTE
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(note))


def running_stacks() -> list[Note]:
    """Return the stacks of this user that run, with those that just start."""
    return [note for _, note in _notes() if _lives(note)]


def clean_up() -> list[int]:
    """End the processes and remove the folders of stacks whose own process was killed. Return its ids."""
    cleaned = []
    for folder, note in _notes():
        if not _lives(note):
            for pid in _working_in(folder):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            cleaned.append(note.pid)
    return cleaned


def holder_of(port: int) -> str | None:
    """Return who listens on a TCP port of this machine, for people; None if that can't be found out."""
    for note in running_stacks():
        if note.gateway.endswith(f":{port}"):
            return f"another `tokenweir local up`, process {note.pid}"
    inodes = set(_listening_inodes(port))
    for pid in _pids():
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (_PROC / str(pid) / "fd").iterdir()):
                name = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"{name}, process {pid}"
    return None


def _notes() -> Iterator[tuple[Path, Note]]:
    """Yield this user's folders with a note. Another user's folder of such a name is left alone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                yield folder, msgspec.json.decode((folder / _NOTE).read_bytes(), type=Note)


def _lives(note: Note) -> bool:
    try:
        os.kill(note.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process has the id now
        return False
    return _started(note.pid) == note.started


def _started(pid: int) -> str:
    """Return when a process was started, as the system counts; '' where it does not tell."""
    try:
        told = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return told.rpartition(")")[2].split()[19]  # the name before it is in parentheses, and may have spaces
    except (OSError, IndexError):
        return ""


def _working_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is in the folder."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if (_PROC / str(pid) / "cwd").readlink().is_relative_to(folder) and pid != os.getpid():
                found.append(pid)
    return found


def _pids() -> list[int]:
    try:
        return [int(each.name) for each in _PROC.iterdir() if each.name.isdecimal()]
    except OSError:
        return []


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
