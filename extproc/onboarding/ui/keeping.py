"""Rewrite a YAML file with other values, and keep unchanged parts byte for byte: comments, order, quotes.

The tree of the old text gives the place of each value. Values that differ are cut out and written anew, line by
line. The result is parsed again and is rejected if it does not have the wanted values (aliases, odd layouts).
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from extproc.onboarding import files, reading
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.ui.writing import dump, inline, same


class _Whole(Exception):  # noqa: N818 - an outcome
    """Report that the content can't be edited in parts: the whole of it must be written anew."""


def rewritten(text: str, model: files.Model, new: dict[str, Any]) -> str | None:
    """Return `text` (of `model`) with `new` as its values; None if edits can't do it."""
    if same(model.values, new):
        return text
    ends = "\r\n" if "\r\n" in text else "\n"
    unix = text.replace("\r\n", "\n")
    if not unix.endswith("\n"):
        unix += "\n"
    try:
        edited = _edited(unix, model, new)
        said = files.one(edited, model.source, model.chart, model.release).values
    except (_Whole, OnboardingError, ValueError):
        return None
    return edited.replace("\n", ends) if same(said, new) else None


def _edited(text: str, model: files.Model, new: dict[str, Any]) -> str:
    # Parse again: positions count characters, and line ends may have had two.
    root = files.one(text, model.source, model.chart, model.release).node
    edits = _Edits(text)
    try:
        edits.in_map(root, model.values, new)
    except _Whole:
        if model.helmrelease:
            raise
        edits.cuts.clear()
        edits.cut(edits.line_of(root.start_mark.index), edits.line_after(edits.end(root)), dump(new))
    return edits.applied()


@dataclass(slots=True)
class _Edits:
    text: str
    cuts: list[tuple[int, int, str]] = field(default_factory=list)

    def cut(self, start: int, end: int, instead: str = "") -> None:
        self.cuts.append((start, end, instead))

    def put(self, at: int, text: str) -> None:
        self.cut(at, at, text)

    def applied(self) -> str:
        parts, done = [], 0
        # Insertions at one place keep the order of the edits: inner before outer.
        for start, end, instead in sorted(self.cuts, key=lambda each: each[0]):
            parts += [self.text[done:start], instead]
            done = max(done, end)
        return "".join(parts) + self.text[done:]

    # Places

    def line_of(self, at: int) -> int:
        return self.text.rfind("\n", 0, at) + 1

    def line_after(self, at: int) -> int:
        return self.text.find("\n", at) + 1 or len(self.text)

    def end(self, node: yaml.Node) -> int:
        """Return the end of the node's own text, before the comments and empty lines after it."""
        if _in_lines(node) and node.value:
            last = node.value[-1]
            inner = last[1] if isinstance(last, tuple) else last
            if inner.start_mark.index < node.start_mark.index:
                raise _Whole  # an alias has the position of its anchor
            return self.end(inner)
        start: int = node.start_mark.index
        return start + len(self.text[start : node.end_mark.index].rstrip())

    def begins_line(self, at: int, after: str = "") -> int:
        line = self.line_of(at)
        if self.text[line:at].strip() != after:
            raise _Whole
        return line

    # Edits

    def in_map(self, node: yaml.Node, old: dict[str, Any], new: dict[str, Any]) -> None:
        if not isinstance(node, yaml.MappingNode) or not _in_lines(node) or not old.keys() & new.keys():
            raise _Whole
        items = {name: (key, value) for name, key, value in reading.pairs(node)}
        for name, was in old.items():
            if name in new and same(was, new[name]):
                continue
            if name not in items:
                raise _Whole  # a merge key supplies it
            key, value = items[name]
            if name in new:
                self.value(key, value, was, new[name])
            else:
                self.cut(self.begins_line(key.start_mark.index), self.line_after(self.end(value)))
        added = {name: value for name, value in new.items() if name not in old}
        if added:
            self.put(self.line_after(self.end(node)), _indented(dump(added), node.start_mark.column))

    def value(self, key: yaml.Node, node: yaml.Node, old: Any, new: Any) -> None:
        """Change the value of one key."""
        if node.start_mark.index < key.end_mark.index:
            raise _Whole
        before = len(self.cuts)
        try:
            if isinstance(old, dict) and isinstance(new, dict):
                self.in_map(node, old, new)
            elif isinstance(old, list) and isinstance(new, list):
                self.in_list(node, old, new)
            else:
                self.replace(key, node, new)
        except _Whole:
            del self.cuts[before:]
            self.replace(key, node, new)

    def replace(self, key: yaml.Node, node: yaml.Node, new: Any) -> None:
        colon = self.text.index(":", key.end_mark.index) + 1
        start, end = node.start_mark.index, self.end(node)
        short = not isinstance(new, (dict, list)) or not new
        if _in_lines(node) and node.value:
            lines = self.begins_line(start, "-" if isinstance(node, yaml.SequenceNode) else "")
            text = "" if short else _indented(dump(new), key.start_mark.column + 2)
            self.cut(lines, self.line_after(end), text)
            if short:
                self.put(colon, " " + inline(new))
        elif short or (isinstance(node, yaml.CollectionNode) and node.value):
            self.cut(colon, max(end, colon), " " + inline(new))
        else:
            self.cut(colon, max(end, colon))
            self.put(self.line_after(end), _indented(dump(new), key.start_mark.column + 2))

    def in_list(self, node: yaml.Node, old: list[Any], new: list[Any]) -> None:
        if not isinstance(node, yaml.SequenceNode) or not _in_lines(node) or not old or not new:
            raise _Whole
        first = 0
        while first < min(len(old), len(new)) and same(old[first], new[first]):
            first += 1
        last = 0
        while last < min(len(old), len(new)) - first and same(old[-1 - last], new[-1 - last]):
            last += 1
        gone = node.value[first : len(old) - last]
        text = (
            _indented(dump(new[first : len(new) - last]), node.start_mark.column)
            if len(new) > first + last
            else ""
        )
        if gone:
            begin = self.begins_line(gone[0].start_mark.index, "-")
            self.cut(begin, self.line_after(self.end(gone[-1])), text)
        else:
            at = self.line_after(self.end(node.value[first - 1])) if first else self.line_of(node.start_mark.index)
            self.put(at, text)


def _in_lines(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _indented(text: str, column: int) -> str:
    space = " " * column
    return "".join(space + line if line.strip() else line for line in text.splitlines(keepends=True))
