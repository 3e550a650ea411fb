"""Edit a YAML text in place: set a value or remove a key, and leave everything else as it is.

The positions come from the parser. The text around an edit stays as its author wrote it, including comments,
order, quotes, indentation and line ends. The result is parsed again to check the edit: if an anchor or a merge key
is in the way, the edit is refused.
"""

import copy
import json
import re
from collections.abc import Callable
from typing import Any, Final

import yaml

from extproc.onboarding import files, reading
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.files import BOM, Model
from extproc.onboarding.layering import Path, look, spell

Scalar = str | int
_PLAIN: Final = re.compile(r"[A-Za-z0-9./][\w./:@+~%=-]*")
_BLOCK_STYLES: Final = ("|", ">")


class Editor:
    """Edit one model's values in a text. `text` is the present result."""

    def __init__(self, text: str, source: str, chart: str | None, release: str | None) -> None:
        self._bom = BOM if text.startswith(BOM) else ""
        self._text = text.removeprefix(BOM)
        self._find: Callable[[str], Model] = lambda now: files.one(now, source, chart, release)
        self._source = source
        self._wanted = self._documents()
        self.model = self._find(self._text)

    @property
    def text(self) -> str:
        return self._bom + self._text

    def put(self, path: Path, value: Scalar, beside: tuple[str, ...] = ()) -> None:
        """Set a value. A new key is put below the first existing key of `beside`, or at the top."""
        _assign(self._values(), path, value)
        parent = self._mapping(path)
        present = {text: (key, node) for text, key, node in reading.pairs(parent)}
        name = str(path[-1])
        if name in present:
            self._replace(present[name][1], value, path)
        elif beside:
            near = next((each for each in beside if each in present), None)
            key, node = present[near] if near else parent.value[-1]
            self._insert_below(parent, key, node, name, value)
        else:
            self._insert_at_top(parent, name, value)
        self._check(path)

    def drop(self, path: Path) -> None:
        """Remove a key if it exists. A comment beside it stays, on a line of its own."""
        if look(self.model.values, *path) is None:
            return
        del look(self._values(), *path[:-1])[path[-1]]
        parent = self._mapping(path)
        pairs = [(key, node) for key, node in parent.value if isinstance(key, yaml.ScalarNode)]
        index = next((i for i, (key, _) in enumerate(pairs) if reading.key_text(key) == path[-1]), None)
        if index is None:
            raise self._refusal(path)
        if parent.flow_style:
            self._drop_in_flow(pairs, index)
        else:
            self._drop_line(pairs, index)
        self._check(path)

    def _replace(self, node: yaml.Node, value: Scalar, path: Path) -> None:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refusal(path)
        start, end = node.start_mark.index, self._end(node)
        colon = "" if start == end else None  # `key:` without a value needs a space
        new = _written(value, node.style or "", flow=False)
        self._splice(start, end, f" {new}" if colon == "" and self._text[start - 1 : start] == ":" else new)

    def _insert_below(
        self, parent: yaml.MappingNode, key: yaml.ScalarNode, node: yaml.Node, name: str, value: Scalar
    ) -> None:
        style = (node.style or "") if isinstance(node, yaml.ScalarNode) else ""
        pair = (
            f"{_written(name, key.style or '', flow=True)}: {_written(value, style, flow=bool(parent.flow_style))}"
        )
        end = self._end(node) or key.end_mark.index
        if parent.flow_style:
            self._splice(end, end, f", {pair}")
            return
        at = self._line_end(end)
        self._splice(at, at, f"{self._newline()}{' ' * key.start_mark.column}{pair}")

    def _insert_at_top(self, parent: yaml.MappingNode, name: str, value: Scalar) -> None:
        """Insert above the key `inferenceservice` and its comments, but never above a file's header comment."""
        pairs = [(key, node) for key, node in parent.value if isinstance(key, yaml.ScalarNode)]
        index = next((i for i, (key, _) in enumerate(pairs) if key.value == "inferenceservice"), len(pairs) - 1)
        key, node = pairs[index]
        start = self._text.rfind("\n", 0, key.start_mark.index) + 1
        above = self._comments_above(start)
        if (
            parent.flow_style
            or self._text[start : key.start_mark.index].strip()
            or (index == 0 and above != start)
        ):
            self._insert_below(parent, key, node, name, value)
            return
        self._splice(above, above, f"{' ' * key.start_mark.column}{name}: {value}{self._newline()}")

    def _comments_above(self, start: int) -> int:
        """Return the start of the comment lines directly above a line."""
        while start > 0:
            before = self._text.rfind("\n", 0, start - 1) + 1
            if not self._text[before:start].lstrip().startswith("#"):
                break
            start = before
        return start

    def _drop_in_flow(self, pairs: list[tuple[yaml.ScalarNode, yaml.Node]], index: int) -> None:
        key, node = pairs[index]
        if index > 0:
            start, end = self._end(pairs[index - 1][1]), self._end(node)
            self._splice(start, end, self._comments_in(start, key.start_mark.index))
        elif len(pairs) > 1:
            start, end = key.start_mark.index, pairs[1][0].start_mark.index
            self._splice(start, end, self._comments_in(self._end(node), end).lstrip(" "))
        else:
            self._splice(key.start_mark.index, self._end(node), "")

    def _comments_in(self, start: int, end: int) -> str:
        """Return the text between two pairs of a flow map without its comma, if it contains a comment."""
        between = self._text[start:end]
        return between.replace(",", "", 1) if "#" in between else ""

    def _drop_line(self, pairs: list[tuple[yaml.ScalarNode, yaml.Node]], index: int) -> None:
        key, node = pairs[index]
        start = self._text.rfind("\n", 0, key.start_mark.index) + 1
        after = self._line_end(self._end(node))
        comment = self._text[self._end(node) : after].strip()
        indent = " " * key.start_mark.column
        head = self._text[start : key.start_mark.index]
        if len(pairs) == 1:  # an empty map would become null, which removes the defaults below
            self._splice(key.start_mark.index, self._end(node), "{}")
        elif head.strip() and index + 1 < len(pairs):  # `- newImage: x`: the next key moves up to this line
            following = pairs[index + 1][0].start_mark.index
            between = self._text[self._end(node) : following].strip()
            lines = [f"{head[: len(head) - len(head.lstrip())]}{each.strip()}" for each in between.splitlines()]
            above = "".join(each + self._newline() for each in lines if each.strip())
            self._splice(start, following, above + head)
        elif comment:
            self._splice(start, after, indent + comment)
        else:
            self._splice(start, min(len(self._text), self._text.find("\n", after) + 1 or len(self._text)), "")

    def _end(self, node: yaml.Node) -> int:
        """Return the end of a value, without the white space and comments after it."""
        if isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
            last = node.value[-1]
            if isinstance(node, yaml.MappingNode):
                key, value = last
                return max(int(key.end_mark.index), self._end(value))
            return self._end(last)
        end = int(node.end_mark.index)
        if isinstance(node, yaml.ScalarNode) and node.style in _BLOCK_STYLES:
            end = len(self._text[:end].rstrip())
        return end

    def _line_end(self, index: int) -> int:
        found = self._text.find("\n", index)
        if found < 0:
            return len(self._text)
        return found - 1 if self._text[found - 1] == "\r" else found

    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self._text else "\n"

    def _splice(self, start: int, end: int, new: str) -> None:
        self._text = self._text[:start] + new + self._text[end:]

    def _mapping(self, path: Path) -> yaml.MappingNode:
        node: yaml.Node | None = self.model.node
        for key in path[:-1]:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
            elif isinstance(node, yaml.MappingNode):
                node = next((value for text, _, value in reading.pairs(node) if text == key), None)
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise self._refusal(path)
        return node

    def _values(self) -> Any:
        """Return the wanted values, within the wanted content of the whole text."""
        return look(self._wanted[self.model.document], *self.model.prefix)

    def _documents(self) -> list[Any]:
        nodes = reading.compose(self._text, self._source)
        return [copy.deepcopy(reading.data(node, self._source)) for node in nodes]

    def _check(self, path: Path) -> None:
        """Check that the result has the wanted content and that nothing else changed."""
        try:
            same = self._documents() == self._wanted
        except OnboardingError:
            same = False
        if not same:
            raise self._refusal(path)
        self.model = self._find(self._text)

    def _refusal(self, path: Path) -> OnboardingError:
        return OnboardingError(
            f"{self._source}: {spell(path)} can't be edited here without changing something else "
            "(an anchor, a merge, keys with a question mark?): edit it by hand"
        )


def _assign(values: Any, path: Path, value: Scalar) -> None:
    for key in path[:-1]:
        values = values[key] if isinstance(key, int) else values.setdefault(key, {})
    values[path[-1]] = value


def _written(value: Scalar, style: str, *, flow: bool) -> str:
    """Return a scalar as YAML in the quotes of its neighbour; without quotes only if it stays text."""
    if isinstance(value, int):
        return str(value)
    if style == "'":
        return "'" + value.replace("'", "''") + "'"
    plain = (
        _PLAIN.fullmatch(value) and not value.endswith(":") and not (flow and ":" in value and "//" not in value)
    )
    if style != '"' and plain and reading.data(reading.compose(f"k: {value}", value)[0], value) == {"k": value}:
        return value
    return json.dumps(value, ensure_ascii=False)
