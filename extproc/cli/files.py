"""Read the files that an operator gives: documents as YAML or JSON; `-` is stdin."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from extproc.admin.errors import AdminError
from extproc.given.documents import MAX_BYTES, GivenDocumentError, documents
from extproc.given.files import STDIN, GivenFileError, read

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
# An export of all tenants in one file.
_MANY_BYTES: Final = 64 << 20


def read_text(name: str, most: int = MAX_BYTES) -> str:
    """Return the file's text, of at most so many bytes. Raise `AdminError`."""
    try:
        return read(name, most).decode("utf-8-sig")
    except GivenFileError as error:
        raise AdminError(f"{name}: {error}") from None
    except UnicodeDecodeError:
        raise AdminError(f"{name}: can't be read: it is no UTF-8 text") from None


def read_value(name: str, most: int = MAX_BYTES) -> object:
    """Return the value of a YAML or JSON text; several YAML documents become a list.

    A key that is given twice is refused: only one of its values would count. Raise `AdminError`.
    """
    text = read_text(name, most)
    if text.lstrip()[:1] in ("{", "["):  # YAML is no exact superset of JSON: numbers such as 1e5
        try:
            return json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            pass  # YAML's reader names the place
    try:
        values = documents(text)
    except GivenDocumentError as error:
        raise AdminError(f"{name}: {error}") from None
    return values[0] if len(values) == 1 else values


def read_documents(names: Sequence[str]) -> list[object]:
    """Return the documents of all files, and of the files in folders. Raise `AdminError`, also for a file without
    a document, or a folder without a file.
    """
    if names.count(STDIN) > 1:
        raise AdminError("stdin can be read once only: give '-' once")
    return [document for name in names for file in _files(name) for document in _documents(file)]


def _files(name: str) -> list[str]:
    """Return the file; of a folder all YAML and JSON files in it and below it, by name, without hidden ones."""
    if name == STDIN or not Path(name).is_dir():
        return [name]
    found = sorted(
        str(path)
        for path in Path(name).rglob("*")
        if path.suffix in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(name).parts)
    )
    if not found:
        raise AdminError(f"{name}: there is no file {' or '.join(sorted(_SUFFIXES))} in it")
    return found


def _documents(name: str) -> list[object]:
    value = read_value(name, _MANY_BYTES)
    if not isinstance(value, list):
        return [value]
    # Each of several YAML documents may itself be a list.
    found = [inner for each in value for inner in (each if isinstance(each, list) else [each])]
    if not found:
        raise AdminError(f"{name}: there is no document in it")
    return found


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found
