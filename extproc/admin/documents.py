"""Interpret a tenant's document: its fields, the limits that they make, and the fields that can't be used."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from extproc.admin.errors import AdminError
from extproc.core.quota.binding import Policy
from extproc.core.quota.fields import FieldError
from extproc.core.quota.limits import Limit, Unit
from extproc.core.quota.policies import (
    BadDocument,
    Defaults,
    DocumentMode,
    limits_from,
    policy_from,
)
from extproc.core.quota.policies import one_form as item_in_one_form
from extproc.core.request.identity import is_name
from extproc.ports.documents import AMOUNTS, Document


@dataclass(frozen=True, slots=True)
class Source:
    """Hold a limit, the account that it binds (None: all), and the field that it comes from (None: the
    defaults).
    """

    limit: Limit
    whose: str | None
    field: str | None


_LABELS_AT_MOST: Final = 64


def refuse_labels(document: Document) -> None:
    """Raise `AdminError` if labels, or who manages the document, are no names."""
    labels = document.get("labels")
    if labels is not None and not (
        isinstance(labels, Mapping)
        and len(labels) <= _LABELS_AT_MOST
        and all(isinstance(text, str) and is_name(text) for pair in labels.items() for text in pair)
        and not any(set("=.$") & set(name) for name in labels)
    ):
        raise AdminError(
            f"'labels' must be an object of at most {_LABELS_AT_MOST} names without '=', '.' and '$', each with a "
            "printable text"
        )
    manager = document.get("managed_by")
    if manager is not None and not (isinstance(manager, str) and is_name(manager)):
        raise AdminError("'managed_by' must be a printable text")


def merged(document: Document, changes: Document) -> dict[str, object]:
    """Return the document with the changes; a field that is None is removed."""
    return {name: value for name, value in {**document, **changes}.items() if value is not None}


def one_form(document: Document) -> dict[str, object]:
    """Return the document with the parts of every scope in the order in which they are stored."""
    found = dict(document)
    for name, inner in _HAVE_SCOPES.items():
        value = found.get(name)
        if isinstance(value, Mapping):
            found[name] = inner(value)
        elif isinstance(value, (list, tuple)):
            found[name] = [inner(each) if isinstance(each, Mapping) else each for each in value]
    return found


# The parts of a document in which scopes are, with what brings each of them, or of their items, into one form.
_HAVE_SCOPES: Final[Mapping[str, Callable[[Document], Document]]] = {
    "limits": item_in_one_form,
    "top_ups": item_in_one_form,
    "service_accounts": one_form,
    "unknown_service_accounts": one_form,
}


def unusable_field(bad: BadDocument) -> str:
    """Return the top-level field that a message is about."""
    found = re.match(r"'([^'.\[]+)", bad.message)
    return found[1] if found is not None else "tenant_id"


def usable_part(document: Document, defaults: Defaults) -> dict[str, object]:
    """Return the document without the fields that can't be used."""
    rest = dict(document)
    while isinstance(bad := policy_from(rest, defaults), BadDocument):
        if rest.pop(unusable_field(bad), None) is None:
            break
    return rest


def own_limits(document: Document) -> tuple[Limit, ...]:
    """Return the document's own limits without those of single service accounts; none if they can't be read."""
    try:
        return limits_from(document)
    except FieldError:
        return ()


def keeps_defaults_away(document: Document) -> bool:
    """Return whether the default token limits do not apply to the document, as in `policy_from`.

    The defaults do not apply if the document has a token limit of its own that binds all requests, or says that
    there is none. An edit must not change this as a side effect.
    """
    whole_shadow = document.get("mode") == DocumentMode.SHADOW
    return document.get("unlimited") is True or any(
        limit.is_general and limit.unit is not Unit.REQUESTS and (whole_shadow or not limit.shadow)
        for limit in own_limits(document)
    )


def sources(document: Document, policy: Policy) -> list[Source]:
    """Return every limit that can bind, with its source."""
    own = {limit.kind: name for name, limit in _fields(document)}
    found = [Source(limit, None, own.get(limit.kind)) for limit in policy.limits]
    accounts = document.get("service_accounts")
    for number, item in enumerate(accounts if isinstance(accounts, (list, tuple)) else ()):
        path = f"service_accounts[{number}]."
        found += [Source(limit, str(item["name"]), path + name) for name, limit in _fields(_under(document, item))]
    others = document.get("unknown_service_accounts")
    if isinstance(others, Mapping):
        path = "unknown_service_accounts."
        found += [Source(limit, "(others)", path + name) for name, limit in _fields(_under(document, others))]
    return found


def limit_of(document: Document, item: Document) -> Limit | None:
    """Return the limit of an item of `limits` in its document; None if it can't be read."""
    try:
        return limits_from(_under(document, {"limits": [item]}))[0]
    except FieldError:
        return None


def _under(document: Document, item: Document) -> dict[str, object]:
    """Return an inner part, with the mode of the whole document if it has none of its own."""
    names = ("mode", "shadows")
    above = {} if item.get("mode") is not None else {name: document.get(name) for name in names}
    return {**item, **above}


def _fields(document: Document) -> list[tuple[str, Limit]]:
    """Return the limits that a document names, with the field of each."""
    names = [name for name in AMOUNTS if document.get(name) is not None]
    items = document.get("limits")
    names += [f"limits[{number}]" for number in range(len(items) if isinstance(items, (list, tuple)) else 0)]
    found = own_limits(document)
    return list(zip(names, found, strict=True)) if found else []
