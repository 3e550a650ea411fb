"""Explain the chart's schema errors in words for the author of the values."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from extproc.onboarding.charts import defaults, schema, schema_of
from extproc.onboarding.errors import PartMissing
from extproc.onboarding.layering import Path, layered, spell
from extproc.onboarding.problem import Problem, error, warning

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_TYPES: Final = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "null",
}
LATER: Final = "is filled in later: it is not checked"
_NOT_READ: Final = ("global", "kserve-lib")  # Helm adds these for every chart
_BOUNDS: Final = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


def problems(chart: str, values: Mapping[str, Any]) -> list[Problem]:
    """Return the problems in the order of their paths. Raise `PartMissing`."""
    try:
        from jsonschema import Draft7Validator
    except ImportError:
        raise PartMissing("jsonschema is missing: pip install 'tokenweir[models]'") from None
    accepted = schema(chart)
    found = Draft7Validator(accepted).iter_errors(layered(defaults(chart), values))
    ordered = sorted(found, key=lambda each: [str(key) for key in each.absolute_path])
    # A value of the wrong type gets that message only, and not also that of a wrong choice.
    mistyped = {tuple(each.absolute_path) for each in ordered if each.validator == "type"}
    ordered = [each for each in ordered if each.validator == "type" or tuple(each.absolute_path) not in mistyped]
    return list(dict.fromkeys(problem for each in ordered for problem in _told(each, chart)))


def _told(wrong: "ValidationError", chart: str) -> Iterator[Problem]:
    path: Path = tuple(wrong.absolute_path)
    meant = str(schema_of(chart, path).get("description", ""))
    value, bound = wrong.instance, wrong.validator_value
    where = spell(path)
    if isinstance(value, str) and re.fullmatch(r"\$\{[^}]*\}", value):
        yield warning(where, f"{value} {LATER}", "check what Flux makes of it")
    elif wrong.validator == "additionalProperties" and isinstance(value, dict) and bound is False:
        listed = wrong.schema.get("properties", {}) if isinstance(wrong.schema, dict) else {}
        known = [each for each in listed if path or each not in _NOT_READ]
        for key in (each for each in value if each not in listed):
            yield error(spell((*path, key)), "there is no such value", _place(key, path, known, schema(chart)))
    elif wrong.validator == "required" and isinstance(value, dict):
        for key in (each for each in _texts(bound) if each not in value):
            yield error(where, f"'{key}' is missing", f"give {spell((*path, key))}")
    elif wrong.validator == "type":
        yield _type(where, value, [bound] if isinstance(bound, str) else _texts(bound), meant)
    else:
        yield _out_of_bounds(where, wrong, meant)


def _out_of_bounds(where: str, wrong: "ValidationError", meant: str) -> Problem:
    rule, value, bound = str(wrong.validator), wrong.instance, wrong.validator_value
    if rule == "enum":
        choices = _texts(bound)
        near = difflib.get_close_matches(str(value), [each for each in choices if each], 1)
        fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(each or repr('') for each in choices)}"
        return error(where, f"{_shown(value)} is none of the choices", fix)
    if rule in _BOUNDS:
        return error(where, f"{_shown(value)} is out of bounds", f"{_BOUNDS[rule]} {bound}")
    if rule in {"minLength", "minItems"}:
        return error(where, "is empty", "give one, or leave the value out")
    if rule in {"maxLength", "maxItems"} and isinstance(value, (str, list)):
        what = "characters" if rule == "maxLength" else "entries"
        return error(where, f"has {len(value)} {what}", f"{bound} {what} at the most")
    if rule == "pattern":
        return error(where, f"{_shown(value)} has not the form that is needed", meant or f"it must match {bound}")
    return error(where, wrong.message[:300], meant)


def _type(where: str, value: object, wanted: list[str], meant: str) -> Problem:
    needed = " or ".join(_TYPES.get(each, each) for each in wanted)
    shown = "it" if value is None else _shown(value)
    message = f"{shown} is {_TYPES[_type_of(value)]}; it must be {needed}"
    numeric = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?", value)
    if numeric and {"integer", "number"} & set(wanted):
        fix = f"without quotes: {value}"
    elif isinstance(value, str) and "boolean" in wanted:
        fix = "true or false, without quotes"
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)? ?%", value):
        fix = f"without the percent sign: {value.rstrip('% ')}"
    elif "string" in wanted and isinstance(value, (int, float)):
        fix = "in quotes, as it is written in the file"
    elif "array" in wanted and not isinstance(value, (dict, list)):
        fix = f"a list: [{value}]"
    else:
        fix = "leave it out" if value is None else meant
    return error(where, message, fix)


def _type_of(value: object) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line is enough


def _texts(values: object) -> list[str]:
    return [str(each) for each in values] if isinstance(values, Iterable) else []


def _place(key: str, path: Path, known: list[str], accepted: Mapping[str, Any]) -> str:
    """Guess the right place of a key that is not in the schema."""
    elsewhere = [each for each in _places(accepted) if each[-1] == key and each[:-1] != path]
    near = difflib.get_close_matches(key.lower(), [each.lower() for each in known], 1, 0.75)
    if elsewhere:
        return f"it belongs at {' or '.join(spell(each) for each in elsewhere[:3])} (look at the indentation)"
    if near:
        meant = next(each for each in known if each.lower() == near[0])
        return f"did you mean {spell((*path, meant))}?"
    far = difflib.get_close_matches(key, [str(each[-1]) for each in _places(accepted)], 1, 0.85)
    if far:
        meant_at = next(each for each in _places(accepted) if each[-1] == far[0])
        return f"did you mean {spell(meant_at)}?"
    return f"there are {', '.join(known)}" if known else "take it out"


def _places(accepted: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    """Yield every key that the schema names, except in free-form maps and lists."""
    for key, inner in accepted.get("properties", {}).items():
        yield (*above, key)
        yield from _places(inner, (*above, key))
