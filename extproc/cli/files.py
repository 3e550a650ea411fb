"""Files that an operator gives: documents as YAML or JSON; `-` is stdin."""

import json
import sys
from pathlib import Path
from typing import Final

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
    """What YAML or JSON says: of several YAML documents a list of what they say. Raises `AdminError`."""
    text = read_text(name)
    if text.lstrip()[:1] in ("{", "["):  # JSON is not quite YAML: numbers such as 1e5
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    try:
        values = [value for value in yaml.safe_load_all(text) if value is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise AdminError(f"{name}: not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise AdminError(f"{name}: neither YAML nor JSON") from None
    return values[0] if len(values) == 1 else values


def read_documents(name: str) -> list[object]:
    """One document, or several. Raises `AdminError`."""
    value = read_value(name)
    if not isinstance(value, list):
        return [value]
    # Of several YAML documents each may be a list again.
    return [inner for each in value for inner in (each if isinstance(each, list) else [each])]
