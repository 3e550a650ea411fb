"""Open and read files that a person names: regular files only, and never more than a bound."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

STDIN: Final = "-"


class GivenFileError(Exception):
    """Say why a file can't be used. The message names the problem and the fix, but neither file nor content."""


def opened(name: str | Path) -> BinaryIO:
    """Open a regular file to read it. Wait for nothing: a pipe without a writer is refused like any other pipe.

    Raise `GivenFileError`.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        raise GivenFileError(f"can't be read: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise GivenFileError(f"can't be read: {os.strerror(errno.EISDIR)}")
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
        raise GivenFileError(f"can't be read: it is {kind}; name a regular file")
    return os.fdopen(descriptor, "rb")


def read(name: str | Path, most: int) -> bytes:
    """Return a regular file's bytes, or those of stdin if the name is `-`. Raise `GivenFileError`.

    `most` is the largest size in bytes. No more than that is ever in memory.
    """
    try:
        if name == STDIN:
            data = sys.stdin.buffer.read(most + 1)
        else:
            with opened(name) as file:
                data = file.read(most + 1)
    except OSError as error:
        raise GivenFileError(f"can't be read: {error.strerror or error}") from None
    if len(data) > most:
        raise GivenFileError(f"larger than {_size(most)}: split it, or name another file")
    return data


def check(name: str | Path, most: int) -> None:
    """Check a file that a library will open by its name: it must be regular and at most `most` bytes long.

    Raise `GivenFileError`.
    """
    with opened(name) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise GivenFileError(f"larger than {_size(most)}: name another file")


def lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """Yield the lines of a file. Raise `GivenFileError` at a line of more than `most` bytes."""
    while line := file.readline(most + 1):
        if len(line) > most:
            raise GivenFileError(f"has a line of more than {_size(most)}: name another file")
        yield line


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
