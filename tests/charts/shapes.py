"""The shape of what a chart makes: where something stands and of what type it is, not what it says."""

import copy
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import yaml

from .helm import CHARTS, ChartError, Document, Once, render, tool

# Strings that mean something to YAML, to Go's templates, or to who pastes text into text.
NASTY = (
    "true", "1e3", "{{ .Values }}", "2001-01-01", "- a", "a #b", "null", "*a", "|", "a: b", "{a: b}", '"', "[a", "'",
    "a\n---\nkind: Pod", "a\n  evil: b", " a ",
)  # fmt: skip
BENIGN = "benign"
Path = tuple[str | int, ...]


def made_once(chart: str, values: Document) -> list[Document]:
    """As `made`; nothing that is made says anything twice."""
    command = [tool("helm"), "template", "tokenweir", str(CHARTS / chart), "-n", "infra", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True)
    return [document for document in yaml.load_all(done.stdout, Loader=Once) if document]


def shape(documents: list[Document], key: str = BENIGN) -> set[str]:
    """One line for each path to a leaf; the places in a list count as one, since of two equal entries one may go.

    A map's key that says `key` counts as one that says `BENIGN`.
    """
    kinds = [document["kind"] for document in documents]
    lines = {f"{each['kind']}{line}" for each in documents for line in _lines(each, key)}
    return lines | {f"{kind}: {kinds.count(kind)}" for kind in kinds}


def _lines(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from (f".{BENIGN if name == key else name}{line}" for line in _lines(each, key))
    elif isinstance(value, list):
        for each in value:
            yield from (f"[]{line}" for line in _lines(each, key))
    else:
        yield f": {type(value).__name__}"
    if isinstance(value, str) and "\n" in value and (inner := _yaml(value)) is not None:
        yield from (f"|{line}" for line in _lines(inner, key))


def _yaml(text: str) -> Any:
    """A file within a ConfigMap or an annotation."""
    try:
        found = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, dict) else None


def strings(values: Any, path: Path = ()) -> Iterator[Path]:
    """Where the strings are."""
    if isinstance(values, str):
        yield path
    elif isinstance(values, dict | list):
        for name, each in values.items() if isinstance(values, dict) else enumerate(values):
            yield from strings(each, (*path, name))


def with_all(values: Document, paths: set[Path], text: str) -> Document:
    """The values with `text` in all these places, and as the key of what is called `BENIGN`."""
    found = copy.deepcopy(values)
    for path in paths:
        place: Any = found
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = text
    return _renamed(found, text)


def _renamed(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {key if name == BENIGN else name: _renamed(each, key) for name, each in value.items()}
    return [_renamed(each, key) for each in value] if isinstance(value, list) else value


def made(chart: str, values: Document, release: str = "tokenweir", namespace: str = "infra") -> list[Document]:
    """As `render`, of values in JSON: there a string is one to Python and to Helm alike, `1e3` and `y` included."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        return render(chart, File(file.name), release=release, namespace=namespace)


def taken(chart: str, values: Document, paths: set[Path], text: str) -> tuple[list[Document], set[Path]]:
    """What is made of `text` in all those places that the chart's schema takes it in, and which these are."""
    paths = set(paths)
    while True:
        try:
            return made(chart, with_all(values, paths, text)), paths
        except ChartError as error:
            fewer = {path for path in paths if f"at '{_pointer(path, text)}'" not in str(error)}
            if len(fewer) == len(paths):
                raise
            paths = fewer


def _pointer(path: Path, key: str) -> str:
    """As Helm's messages name a place in values whose `BENIGN` keys say `key`."""
    names = (key if name == BENIGN else str(name) for name in path)
    pointer = "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in names)
    return pointer.replace("'", "\\'").replace("\n", "\\n")
