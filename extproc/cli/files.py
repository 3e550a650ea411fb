"""Read the files that an operator gives: documents as YAML or JSON; `-` is stdin."""

import json
from collections.abc import Sequence

from extproc.admin.errors import AdminError
from extproc.given.documents import MAX_BYTES, GivenDocumentError, documents
from extproc.given.files import STDIN, GivenFileError, read


def read_text(name: str) -> str:
    """Return the file's text. Raise `AdminError`."""
    try:
        return read(name, MAX_BYTES).decode("utf-8-sig")
    except GivenFileError as error:
        raise AdminError(f"{name}: {error}") from None
    except UnicodeDecodeError:
        raise AdminError(f"{name}: can't be read: it is no UTF-8 text") from None


def read_value(name: str) -> object:
    """Return the value of a YAML or JSON text; several YAML documents become a list.

    A key that is given twice is refused: only one of its values would count. Raise `AdminError`.
    """
    text = read_text(name)
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
    """Return the documents of all files. Raise `AdminError`, also for a file without a document."""
    if names.count(STDIN) > 1:
        raise AdminError("stdin can be read once only: give '-' once")
    return [document for name in names for document in _documents(name)]


def _documents(name: str) -> list[object]:
    value = read_value(name)
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
