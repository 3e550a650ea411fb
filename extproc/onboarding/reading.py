"""Parse YAML text into nodes with positions, and into plain data as Helm reads it.

Helm's parser differs from PyYAML: `2025-01-02` and `12:30` are text, `y` is true, `1e5` is a number. People write
values: a repeated key, an anchor that refers to itself or multiplies itself, and invalid text lead to a message
with the line.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from extproc.onboarding.errors import OnboardingError

MAX_BYTES: Final = 512 * 1024
_MAX_VALUES: Final = 50_000  # repeats by anchors included
_MAX_DEPTH: Final = 60
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = _TAG + "merge"
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUE: Final = ("y", "yes", "on", "true")


class _Loader(_BASE):  # type: ignore[misc]
    """Build nodes with the tags of Go's YAML."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form


for _name, _pattern, _first in (
    ("bool", r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("null", r"~|null|Null|NULL", "~nN"),
    ("int", r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[0-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), list(_first))
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"\Z"), [""])


def compose(text: str, source: str) -> list[yaml.Node]:
    """Return the nodes of the documents, checked: no repeated keys, bounded in size and depth. Raise
    `OnboardingError`.
    """
    try:
        _shallow(text, source)
        found = [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise OnboardingError(f"{source}: not valid YAML{where}: {_reason(error, text)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", None) or "it can't be read"
        raise OnboardingError(f"{source}: not valid YAML: {reason}") from None
    sizes: dict[int, int] = {}
    for node in found:
        if _size(node, source, sizes) > _MAX_VALUES:
            raise OnboardingError(
                f"{source}: with what its anchors repeat it has more than {_MAX_VALUES:,} values"
            )
    return found


def _shallow(text: str, source: str) -> None:
    """Check the depth on parser events: libyaml's composer is recursive, and a deep file would crash it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                where = event.start_mark.line + 1 if event.start_mark else 0
                raise OnboardingError(f"{source}: line {where}: nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    reason = str(error.problem or error.context)
    if mark and "cannot start any token" in reason and text[mark.index : mark.index + 1] == "\t":
        return "a tab; YAML is indented with spaces"
    return reason


def _size(node: yaml.Node, source: str, sizes: dict[int, int]) -> int:
    """Return the number of values of the node; an anchor's values count at each of its uses."""
    known = sizes.get(id(node))
    if known is not None:
        if known < 0:
            raise OnboardingError(f"{source}: line {line(node)}: an anchor refers to itself")
        return known
    sizes[id(node)] = -1
    size = 1
    if isinstance(node, yaml.MappingNode):
        _unique(node, source)
        size += sum(_size(each, source, sizes) for pair in node.value for each in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(each, source, sizes) for each in node.value)
    sizes[id(node)] = size
    return size


def _unique(node: yaml.MappingNode, source: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise OnboardingError(f"{source}: line {line(key)}: a key must be text")
        if key.tag == _MERGE:
            continue
        text = key_text(key)
        if text in seen:
            raise OnboardingError(
                f"{source}: line {line(key)}: '{text}' is given twice (first in line {seen[text]})"
            )
        seen[text] = line(key)


def line(node: yaml.Node) -> int:
    """Return the node's line, counted from 1."""
    return int(node.start_mark.line) + 1


def key_text(key: yaml.ScalarNode) -> str:
    """Return a key as Helm sees it: as text, whatever it looks like."""
    if key.tag == _TAG + "bool":
        return "true" if key.value.lower() in _TRUE else "false"
    return "null" if key.tag == _TAG + "null" else str(key.value)


def pairs(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
    """Yield key, key node and value node of each pair, without merged pairs."""
    for key, value in node.value:
        if key.tag != _MERGE:
            yield key_text(key), key, value


def data(node: yaml.Node, source: str) -> Any:
    """Return a node as plain data. Raise `OnboardingError`."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, source)
    if isinstance(node, yaml.SequenceNode):
        return [data(each, source) for each in node.value]
    return _scalar(node, source) if isinstance(node, yaml.ScalarNode) else None


def _mapping(node: yaml.MappingNode, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag != _MERGE:
            continue
        for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(each, yaml.MappingNode):
                raise OnboardingError(f"{source}: line {line(value)}: '<<' takes a map, or a list of maps")
            found = {**_mapping(each, source), **found}
    return found | {text: data(value, source) for text, _, value in pairs(node)}


def _scalar(node: yaml.ScalarNode, source: str) -> Any:
    text = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    if kind in {"int", "float"}:
        return _number(text, node, source)
    if kind in {"str", "merge", "timestamp"} or not node.tag.startswith(_TAG):
        return text  # Helm ignores custom tags
    raise OnboardingError(f"{source}: line {line(node)}: the tag !!{kind} can't be read here")


def _number(text: str, node: yaml.ScalarNode, source: str) -> int | float:
    plain = text.replace("_", "").lower()
    sign = -1 if plain.startswith("-") else 1
    digits = plain.lstrip("+-")
    try:
        for prefix, base in (("0b", 2), ("0x", 16), ("0o", 8)):
            if digits.startswith(prefix):
                return sign * int(digits[2:], base)
        if re.fullmatch("0[0-7]+", digits):
            return sign * int(digits, 8)
        if digits.isdigit() and len(digits) < 19:  # noqa: PLR2004 - what is longer is a float in Helm
            return sign * int(digits)
        value = sign * float(digits)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OnboardingError(f"{source}: line {line(node)}: {text[:40]!r} is no number that Helm takes")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
