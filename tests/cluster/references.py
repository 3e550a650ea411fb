"""What objects of a release name or select, looked up among all that a cluster has.

A release has a name that nothing else has. So a text in one of its objects that has this name in it, or the
namespace's, names something: either a rule below looks that up, or `unknown` reports it. The same holds for a map that
selects by labels. A new kind of reference is found that way before anybody thinks of a rule for it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.charts.helm import Document

from .world import World

# Keys of maps that choose objects by their labels.
SELECTS = (
    "selector",
    "workloadSelector",
    "podSelector",
    "namespaceSelector",
    "labelSelector",
    "matchLabels",
    "targetRef",
)
# What begins like this in a path says what an object is, and refers to nothing.
_OWN = re.compile(r"^\w+:(apiVersion|kind|status|metadata\.(name|namespace|labels)\b)")


class Node(NamedTuple):
    """A value in an object: `path` is `Kind:field.field[].field`."""

    owner: Document
    path: str
    value: Any

    @property
    def namespace(self) -> str:
        return str(self.owner["metadata"].get("namespace", ""))

    def __str__(self) -> str:
        return f"{self.owner['kind']}/{self.owner['metadata']['name']} {self.path.partition(':')[2]}"


Rule = Callable[[World, Node], str]


def faults(world: World, objects: list[Document], rules: dict[str, Rule]) -> list[str]:
    """Return what leads nowhere, and what no rule explains; one line each.

    The key of a rule is a regular expression for whole paths. The first one that fits decides about the value and all
    that is in it; its answer is what is wrong, "" where nothing is.
    """
    compiled = [(re.compile(pattern), rule) for pattern, rule in rules.items()]
    return [f"{node}: {wrong}" for each in objects for node, wrong in _judged(world, each, compiled) if wrong]


def _judged(
    world: World, owner: Document, rules: list[tuple[re.Pattern[str], Rule]]
) -> Iterator[tuple[Node, str]]:
    waiting = [Node(owner, f"{owner['kind']}:{name}", value) for name, value in owner.items()]
    while waiting:
        node = waiting.pop()
        if _OWN.match(node.path):
            continue
        rule = next((rule for pattern, rule in rules if pattern.fullmatch(node.path)), None)
        if rule:
            yield node, rule(world, node)
        elif isinstance(node.value, dict):
            if node.path.rpartition(".")[2] in SELECTS and node.value:
                yield node, f"selects {node.value}, and no rule says what"
            waiting += [Node(owner, f"{node.path}.{name}", value) for name, value in node.value.items()]
        elif isinstance(node.value, list):
            waiting += [Node(owner, f"{node.path}[]", value) for value in node.value]
        else:
            yield node, unknown(world, node)


def unknown(world: World, node: Node) -> str:
    """Report a text that names the release or its namespace: no rule knows it."""
    if isinstance(node.value, str) and (world.release in node.value or world.namespace in node.value):
        return f"{node.value!r} names something of the release, and no rule says what"
    return ""


def own(_world: World, _node: Node) -> str:
    """Accept a name that is given here, and refers to nothing."""
    return ""
