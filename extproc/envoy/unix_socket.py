"""A Unix socket that is its owner's alone, from the moment it is there."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MAX_PATH_BYTES: Final = 107  # unix(7): sun_path has 108, with the NUL
_OTHERS: Final = 0o077


class SocketPathError(Exception):
    """Nothing can listen there; the message says why."""


@contextmanager
def owner_only(path: Path) -> Iterator[None]:
    """Bind inside it: the socket is made with mode 0600, never wider. A folder that is missing is made with 0700.

    The umask is the process's, for as long as binding takes: what another thread makes meanwhile is its owner's
    alone too. A socket that nobody listens on any more goes; anything else in the place stays, and is an error.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise SocketPathError(f"the path is longer than {_MAX_PATH_BYTES} bytes")
    try:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
        _clear(path)
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)
        found = path.lstat()
    except OSError as error:
        raise SocketPathError(error.strerror or str(error)) from error
    if not stat.S_ISSOCK(found.st_mode) or found.st_mode & _OTHERS or found.st_uid != os.geteuid():
        raise SocketPathError(f"its mode is {stat.filemode(found.st_mode)}, not that of its owner's own socket")


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketPathError("something is there that is no socket")
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its process is gone
        else:
            raise SocketPathError("it is in use")
