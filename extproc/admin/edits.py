"""Compute changes of a tenant's document: the present document -> the fields to write (None: remove). Pure
functions.

Each raises `AdminError` if the change is impossible.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from extproc.admin.documents import limit_of
from extproc.admin.errors import AdminError, NotFoundError
from extproc.core.quota.fields import FieldError, Fields
from extproc.core.quota.limits import Limit, Scope, Unit, Window
from extproc.core.request.endpoints import Endpoint
from extproc.ports.documents import Document

Changes = dict[str, object]
Edit = Callable[[Document], Changes]

# The fields that `tenant set` writes.
SETTABLE: Final = (
    "sa_limit", "ip_limit", "ratelimitEachSAPerMinute", "ratelimitIPPerMinute", "mode", "shadows", "timezone",
    "min_output_tokens", "unlimited", "on_store_failure", "labels", "note",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selector:
    """Select general limits of a document: those that match in all of these parts. `mode` None: any mode."""

    scope: Scope
    window: Window
    unit: Unit = Unit.TOKENS
    model: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    mode: str | None = None

    def selects(self, document: Document, item: Document) -> bool:
        limit = limit_of(document, item)
        return limit is not None and self._of(limit) and self.mode in (None, mode_of(limit))

    def _of(self, limit: Limit) -> bool:
        own = (self.scope, self.window, self.unit, self.model, tuple(sorted(self.endpoints)))
        return own == (limit.scope, limit.window, limit.unit, limit.model, limit.endpoints)

    def item(self, amount: int, further: Document) -> dict[str, object]:
        """Return the limit as an item of `limits`, without parts that equal the defaults."""
        item: dict[str, object] = {"scope": self.scope.value, "window": self.window.value, "amount": amount}
        if self.unit is not Unit.TOKENS:
            item["unit"] = self.unit.value
        if self.model is not None:
            item["model"] = self.model
        if self.endpoints:
            item["endpoint"] = [endpoint.value for endpoint in sorted(self.endpoints)]
        if self.mode is not None:
            item["mode"] = self.mode
        return item | {name: value for name, value in further.items() if value is not None}


def mode_of(limit: Limit) -> str:
    """Return the mode as a document names it."""
    return "shadow" if limit.shadow else limit.mode.value


def setting(changes: Document) -> Edit:
    """Set fields of `SETTABLE`. Leaving the shadow mode also removes `shadows`. `labels` are added to those that
    are there; one whose value is None is removed.
    """
    if not changes:
        raise AdminError("nothing to set")
    for name in changes:
        if name not in SETTABLE:
            raise AdminError(f"{name!r} is no field that can be set; use one of {', '.join(SETTABLE)}")

    def edit(document: Document) -> Changes:
        leaves = "mode" in changes and changes["mode"] != "shadow" and document.get("shadows") is not None
        labels = {"labels": _labelled(document, changes["labels"])} if "labels" in changes else {}
        return {**({"shadows": None} if leaves else {}), **changes, **labels}

    return edit


def _labelled(document: Document, given: object) -> dict[str, object] | None:
    before = document.get("labels")
    if given is None or not isinstance(given, Mapping):
        return None
    known = before if isinstance(before, Mapping) else {}
    return {name: value for name, value in {**known, **given}.items() if value is not None} or None


def suspending(reason: str | None, account: str | None) -> Edit:
    """Set a reason for suspension, or None to resume: for the tenant or for one service account."""

    def edit(document: Document) -> Changes:
        if account is None:
            if reason is None and not document.get("suspended"):
                raise AdminError("the tenant is not suspended")
            return {"suspended": reason}
        return _with_account(document, account, lambda item: _account_suspended(item, reason, account))

    return edit


def topping_up(top_up: Document) -> Edit:
    """Add an item to `top_ups`. Its `id` must be new."""

    def add(document: Document) -> Changes:
        items = _items(document, "top_ups")
        if any(item.get("id") == top_up.get("id") is not None for item in items):
            raise AdminError(f"there is a top-up '{top_up['id']}' already: nothing was added")
        return {"top_ups": [*items, dict(top_up)]}

    return add


def cancelling_top_up(top_up_id: str) -> Edit:
    """Remove the item of `top_ups` with this `id`."""

    def cancel(document: Document) -> Changes:
        items = _items(document, "top_ups")
        kept = [item for item in items if item.get("id") != top_up_id]
        if len(kept) == len(items):
            raise NotFoundError(f"there is no top-up '{top_up_id}'; 'tenant show' lists those that there are")
        return {"top_ups": kept or None}

    return cancel


def adding_limit(selector: Selector, amount: int, further: Document, account: str | None) -> Edit:
    """Add a general limit. If one counts the same, it gets the new amount and mode."""

    def add(document: Document, inner: Document) -> Changes:
        items = _items(inner, "limits")
        wanted = limit_of(_seen_from(document, inner), selector.item(amount, further))
        new = selector.item(amount, further)
        for number, item in enumerate(items):
            known = limit_of(_seen_from(document, inner), item)
            if known is not None and wanted is not None and known.kind == wanted.kind:
                kept = {"note": item["note"]} if "note" in item else {}
                return {"limits": [*items[:number], {**kept, **new}, *items[number + 1 :]]}
        return {"limits": [*items, new]}

    return _on(account, add)


def removing_limit(selector: Selector, account: str | None) -> Edit:
    """Remove the one general limit that is selected."""

    def remove(document: Document, inner: Document) -> Changes:
        items = _items(inner, "limits")
        found = [item for item in items if selector.selects(_seen_from(document, inner), item)]
        if not found:
            raise NotFoundError("there is no such limit in 'limits'; the short ones are unset with 'tenant set'")
        if len(found) > 1:
            raise AdminError("there are several in different modes: name the mode too")
        return {"limits": [item for item in items if item is not found[0]] or None}

    return _on(account, remove)


def expired(document: Document, now: datetime) -> Changes:
    """Drop top-ups that are over, when the document is written anyway."""
    items = document.get("top_ups")
    if not isinstance(items, (list, tuple)):
        return {}
    kept = [item for item in items if not _over(item, now)]
    return {"top_ups": kept or None} if len(kept) < len(items) else {}


def _over(item: object, now: datetime) -> bool:
    try:
        return isinstance(item, Mapping) and Fields(item).instant("until") <= now.timestamp()
    except FieldError:
        return False


def _on(account: str | None, change: Callable[[Document, Document], Changes]) -> Edit:
    """Apply a change to the document, or to one service account's part of it."""
    if account is None:
        return lambda document: change(document, document)
    return lambda document: _with_account(document, account, lambda item: change(document, item))


def _with_account(document: Document, account: str, change: Callable[[Document], Changes]) -> Changes:
    items = _items(document, "service_accounts")
    known = next((item for item in items if item.get("name") == account), None)
    item = known if known is not None else {"name": account}
    changed = {name: value for name, value in {**item, **change(item)}.items() if value is not None}
    after = [changed if each is known else each for each in items] if known is not None else [*items, changed]
    if changed.keys() == {"name"}:  # only its name left: such an item would free it of the terms of all others
        after.remove(changed)
    return {"service_accounts": after or None}


def _account_suspended(item: Document, reason: str | None, account: str) -> Changes:
    if reason is None and not item.get("suspended"):
        raise AdminError(f"service account '{account}' is not suspended")
    return {"suspended": reason}


def _seen_from(document: Document, inner: Document) -> Document:
    """Return the part that gives its mode to limits without one of their own."""
    return inner if inner.get("mode") is not None else document


def _items(document: Document, name: str) -> list[dict[str, Any]]:
    items = document.get(name)
    if items is None:
        return []
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Mapping) for item in items):
        raise AdminError(
            f"the stored '{name}' can't be used: it must be a list of objects; mend it with 'tenant apply'"
        )
    return [dict(item) for item in items]
