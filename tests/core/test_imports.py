"""The core imports what is on a list, and nothing else: it can't wait, log, tell the time or draw lots."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "extproc" / "core"
ALLOWED = {
    # of Python: values, text, numbers
    "array", "bisect", "collections", "collections.abc", "dataclasses", "datetime", "enum", "functools", "heapq", "ipaddress",
    "itertools", "re", "types", "typing", "urllib.parse", "zlib", "zoneinfo",
    # of others: decoders
    "msgspec", "msgspec.structs", "python_multipart.exceptions", "python_multipart.multipart",
}  # fmt: skip


def imports_of(source):
    """The modules that a source text imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Name) and node.id == "__import__":
            found.add("__import__")
    return found


def refused(source):
    return {name for name in imports_of(source) if name not in ALLOWED and not name.startswith("extproc.core")}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_a_module_of_the_core_imports_what_is_allowed(path):
    assert refused(path.read_text(encoding="utf-8")) == set()


def test_each_allowed_module_is_imported():
    used = set().union(*(imports_of(path.read_text(encoding="utf-8")) for path in CORE.rglob("*.py")))
    assert used >= ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "import os, re",
        "import urllib.request",
        "from time import monotonic",
        "import asyncio",
        "def f():\n    import random",
        "from . import exchange",
        "from extproc.ports.base import Clock",
        "__import__('socket')",
    ],
)
def test_other_imports_are_refused(source):
    assert refused(source)
