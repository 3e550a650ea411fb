"""Turn the chart's schema into sections, groups and fields, each with a control for its type.

No key of the charts is named here: a new key in values.yaml is a new field. (`essentials` does name keys.)
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from extproc.onboarding.layering import look
from extproc.onboarding.ui.essentials import SUGGESTIONS

Schema = Mapping[str, Any]

GENERAL: Final = "general"
_LONG: Final = 512  # characters from which a text gets a wide control
_ACRONYMS: Final = ("api", "cpu", "gpu", "ip", "jwt", "sa", "uri", "url", "ttl", "id")
_COMPOUNDS: Final = {"inferenceservice": "inference service", "ratelimit": "rate limit"}
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


class Field(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Describe one control. `control` is switch, choice, number, slider, text, lines, rows, pairs or yaml.

    `choices` may have null, true and false among texts. `keys` are the names that a free-form value may have.
    """

    path: str
    label: str
    control: str
    help: str = ""
    default: Any = None
    has_default: bool = True
    types: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    long: bool = False
    listed: bool = False
    columns: tuple["Field", ...] = ()
    keys: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """Group the fields of one map."""

    path: str
    label: str
    help: str
    fields: tuple[Field, ...]


class Section(msgspec.Struct, frozen=True):
    """Describe the section of one top-level key; `general` has all keys that are no maps."""

    name: str
    label: str
    help: str
    groups: tuple[Group, ...]


def sections(schema: Schema, defaults: Mapping[str, Any]) -> list[Section]:
    """Return all of the chart's values. A top-level key without a default (`global`) is not the chart's.

    `defaults` may differ from those in the schema: the platform's defaults override the chart's.
    """
    definitions = schema.get("definitions", {})
    top = {key: _resolved(each, definitions) for key, each in schema["properties"].items() if key in defaults}
    plain = {key: each for key, each in top.items() if not _is_closed(each)}
    found = []
    if plain:
        fields = tuple(field(key, each, definitions) for key, each in plain.items())
        found.append(Section(GENERAL, "General", "", (Group("", "General", "", fields),)))
    for key, each in top.items():
        if key not in plain:
            groups = tuple(_groups(key, each, definitions))
            found.append(Section(key, label(key), each.get("description", ""), groups))
    return [_settled(section, defaults) for section in found]


def _settled(section: Section, defaults: Mapping[str, Any]) -> Section:
    groups = []
    for group in section.groups:
        settled = []
        for each in group.fields:
            default = look(defaults, *each.path.split("."))
            known = SUGGESTIONS.get(each.path, ())
            has_default = each.has_default or default is not None
            settled.append(replace(each, default=default, has_default=has_default, suggestions=known))
        groups.append(replace(group, fields=tuple(settled)))
    return replace(section, groups=tuple(groups))


def fields(found: list[Section]) -> dict[str, Field]:
    """Return all fields by path."""
    return {each.path: each for section in found for group in section.groups for each in group.fields}


def _groups(path: str, schema: Schema, definitions: Schema) -> Iterator[Group]:
    inner = {key: _resolved(each, definitions) for key, each in schema["properties"].items()}
    own = tuple(field(f"{path}.{key}", each, definitions) for key, each in inner.items() if not _is_closed(each))
    if own:
        yield Group(path, label(path.rpartition(".")[2]), schema.get("description", ""), own)
    for key, each in inner.items():
        if _is_closed(each):
            yield from _groups(f"{path}.{key}", each, definitions)


def field(path: str, schema: Schema, definitions: Schema) -> Field:
    """Return the field of one value."""
    schema = _resolved(schema, definitions)
    name = path.rpartition(".")[2]
    types = _types(schema)
    items = _resolved(schema.get("items", {}), definitions) if "array" in types else {}
    control = _control(schema, types, items, definitions)
    columns = (
        tuple(field(key, each, definitions) for key, each in items["properties"].items())
        if control == "rows"
        else ()
    )
    return Field(
        path=path,
        label=label(name),
        control=control,
        help=schema.get("description", ""),
        default=schema.get("default"),
        has_default="default" in schema,
        types=types,
        choices=_choices(schema, types) if control == "choice" else (),
        minimum=schema.get("minimum", schema.get("exclusiveMinimum")),
        maximum=schema.get("maximum", schema.get("exclusiveMaximum")),
        long=schema.get("maxLength", 0) >= _LONG,
        listed="array" in types,
        columns=columns,
        keys=tuple((items or schema).get("properties", ())) if control == "yaml" else (),
    )


def _control(schema: Schema, types: tuple[str, ...], items: Schema, definitions: Schema) -> str:
    if "enum" in schema or types == ("boolean", "null"):
        return "choice"
    if types == ("boolean",):
        return "switch"
    if "array" in types:
        if _types(items) == ("string",):
            return "lines"
        inner = [_resolved(each, definitions) for each in items.get("properties", {}).values()]
        return "rows" if inner and _is_closed(items) and all(_is_scalar(each) for each in inner) else "yaml"
    if "object" in types:
        values = schema.get("additionalProperties")
        return "pairs" if isinstance(values, Mapping) and _is_scalar(_resolved(values, definitions)) else "yaml"
    if not set(types) & {"string", "boolean"}:
        percent = types == ("integer",) and (schema.get("minimum"), schema.get("maximum")) == (0, 100)
        return "slider" if percent else "number"
    return "text"


def _choices(schema: Schema, types: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(schema["enum"]) if "enum" in schema else (None, True, False) if "null" in types else (True, False)


def _types(schema: Schema) -> tuple[str, ...]:
    found = schema.get("type", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _is_scalar(schema: Schema) -> bool:
    types = set(_types(schema))
    return bool(types) and types <= {"string", "integer", "number", "boolean", "null"}


def _is_closed(schema: Schema) -> bool:
    return (
        _types(schema) == ("object",)
        and bool(schema.get("properties"))
        and not schema.get("additionalProperties", True)
    )


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Return the schema with its reference resolved; its own keywords override the reference."""
    for each in schema.get("allOf", ()):
        name = each.get("$ref", "").removeprefix("#/definitions/")
        if name in definitions:
            schema = {**_resolved(definitions[name], definitions), **schema}
    return schema


def label(key: str) -> str:
    """Turn `targetCPUUtilizationPercentage` into `Target CPU utilization percentage`."""
    words = [word.upper() if word.lower() in _ACRONYMS else word.lower() for word in _WORDS.findall(key)]
    words = [_COMPOUNDS.get(word, word) for word in words]
    text = " ".join(words) or key
    return text[:1].upper() + text[1:]
