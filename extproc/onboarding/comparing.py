"""Compare two renderings, object by object."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

Key = tuple[str, str, str]
"""Identify an object: apiVersion, kind, and namespace/name."""


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """Describe one object that differs; `diff` is a unified diff of its YAML, without a header."""

    kind: str
    name: str
    change: Change
    diff: str


def keyed(objects: Iterable[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Return the objects by key, in their order."""
    return {key(each): each for each in objects}


def key(document: Mapping[str, Any]) -> Key:
    """Return the object's key."""
    about = document.get("metadata") or {}
    place = about.get("namespace")
    name = f"{place}/{about.get('name')}" if place else str(about.get("name"))
    return str(document.get("apiVersion")), str(document.get("kind")), name


def compare(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the differences in the order of the new objects, with removed objects at the end."""
    before, after = keyed(old), keyed(new)
    found = []
    for each in [*after, *(each for each in before if each not in after)]:
        change = Change.ADDED if each not in before else Change.REMOVED if each not in after else Change.CHANGED
        if change is Change.CHANGED and before[each] == after[each]:
            continue
        found.append(
            Difference(each[1], each[2].rpartition("/")[2], change, _diff(before.get(each), after.get(each)))
        )
    return found


def _diff(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    lines = difflib.unified_diff(_lines(old), _lines(new), lineterm="", n=3)
    return "\n".join(list(lines)[2:])


def _lines(document: Mapping[str, Any] | None) -> list[str]:
    if document is None:
        return []
    return yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True).splitlines()
