"""Read YAML that a person writes, within bounds on depth and on what anchors and merges repeat."""

from collections.abc import Iterator
from typing import Any, Final

import yaml

MAX_BYTES: Final = 8 << 20
MAX_VALUES: Final = 1_000_000  # what anchors and merges repeat is counted at each of its uses
MAX_DEPTH: Final = 100
# Python reads a longer number in more than linear time.
_MAX_NUMBER_CHARS: Final = 128
_TAG: Final = "tag:yaml.org,2002:"
_NUMBERS: Final = frozenset({_TAG + "int", _TAG + "float"})
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class GivenDocumentError(Exception):
    """Say why a text can't be read, with the place. The message does not quote the text: it may have a secret."""


class _Loader(_BASE):  # type: ignore[misc]
    """Load one text."""


def documents(text: str) -> list[object]:
    """Return the documents of a YAML text, without empty ones. Raise `GivenDocumentError`.

    A key that is given twice is refused: only one of its values would count.
    """
    try:
        _check_depth(text)
        return [value for value in _values(text) if value is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise GivenDocumentError(f"not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeError):
        raise GivenDocumentError("not valid YAML: it must be printable UTF-8 text") from None
    except (ValueError, OverflowError) as error:  # a date or a number that can't be
        raise GivenDocumentError(f"not valid YAML: {error}") from None


def document(text: str) -> object:
    """Return the only document of a YAML text; None if it is empty. Raise `GivenDocumentError`."""
    found = documents(text)
    if len(found) > 1:
        raise GivenDocumentError("several YAML documents; leave one")
    return found[0] if found else None


def _values(text: str) -> Iterator[object]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            _Size().of(node)
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(text: str) -> None:
    # On events: libyaml composes nodes by recursion, and a deep text would end the process.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _problem(f"nested more than {MAX_DEPTH} deep; write it flatter", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Size:
    """Count the values of a document before they are built."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def of(self, node: yaml.Node) -> int:
        """Return the number of values of a node. Raise `yaml.MarkedYAMLError` beyond `MAX_VALUES`."""
        known = self._known.get(id(node))
        if known is not None:
            if known < 0:
                raise _problem("an anchor refers to itself; write the value out", node.start_mark)
            return known
        self._known[id(node)] = -1
        size = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            size += sum(self.of(each) for pair in node.value for each in pair)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(map(self.of, node.value))
        elif node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER_CHARS:
            raise _problem(f"a number of more than {_MAX_NUMBER_CHARS} characters", node.start_mark)
        if size > MAX_VALUES:
            rule = f"with what its anchors repeat it has more than {MAX_VALUES:,} values; write less"
            raise _problem(rule, node.start_mark)
        self._known[id(node)] = size
        return size


def _check_keys(node: yaml.MappingNode) -> None:
    # Before anchors are merged: a key may override one that a merge brings.
    seen: set[tuple[str, str]] = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if (key.tag, key.value) in seen:
            raise _problem(f"'{key.value[:64]}' is given twice", key.start_mark)
        seen.add((key.tag, key.value))


def _problem(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
