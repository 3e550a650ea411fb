"""Files that an operator gives: documents as YAML or JSON; `-` is stdin."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.admin.errors import AdminError

STDIN: Final = "-"


def read_text(name: str) -> str:
    """The file's text. Raises `AdminError`."""
    try:
        raw = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise AdminError(f"{name}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """Why a file could not be read, without its content."""
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror or error}"
    return (
        "can't be read: it is no UTF-8 text"
        if isinstance(error, UnicodeDecodeError)
        else f"can't be read: {error}"
    )


def read_value(name: str) -> object:
    """What YAML or JSON says: of several YAML documents a list of what they say.

    A key that is given twice is refused: only one of its values would count. Raises `AdminError`.
    """
    text = read_text(name)
    if text.lstrip()[:1] in ("{", "["):  # JSON is not quite YAML: numbers such as 1e5
        try:
            return json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            pass  # YAML's reader says where
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
    """The documents of all files. Raises `AdminError`, also for a file that has none."""
    if names.count(STDIN) > 1:
        raise AdminError("stdin can be read once only: give '-' once")
    return [document for name in names for document in _documents(name)]


def _documents(name: str) -> list[object]:
    value = read_value(name)
    if not isinstance(value, list):
        return [value]
    # Of several YAML documents each may be a list again.
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
    """Refuses a key that is given twice; YAML forbids it, PyYAML takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before anchors are merged: a key may be given beside the one that a merge brings.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node
