"""Show and edit tenants' limits. An edit is made on the current document; if the document changes, it is
repeated.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Final

from extproc.admin import edits
from extproc.admin.auditing import audited, differences
from extproc.admin.change import Change, Changed
from extproc.admin.documents import keeps_defaults_away, merged, refuse_labels, unusable_field, usable_part
from extproc.admin.edits import Edit, Selector
from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.admin.names import named, tenant_id
from extproc.admin.paging import Page, checked_page, cursor_of, key_of
from extproc.admin.views import (
    ANY_LIMIT,
    ANY_TENANT,
    NOTHING_RAISED,
    LimitFilter,
    TenantDetail,
    TenantFilter,
    TenantLimit,
    TenantView,
    detail_of,
    raises_any,
    version_of,
    view_of,
)
from extproc.core.quota.binding import Policy
from extproc.core.quota.policies import BadDocument, Defaults, policy_from
from extproc.core.request.identity import TenantId
from extproc.ports.base import ConflictError
from extproc.ports.documents import Document
from extproc.ports.tenants import TenantStore

# More attempts would not help against so many concurrent edits by people.
_ATTEMPTS: Final = 5
_STAY = "; to use the defaults, delete the tenant; to lift all limits, set it unlimited"


class TenantLimits:
    """Run the use cases. Stateless. Names and values that can't be used raise `AdminError`.

    A write on another version than that of its `Change` raises `StaleVersionError`. A write that would change
    nothing writes nothing, and has no audit entry.
    """

    def __init__(self, tenants: TenantStore, defaults: Defaults, now: Callable[[], datetime]) -> None:
        self._tenants = tenants
        self._defaults = defaults
        self._now = now

    async def views(
        self, wanted: TenantFilter = ANY_TENANT, at_most: int = 1000, cursor: str | None = None
    ) -> Page[TenantView]:
        """Return tenants that have limits of their own, by name."""
        checked_page(at_most)
        after = TenantId(key_of(cursor, str)) if cursor is not None else None
        rows: list[TenantView] = []
        async with aclosing(self._tenants.scan(after)) as documents:
            async for document in documents:
                view = self._view(document)
                if not wanted.fits(view):
                    continue
                if len(rows) == at_most:
                    return Page(tuple(rows), cursor_of(rows[-1].tenant))
                rows.append(view)
        return Page(tuple(rows))

    async def listed(
        self,
        tenants: Collection[str] | None = None,
        wanted: LimitFilter = ANY_LIMIT,
        at_most: int = 1000,
        cursor: str | None = None,
    ) -> Page[TenantLimit]:
        """Return the limits that can bind, by tenant: of these tenants, or of all that have limits of their own.

        Of tenants that have none, the defaults are not returned. In a document with fields that can't be used, the
        limits are those of `detail`.
        """
        checked_page(at_most)
        last, number = key_of(cursor, tuple[str, int]) if cursor is not None else ("", -1)
        rows: list[TenantLimit] = []
        key = (last, number)
        async with aclosing(self._from(last, tenants)) as documents:
            async for document in documents:
                detail = detail_of(document, self._defaults, self._now())
                tenant = detail.view.tenant
                for place, source in enumerate(detail.limits):
                    if not wanted.fits(source) or (tenant == last and place <= number):
                        continue
                    if len(rows) == at_most:
                        return Page(tuple(rows), cursor_of(key))
                    key = (tenant, place)
                    rows.append(TenantLimit(tenant, source))
        return Page(tuple(rows))

    async def _from(self, first: str, tenants: Collection[str] | None) -> AsyncGenerator[Document]:
        """Yield the documents of these tenants, or of all, from the tenant `first` on."""
        if tenants is None and first:
            known = await self._tenants.document(tenant_id(first))
            if known is not None:
                yield known
        if tenants is None:
            async with aclosing(self._tenants.scan(TenantId(first) if first else None)) as documents:
                async for document in documents:
                    yield document
            return
        for name in sorted(each for each in tenants if each >= first):
            document_of_it = await self._tenants.document(tenant_id(name))
            if document_of_it is not None:
                yield document_of_it

    async def detail(self, tenant: str) -> TenantDetail:
        """Return one tenant's details. Raise `NotFoundError`."""
        document = await self._tenants.document(tenant_id(tenant))
        if document is None:
            raise _no_limits(tenant)
        return detail_of(document, self._defaults, self._now())

    async def set(self, tenant: str, changes: Mapping[str, object], change: Change) -> Changed:
        """Set fields of `edits.SETTABLE` (None: remove the field); others stay."""
        made_by = edits.setting(changes)

        def edit(document: Document) -> edits.Changes:
            made = made_by(document)
            after = policy_from(merged(document, made), self._defaults)
            field = unusable_field(after) if isinstance(after, BadDocument) else None
            if field in edits.SETTABLE and field not in made:
                # Keeping the field would leave the tenant without limits of its own; dropping it would leave
                # nothing that binds.
                raise AdminError(f"the stored '{field}' can't be used ({document.get(field)}): set it too")
            return made

        return await self._edit(tenant, "tenant.set", None, edit, change)

    async def suspend(self, tenant: str, reason: str, account: str | None, change: Change) -> Changed:
        """Suspend the tenant or one service account: nothing is admitted any more. Callers read the reason."""
        edit = edits.suspending(named("reason", reason, "printable text"), _account(account))
        return await self._edit(tenant, "tenant.suspend", account, edit, change)

    async def resume(self, tenant: str, account: str | None, change: Change) -> Changed:
        """End a suspension. Raise `AdminError` if there is none."""
        edit = edits.suspending(None, _account(account))
        return await self._edit(tenant, "tenant.resume", account, edit, change, known=True)

    async def top_up(self, tenant: str, top_up: Mapping[str, object], change: Change) -> Changed:
        """Add an item to `top_ups`. There must be a limit that it raises. An `id` that is there already is
        refused, so that a repeated call adds nothing.
        """
        edit = edits.topping_up(top_up)
        until = top_up.get("until")
        if isinstance(until, datetime) and until <= self._now():
            raise AdminError("'until' must be in the future")

        def checked(document: Document) -> edits.Changes:
            changes = edit(document)
            policy = policy_from(merged(document, changes), self._defaults)
            if isinstance(policy, Policy) and not raises_any(policy, policy.top_ups[-1], self._now()):
                raise AdminError(f"{NOTHING_RAISED}: there is nothing to top up")
            return changes

        subject = str(top_up["id"]) if top_up.get("id") is not None else None
        return await self._edit(tenant, "tenant.top_up", subject, checked, change)

    async def cancel_top_up(self, tenant: str, top_up_id: str, change: Change) -> Changed:
        """Remove a top-up. Raise `NotFoundError` if there is none with this `id`."""
        edit = edits.cancelling_top_up(named("top-up", top_up_id, "an id"))
        return await self._edit(tenant, "tenant.cancel_top_up", top_up_id, edit, change, known=True)

    async def add_limit(
        self,
        tenant: str,
        selector: Selector,
        amount: int,
        further: Mapping[str, object],
        *,
        account: str | None,
        change: Change,
    ) -> Changed:
        """Add a general limit. If one counts the same, it gets the new amount. `further`: `shadows`, `note`."""
        edit = edits.adding_limit(selector, amount, further, _account(account))
        return await self._edit(tenant, "limit.add", _limit(selector, account), edit, change)

    async def remove_limit(self, tenant: str, selector: Selector, account: str | None, change: Change) -> Changed:
        """Remove a general limit. Raise `NotFoundError` if there is no such limit."""
        edit = edits.removing_limit(selector, _account(account))
        return await self._edit(tenant, "limit.remove", _limit(selector, account), edit, change, known=True)

    async def delete(self, tenant: str, change: Change) -> Changed:
        """Delete a tenant's limits. Raise `NotFoundError`."""
        name = tenant_id(tenant)
        for _ in range(_ATTEMPTS):
            stored = await self._tenants.document(name)
            if stored is None:
                raise NotFoundError(f"tenant '{tenant}' has no limits of its own")
            require_version(tenant, stored, change)
            changes = differences(stored, {})
            if not change.dry_run:
                entry = audited(
                    change, self._now(), action="tenant.delete", tenant=name, before=stored, after=None
                )
                try:
                    if not await self._tenants.delete(name, version_of(stored), entry):
                        continue
                except ConflictError:
                    continue
            return Changed(name, False, None, changes, None, change.dry_run)
        raise _busy(tenant)

    async def _edit(
        self, tenant: str, action: str, subject: str | None, edit: Edit, change: Change, *, known: bool = False
    ) -> Changed:
        """Edit the tenant's document. With `known`, raise `NotFoundError` if there is no document yet."""
        name = tenant_id(tenant)
        for _ in range(_ATTEMPTS):
            stored = await self._tenants.document(name)
            if stored is None and known:
                raise _no_limits(tenant)
            document = stored if stored is not None else {"tenant_id": name}
            require_version(tenant, document, change)
            changes = edit(document)
            changes |= edits.expired(merged(document, changes), self._now())
            self._check(document, changes)
            after = merged(document, changes)
            made, version = differences(document, after), version_of(document)
            new = stored is None
            if made and not change.dry_run:
                entry = audited(
                    change, self._now(), action=action, subject=subject, tenant=name, before=stored, after=after
                )
                try:
                    new = await self._tenants.update(name, changes, version, entry)
                except ConflictError:
                    continue
            if made:
                after = {**after, "version": (version or 0) + 1}
            return Changed(
                name, new, version_of(after), made, view_of(after, self._defaults, self._now()), change.dry_run
            )
        raise _busy(tenant)

    def _check(self, document: Document, changes: edits.Changes) -> None:
        """Refuse changes that can't be used. A part that could not be used before is reported by `problem`
        only.
        """
        after = merged(document, changes)
        if "labels" in changes:
            refuse_labels(after)
        if isinstance(policy_from(after, self._defaults), BadDocument):
            beside = usable_part(document, self._defaults)
            alone = policy_from(merged(beside, changes), self._defaults)
            if isinstance(alone, BadDocument):
                raise AdminError(alone.message)
        elif keeps_defaults_away(document) and not keeps_defaults_away(after):
            raise AdminError(f"at least one limit on tokens that binds all requests must stay{_STAY}")
        if after.keys() <= {"tenant_id"}:
            raise AdminError(f"nothing would be set{_STAY}")

    def _view(self, document: Document) -> TenantView:
        return view_of(document, self._defaults, self._now())


def _no_limits(tenant: str) -> NotFoundError:
    return NotFoundError(f"tenant '{tenant}' has no limits of its own; the defaults bind it")


def _busy(tenant: str) -> AdminError:
    return AdminError(f"tenant '{tenant}' is being changed by others all the time: try again")


def require_version(tenant: str, document: Document, change: Change) -> None:
    """Raise `StaleVersionError` if the change was meant for another version."""
    version = version_of(document)
    if change.if_version is not None and change.if_version != version:
        raise StaleVersionError(
            f"tenant '{tenant}' was changed by somebody else: its version is {version}, not {change.if_version}; "
            "look at it again"
        )


def _limit(selector: Selector, account: str | None) -> str:
    whose = f" of {account}" if account is not None else ""
    return f"{selector.scope}/{selector.window} {selector.unit}{whose}"


def _account(text: str | None) -> str | None:
    return named("service account", text) if text is not None else None
