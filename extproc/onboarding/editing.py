"""Edit a YAML text in place: set, remove or replace values, and leave everything else as it is.

The positions come from the parser. The text around an edit stays byte for byte, including comments, order,
quotes, indentation and line ends. The result is parsed again to check the edit. If anything but the wanted value
changed (by an anchor, a merge key, an unusual layout), the edit is refused and the text stays unchanged.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from extproc.onboarding import files, reading
from extproc.onboarding.dumping import dump, inline, same
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.files import BOM, Model
from extproc.onboarding.layering import Path, look, spell
from extproc.onboarding.layout import Cut, Layout, NoPlaceError, Pair, in_lines, pairs_of


class Editor:
    """Edit one model's values in a text. `text` and `model` are the present result."""

    def __init__(self, text: str, source: str, chart: str | None = None, release: str | None = None) -> None:
        """Find the model in the text. Raise `OnboardingError` if the text has no such model."""
        self._bom = BOM if text.startswith(BOM) else ""
        self._layout = Layout(text.removeprefix(BOM))
        self._source = source
        self._find: Callable[[str], Model] = lambda now: files.one(now, source, chart, release)
        self._documents = self._read(self._layout.text)
        self.model = self._find(self._layout.text)

    @property
    def text(self) -> str:
        return self._bom + self._layout.text

    def put(self, path: Path, value: Any, *, beside: tuple[str, ...] = (), before: str = "") -> None:
        """Set a value. Raise `OnboardingError` if the edit is refused.

        A new key is put above the key `before` and its comments, but never above a file's header comment. If that
        is not possible, it is put below the first existing key of `beside`, or at the end of its map.
        """

        def assign(values: Any) -> None:
            for key in path[:-1]:
                values = values[key] if isinstance(key, int) else values.setdefault(key, {})
            values[path[-1]] = value

        def cuts() -> list[Cut]:
            parent, name = self._mapping(path), str(path[-1])
            pairs = pairs_of(parent)
            if name in pairs:
                return self._replaced(parent, pairs[name], value)
            if before in pairs and (above := self._above(parent, pairs[before][0])) is not None:
                return [Cut(above, above, self._lines({name: value}, pairs[before][0].start_mark.column))]
            near = next((pairs[each] for each in (*beside, before) if each in pairs), parent.value[-1])
            return [self._below(parent, near, name, value)]

        self._apply(path, assign, cuts)

    def drop(self, path: Path) -> None:
        """Remove a key if it exists. A comment beside a scalar stays, on a line of its own.

        Raise `OnboardingError` if the edit is refused.
        """
        *above, name = path
        if name not in (look(self.model.values, *above) or {}):
            return

        def cuts() -> list[Cut]:
            parent = self._mapping(path)
            found = pairs_of(parent).get(str(name))
            if found is None:  # by a merge
                raise NoPlaceError
            index = parent.value.index(found)
            without = self._without_in_flow if parent.flow_style else self._without_line
            return [without(parent.value, index)]

        self._apply(path, lambda values: look(values, *above).pop(name), cuts)

    def become(self, values: dict[str, Any]) -> None:
        """Set, add and remove keys until the values are `values`.

        Raise `OnboardingError` if an edit is refused; the edits before it stay.
        """
        old = self.model.values
        if same(old, values):
            return
        if old.keys() & values.keys() or self.model.helmrelease:
            self._become_map((), old, values)
            return

        def assign(root: dict[str, Any]) -> None:
            root.clear()
            root.update(values)

        def cuts() -> list[Cut]:
            layout, root = self._layout, self.model.node
            start, end = layout.line_start(root.start_mark.index), layout.line_after(layout.end(root))
            return [Cut(start, end, self._lines(values, 0))]

        self._apply((), assign, cuts)

    def _become_map(self, path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
        if not old.keys() & new.keys():
            raise self._refusal(path)
        for name in [name for name in old if name not in new]:
            self.drop((*path, name))
        for name, value in new.items():
            if name in old and not same(old[name], value):
                self._become((*path, name), old[name], value)
        for name, value in new.items():
            if name not in old:
                self.put((*path, name), value)

    def _become(self, path: Path, old: Any, new: Any) -> None:
        """Edit the value at a path in parts; if that is refused, write the whole value anew."""
        done = self._layout, self._documents, self.model
        try:
            if isinstance(old, dict) and isinstance(new, dict):
                self._become_map(path, old, new)
            elif isinstance(old, list) and isinstance(new, list):
                self._become_list(path, old, new)
            else:
                self.put(path, new)
        except OnboardingError:
            self._layout, self._documents, self.model = done
            self.put(path, new)

    def _become_list(self, path: Path, old: list[Any], new: list[Any]) -> None:
        """Replace the items between the common start and the common end of both lists."""
        first = _shared(old, new)
        last = _shared(old[first:][::-1], new[first:][::-1])

        def assign(values: Any) -> None:
            look(values, *path)[:] = new

        def cuts() -> list[Cut]:
            node = pairs_of(self._mapping(path))[str(path[-1])][1]
            if not in_lines(node) or not new:
                raise NoPlaceError
            gone = node.value[first : len(old) - last]
            items = self._lines(new[first : len(new) - last], node.start_mark.column)
            if gone:
                start = self._layout.first_in_line(gone[0].start_mark.index, "-")
                return [Cut(start, self._layout.line_after(self._layout.end(gone[-1])), items)]
            if first:
                return [self._layout.below(self._layout.end(node.value[first - 1]), items)]
            start = self._layout.line_start(node.start_mark.index)
            return [Cut(start, start, items)]

        self._apply(path, assign, cuts)

    # ------------------------------------------------ cuts

    def _replaced(self, parent: yaml.MappingNode, pair: Pair, value: Any) -> list[Cut]:
        key, node = pair
        layout, start, end = self._layout, node.start_mark.index, self._layout.end(node)
        if start < key.end_mark.index:  # an alias
            raise NoPlaceError
        flow, short = bool(parent.flow_style), value in ({}, []) or not isinstance(value, (dict, list))
        written = inline(value, _quote(node), flow=flow) if flow or short else ""
        if flow or (short and not in_lines(node)):
            space = " " if layout.text[start - 1 : start] == ":" else ""
            return [Cut(start, end, space + written)]
        colon = layout.text.index(":", key.end_mark.index) + 1
        block = "" if short else self._lines(value, key.start_mark.column + 2)
        if not in_lines(node):
            return [Cut(colon, max(end, colon)), layout.below(max(end, colon), block)]
        lines = layout.first_in_line(start)
        cuts = [Cut(lines, layout.line_after(end), block)]
        return [*cuts, Cut(colon, colon, f" {written}")] if short else cuts

    def _below(self, parent: yaml.MappingNode, near: Pair, name: str, value: Any) -> Cut:
        key, node = near
        end = max(self._layout.end(node), int(key.end_mark.index))
        if parent.flow_style:
            pair = f"{inline(name, _quote(key), flow=True)}: {inline(value, _quote(node), flow=True)}"
            return Cut(end, end, f", {pair}")
        block = dump({name: value})
        if isinstance(value, str) and block.count("\n") == 1:
            block = f"{inline(name, _quote(key))}: {inline(value, _quote(node))}\n"
        return self._layout.below(end, self._layout.lines(block, key.start_mark.column))

    def _above(self, parent: yaml.MappingNode, key: yaml.ScalarNode) -> int | None:
        """Return the place above a key and its comments; None in a flow map, and below a file's header comment."""
        start = self._layout.line_start(key.start_mark.index)
        above = self._layout.comments_above(start)
        head = key is parent.value[0][0] and above != start
        behind = self._layout.text[start : key.start_mark.index].strip()
        return None if parent.flow_style or head or behind else above

    def _without_in_flow(self, pairs: list[Pair], index: int) -> Cut:
        key, node = pairs[index]
        end = self._layout.end(node)
        if index > 0:
            start = self._layout.end(pairs[index - 1][1])
            return Cut(start, end, self._comments_in(start, key.start_mark.index))
        start = key.start_mark.index
        if len(pairs) == 1:
            return Cut(start, end)
        following = pairs[1][0].start_mark.index
        return Cut(start, following, self._comments_in(end, following).lstrip(" "))

    def _comments_in(self, start: int, end: int) -> str:
        """Return the text between two pairs of a flow map without its comma, if it contains a comment."""
        between = self._layout.text[start:end]
        return between.replace(",", "", 1) if "#" in between else ""

    def _without_line(self, pairs: list[Pair], index: int) -> Cut:
        key, node = pairs[index]
        layout, end = self._layout, max(self._layout.end(node), int(key.end_mark.index))
        if len(pairs) == 1:  # nothing at all would be a null, which takes away what is beneath
            return Cut(key.start_mark.index, end, "{}")
        start, after = layout.line_start(key.start_mark.index), layout.line_end(end)
        head, comment = layout.text[start : key.start_mark.index], layout.text[end:after].strip()
        if head.strip() and index + 1 < len(pairs):  # `- newImage: x`: the next key takes its place in the line
            following = pairs[index + 1][0].start_mark.index
            between = layout.text[end:following].strip()
            column = len(head) - len(head.lstrip())
            above = "".join(each.strip() + "\n" for each in between.splitlines() if each.strip())
            return Cut(start, following, layout.lines(above, column) + head)
        if comment and not in_lines(node):
            return Cut(start, after, " " * key.start_mark.column + comment)
        return Cut(start, layout.line_after(end))

    def _lines(self, value: Any, column: int) -> str:
        return self._layout.lines(dump(value), column) if value else ""

    # ------------------------------------------------ the result

    def _apply(self, path: Path, change: Callable[[Any], object], cuts: Callable[[], list[Cut]]) -> None:
        """Cut the text. Accept the result only if its documents are the present ones with the change."""
        wanted = copy.deepcopy(self._documents)
        change(look(wanted[self.model.document], *self.model.prefix))
        try:
            text = self._layout.cut(cuts())
            documents = self._read(text)
            if not same(documents, wanted):
                raise NoPlaceError
            model = self._find(text)
        except (OnboardingError, ValueError):
            raise self._refusal(path) from None
        self._layout, self._documents, self.model = Layout(text), documents, model

    def _read(self, text: str) -> list[Any]:
        return [reading.data(node, self._source) for node in reading.compose(text, self._source)]

    def _mapping(self, path: Path) -> yaml.MappingNode:
        node: yaml.Node | None = self.model.node
        for key in path[:-1]:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
            else:
                pairs = pairs_of(node) if isinstance(node, yaml.MappingNode) else {}
                node = pairs[str(key)][1] if key in pairs else None
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise NoPlaceError
        return node

    def _refusal(self, path: Path) -> OnboardingError:
        return OnboardingError(
            f"{self._source}: {spell(path) or 'the values'} can't be edited here without changing something else "
            "(an anchor, a merge, keys with a question mark?): edit it by hand"
        )


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the number of items that two lists both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if not same(a, b)), min(len(one), len(other)))


def _quote(node: yaml.Node) -> str:
    """Return the quotes of a scalar: ', " or none."""
    return node.style if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') else ""
