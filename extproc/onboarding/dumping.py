"""Write values as YAML that Helm reads unchanged: text that Go's YAML would misread is quoted."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from extproc.onboarding import reading
from extproc.onboarding.errors import OnboardingError

# A subset of YAML's plain text: anything else is quoted, which is always correct.
_PLAIN = re.compile(r"(?:[\w./$+]|-(?=[\w-]))(?:[\w./$+@%=~*()!;,'\"|<>-]|:(?=[\w/])|[{} ](?=\S))*", re.ASCII)
_NOT_IN_FLOW: Final = re.compile(r"[][{},?]|:(?!//)")
_TEXT: Final = "tag:yaml.org,2002:str"


class _Dumper(yaml.SafeDumper):
    """Indent lists below their key, and use no aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - none: each scalar is looked at here

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _scalar(dumper: yaml.SafeDumper, value: Any) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, json.dumps(value))


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style=_style(text)))
for _type in (bool, int, float, type(None)):
    _Dumper.add_representer(_type, _scalar)


def _style(text: str) -> str | None:
    if "\n" in text and not text.startswith((" ", "\n")) and "\t" not in text and " \n" not in text:
        return "|"
    return None if _may_be_plain(text) else '"'


def _may_be_plain(text: str) -> bool:
    if not _PLAIN.fullmatch(text) or text.startswith(("---", "...")):
        return False
    try:
        return bool(means(text) == text)
    except OnboardingError:  # `.inf` is no number for Helm
        return False


def means(text: str) -> Any:
    """Return one YAML document as data. Raise `OnboardingError`, which names the line."""
    documents = reading.compose(text, "the text")
    if len(documents) > 1:
        raise OnboardingError("the text: several YAML documents")
    return reading.data(documents[0], "the text") if documents else None


def dump(value: Any) -> str:
    """Return the value as block YAML; an empty map is empty text."""
    if value == {}:
        return ""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31, default_flow_style=False
    )
    return text.removesuffix("...\n")


def inline(value: Any, quote: str = "", *, flow: bool = False) -> str:
    """Return the value as YAML on one line.

    A text gets the quotes `quote`. Without `quote` it is plain if plain text reads the same. `flow`: the value
    stands in a flow map or list.
    """
    if isinstance(value, str):
        if quote == "'" and value.isprintable():
            return "'" + value.replace("'", "''") + "'"
        plain = not quote and _may_be_plain(value) and not (flow and _NOT_IN_FLOW.search(value))
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(inline(each, flow=True) for each in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{inline(key, flow=True)}: {inline(each, flow=True)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value)


def same(one: Any, other: Any) -> bool:
    """Return whether Helm sees no difference: true is not 1, but 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
