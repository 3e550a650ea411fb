"""Write files completely or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from extproc.onboarding import files
from extproc.onboarding.errors import OnboardingError


def replace(name: str, before: str, after: str) -> None:
    """Replace a file whose text was `before`. The file's mode is kept, and a link stays a link.

    Raise `OnboardingError`, also if another program has changed the file meanwhile.
    """
    path = Path(name).resolve()  # follow links: replace their target
    try:
        if path.read_bytes() != before.encode():
            raise OnboardingError(f"{name}: somebody has changed it meanwhile; nothing was written")
        if not os.access(path, os.W_OK):
            raise OnboardingError(f"{name}: can't be written: it is read-only")
        _put(path, after, path.stat().st_mode & 0o7777)
    except OSError as error:
        raise OnboardingError(f"{name}: can't be written: {error.strerror or error}") from None


def create(name: str, text: str, *, force: bool) -> None:
    """Create a file. Replace an existing one only with `force`. Raise `OnboardingError`."""
    path = Path(name)
    try:
        if force and path.exists():
            _put(path.resolve(), text, path.stat().st_mode & 0o7777)
            return
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise _there(name) from None
    except OSError as error:
        raise OnboardingError(f"{name}: can't be written: {error.strerror or error}") from None


def free(name: str, *, force: bool) -> None:
    """Check in advance that `create` may write there. Raise `OnboardingError`."""
    if name != files.STDIN and not force and os.path.lexists(name):
        raise _there(name)


def _there(name: str) -> OnboardingError:
    return OnboardingError(f"{name} is there already: --force replaces it")


def _put(path: Path, text: str, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
