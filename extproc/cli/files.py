"""Read the files that an operator gives: documents as YAML or JSON; `-` is stdin."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.admin.errors import AdminError

STDIN: Final = "-"


def read_text(name: str) -> str:
    """Return the file's text. Raise `AdminError`."""
    try:
        raw = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise AdminError(f"{name}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """Return the reason why a file could not be read, without its content."""
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror or error}"
    return (
        "can't be read: it is no UTF-8 text"
        if isinstance(error, UnicodeDecodeError)
        else f"can't be read: {error}"
    )


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
        values = [value for value in yaml.load_all(text, _Loader) if value is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise AdminError(f"{name}: not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise AdminError(f"{name}: neither YAML nor JSON") from None
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


class _Loader(yaml.SafeLoader):
    """Refuse a repeated key: YAML forbids it, but PyYAML takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Check before anchors are merged: a key may override one that a merge brings.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node
