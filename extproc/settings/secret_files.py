"""Read secrets from files, and follow the files while the process runs: a secret rotates without a restart."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from extproc.given import files

MAX_BYTES: Final = 8192
# The setting that a file may hold, and the setting that names the file.
IN_FILES: Final = {
    "redis.url": "redis.url_file",
    "mongo.url": "mongo.url_file",
    "alerts.webhook_secret": "alerts.webhook_secret_file",
}
_log = logging.getLogger(__name__)


def read_secret(path: Path) -> str:
    """Return the text of a file of at most `MAX_BYTES`, without the line's end.

    Raise `ValueError` with the reason if the file can't be read, is too large, is empty or holds no UTF-8. The
    message does not quote the text.
    """
    try:
        content = files.read(path, MAX_BYTES)
    except files.GivenFileError as error:
        raise ValueError(str(error)) from None
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8 text") from None
    if not text:
        raise ValueError("is empty")
    return text


class SecretFile:
    """Follow the secret in a file. Its last valid value stays while the file is missing or invalid.

    Kubernetes replaces the files of a mounted Secret about a minute after the Secret changed.
    """

    def __init__(self, setting: str, path: Path, check: Callable[[str], object]) -> None:
        """Read the file. `check` raises `ValueError` for an invalid text. Raise `ValueError` as `read_secret`."""
        self._setting = setting
        self._path = path
        self._check = check
        self._seen = self._signature()
        self._value = self._read()

    def value(self) -> str:
        """Return the secret, read anew if the file was replaced or changed. Never raise."""
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            try:
                value = self._read()
            except ValueError as error:
                problem = {"setting": self._setting, "problem": str(error)}
                _log.error("secret: its file can't be used: the last value stays in force", extra=problem)
            else:
                if value != self._value:
                    _log.info(
                        "secret: changed, and used from the next connection on", extra={"setting": self._setting}
                    )
                self._value = value
        return self._value

    def _read(self) -> str:
        text = read_secret(self._path)
        self._check(text)
        return text

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
