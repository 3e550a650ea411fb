"""Find places in a YAML text, and cut there."""

from dataclasses import dataclass
from typing import NamedTuple

import yaml

from extproc.onboarding import reading
from extproc.onboarding.errors import OnboardingError


class NoPlaceError(OnboardingError):
    """Report that the layout of the text has no place for an edit."""


class Cut(NamedTuple):
    """Replace the characters from `start` to `end` by `new`."""

    start: int
    end: int
    new: str = ""


Pair = tuple[yaml.ScalarNode, yaml.Node]


def pairs_of(node: yaml.MappingNode) -> dict[str, Pair]:
    """Return the nodes of a mapping's keys and values in their order, without merged ones."""
    return {text: (key, value) for text, key, value in reading.pairs(node)}


def in_lines(node: yaml.Node) -> bool:
    """Return whether a node is a map or list in block style with at least one entry."""
    return isinstance(node, yaml.CollectionNode) and not node.flow_style and bool(node.value)


@dataclass(frozen=True, slots=True)
class Layout:
    """Find places in a text that has no byte order mark. A place is the index of a character."""

    text: str

    @property
    def newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def cut(self, cuts: list[Cut]) -> str:
        """Return the text after all cuts. They must not overlap."""
        text = self.text
        for start, end, new in sorted(cuts, reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def line_start(self, at: int) -> int:
        return self.text.rfind("\n", 0, at) + 1

    def line_end(self, at: int) -> int:
        """Return the place before the line end of the line of `at`."""
        found = self.text.find("\n", at)
        if found < 0:
            return len(self.text)
        return found - 1 if self.text[found - 1] == "\r" else found

    def line_after(self, at: int) -> int:
        return self.text.find("\n", at) + 1 or len(self.text)

    def end(self, node: yaml.Node) -> int:
        """Return the end of a node, without the white space and comments after it.

        Raise `NoPlaceError` if its last part is an alias, which has no place of its own.
        """
        if in_lines(node):
            last = node.value[-1]
            inner: yaml.Node = last[1] if isinstance(node, yaml.MappingNode) else last
            if inner.start_mark.index < node.start_mark.index:
                raise NoPlaceError
            return self.end(inner)
        start = int(node.start_mark.index)
        return start + len(self.text[start : node.end_mark.index].rstrip())

    def first_in_line(self, at: int, after: str = "") -> int:
        """Return the start of the line of `at`. Raise `NoPlaceError` if more than `after` stands before `at`."""
        start = self.line_start(at)
        if self.text[start:at].strip() != after:
            raise NoPlaceError
        return start

    def comments_above(self, start: int) -> int:
        """Return the start of the comment lines directly above a line."""
        while start > 0:
            before = self.line_start(start - 1)
            if not self.text[before:start].lstrip().startswith("#"):
                break
            start = before
        return start

    def lines(self, block: str, column: int) -> str:
        """Return the lines of a block, indented and with the line ends of this text."""
        space = " " * column
        indented = (space + line if line.strip() else line for line in block.splitlines(keepends=True))
        return "".join(indented).replace("\n", self.newline)

    def below(self, at: int, lines: str) -> Cut:
        """Return the cut that puts whole lines below the line of `at`."""
        after = self.line_after(at)
        missing = self.newline if after == len(self.text) and not self.text.endswith("\n") else ""
        return Cut(after, after, missing + lines)
