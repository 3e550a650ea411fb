"""Show and edit tenants' limits. An edit is made on the current document; if the document changes, it is
repeated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from extproc.admin import edits
from extproc.admin.documents import (
    Source,
    keeps_defaults_away,
    merged,
    own_limits,
    sources,
    unusable_field,
    usable_part,
)
from extproc.admin.edits import Edit, Selector
from extproc.admin.errors import AdminError, NotFoundError
from extproc.admin.names import named, tenant_id
from extproc.core.quota.binding import Policy, Terms, TopUp, limits_of
from extproc.core.quota.limits import Limit, Unit
from extproc.core.quota.policies import BadDocument, Defaults, Repaired, policy_from, repaired_policy
from extproc.core.request.addresses import UNKNOWN_IP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.ports.base import ConflictError
from extproc.ports.tenants import Document, TenantStore

# More attempts would not help against so many concurrent edits by people.
_ATTEMPTS = 5
NOTHING_RAISED: Final = "no limit of that scope, window, unit, model and endpoint"
_STAY = "; to use the defaults, delete the tenant; to lift all limits, set it unlimited"


@dataclass(frozen=True, slots=True)
class TenantView:
    """Describe a tenant's limits as stored; `problem` names the fields that can't be used.

    An amount that is no whole number of tokens is shown as its stored text. `limits` is the number of the tenant's
    own limits that bind the whole tenant, the two short ones included. `defaults` are the default limits that bind
    in addition, such as "service_account:12000/day". `on_store_failure` is the value in effect, its own or the
    default.
    """

    tenant: str
    sa_limit: int | str | None
    ip_limit: int | str | None
    timezone: str
    problem: str | None
    suspended: str | None
    limits: int
    defaults: tuple[str, ...]
    on_store_failure: str


@dataclass(frozen=True, slots=True)
class TermsView:
    """Describe one service account's own terms, beside limits."""

    service_account: str
    unlimited: bool
    suspended: str | None


@dataclass(frozen=True, slots=True)
class TenantDetail:
    """Describe everything in a tenant's document that can be used, and the document itself."""

    view: TenantView
    document: Document
    limits: tuple[Source, ...]
    terms: tuple[TermsView, ...]
    top_ups: tuple[TopUp, ...]


class TenantLimits:
    """Run the use cases. Stateless. Names and values that can't be used raise `AdminError`."""

    def __init__(self, tenants: TenantStore, defaults: Defaults, now: Callable[[], datetime]) -> None:
        self._tenants = tenants
        self._defaults = defaults
        self._now = now

    async def views(self) -> list[TenantView]:
        views = [self._view(document) for document in await self._tenants.documents()]
        return sorted(views, key=lambda view: view.tenant)

    async def detail(self, tenant: str) -> TenantDetail:
        """Return one tenant's details. Raise `NotFoundError`."""
        document = await self._tenants.document(tenant_id(tenant))
        if document is None:
            raise NotFoundError(f"tenant '{tenant}' has no limits of its own; the defaults bind it")
        read = repaired_policy(document, self._defaults)
        view = self._view(document)
        if isinstance(read, BadDocument):
            return TenantDetail(view, document, (), (), ())
        limits = tuple(sources(read.document, read.policy))
        return TenantDetail(view, document, limits, _terms(read.policy), read.policy.top_ups)

    async def set(self, tenant: str, changes: dict[str, object]) -> tuple[TenantView, bool]:
        """Set fields of `edits.SETTABLE` (None: remove the field); others stay. Return True if the tenant is
        new.
        """
        change = edits.setting(changes)

        def edit(document: Document) -> edits.Changes:
            made = change(document)
            after = policy_from(merged(document, made), self._defaults)
            field = unusable_field(after) if isinstance(after, BadDocument) else None
            if field in edits.SETTABLE and field not in made:
                # Keeping the field would leave the tenant without limits of its own; dropping it would leave
                # nothing that binds.
                raise AdminError(f"the stored '{field}' can't be used ({document.get(field)}): set it too")
            return made

        return await self._edit(tenant, edit)

    async def suspend(self, tenant: str, reason: str, account: str | None) -> tuple[TenantView, bool]:
        """Suspend the tenant or one service account: nothing is admitted any more. Callers read the reason."""
        return await self._edit(
            tenant, edits.suspending(named("reason", reason, "printable text"), _account(account))
        )

    async def resume(self, tenant: str, account: str | None) -> tuple[TenantView, bool]:
        return await self._edit(tenant, edits.suspending(None, _account(account)), known=True)

    async def top_up(self, tenant: str, top_up: Mapping[str, object]) -> tuple[TenantView, bool]:
        """Add an item to `top_ups`. There must be a limit that it raises."""
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

        return await self._edit(tenant, checked)

    async def add_limit(
        self, tenant: str, selector: Selector, amount: int, further: Mapping[str, object], account: str | None
    ) -> tuple[TenantView, bool]:
        """Add a general limit. If one counts the same, it gets the new amount. `further`: `shadows`, `note`."""
        return await self._edit(tenant, edits.adding_limit(selector, amount, further, _account(account)))

    async def remove_limit(self, tenant: str, selector: Selector, account: str | None) -> tuple[TenantView, bool]:
        """Remove a general limit. Raise `NotFoundError` if there is no such limit."""
        return await self._edit(tenant, edits.removing_limit(selector, _account(account)), known=True)

    async def delete(self, tenant: str) -> None:
        """Delete a tenant's limits. Raise `NotFoundError`."""
        if not await self._tenants.delete(tenant_id(tenant)):
            raise NotFoundError(f"tenant '{tenant}' has no limits of its own")

    async def _edit(self, tenant: str, edit: Edit, *, known: bool = False) -> tuple[TenantView, bool]:
        """Edit the tenant's document. With `known`, raise `NotFoundError` if there is no document yet."""
        name = tenant_id(tenant)
        for _ in range(_ATTEMPTS):
            stored = await self._tenants.document(name)
            if stored is None and known:
                raise NotFoundError(f"tenant '{tenant}' has no limits of its own; the defaults bind it")
            document = stored if stored is not None else {"tenant_id": name}
            changes = edit(document)
            changes |= edits.expired(merged(document, changes), self._now())
            self._check(document, changes)
            try:
                new = await self._tenants.update(name, changes, version_of(document))
            except ConflictError:
                continue
            return self._view(merged(document, changes)), new
        raise AdminError(f"tenant '{tenant}' is being changed by others all the time: try again")

    def _check(self, document: Document, changes: edits.Changes) -> None:
        """Refuse changes that can't be used. A part that could not be used before is reported by `problem`
        only.
        """
        after = merged(document, changes)
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
        read = repaired_policy(document, self._defaults)
        if isinstance(read, BadDocument):
            read = Repaired(self._defaults.policy(TenantId("")), {}, (read.message,))
        policy = read.policy
        return TenantView(
            tenant=str(document.get("tenant_id", "")),
            sa_limit=_shown(document.get("sa_limit")),
            ip_limit=_shown(document.get("ip_limit")),
            timezone=str(document.get("timezone") or self._defaults.zone.key),
            problem="; ".join(read.problems) or None,
            suspended=policy.suspended,
            limits=len(own_limits(read.document)),
            defaults=_defaults_beside(read.document, policy),
            on_store_failure=policy.on_store_failure.value,
        )


def version_of(document: Document) -> int | None:
    """Return the version to write on; None if the field holds no version (another program uses it)."""
    version = document.get("version", 0)
    if isinstance(version, float) and version.is_integer():
        return int(version)
    return int(version) if isinstance(version, int) and not isinstance(version, bool) else None


def policy_of(document: Document | None, tenant: TenantId, defaults: Defaults) -> tuple[Policy, str | None]:
    """Return the tenant's policy, and the fields of its document that can't be used."""
    if document is None:
        return defaults.policy(tenant), None
    read = repaired_policy(document, defaults)
    if isinstance(read, BadDocument):
        return defaults.policy(tenant), read.message
    return read.policy, "; ".join(read.problems) or None


def _account(text: str | None) -> str | None:
    return named("service account", text) if text is not None else None


def _terms(policy: Policy) -> tuple[TermsView, ...]:
    terms = dict(policy.accounts) | ({"(others)": policy.others} if policy.others is not None else {})
    return tuple(TermsView(name, each.unlimited, each.suspended) for name, each in terms.items())


def raises_any(policy: Policy, top_up: TopUp, now: datetime) -> bool:
    """Return whether the top-up raises any limit now."""
    account = ServiceAccount(top_up.service_account or "")
    whom = Identity(policy.tenant, account, UNKNOWN_IP)
    if top_up.service_account is not None:
        limits = limits_of(policy, whom, now)
    else:
        terms = (*policy.accounts.values(), policy.others if policy.others is not None else Terms())
        limits = (*policy.limits, *(limit for each in terms for limit in each.limits))
    return any(top_up.raises(limit, whom, now.timestamp()) for limit in limits)


def _defaults_beside(document: Document, policy: Policy) -> tuple[str, ...]:
    own = {limit.kind for limit in own_limits(document)}
    return tuple(_brief(limit) for limit in policy.limits if limit.kind not in own)


def _brief(limit: Limit) -> str:
    """Format the limit for `tenant limit add`, followed by its filters."""
    further = (
        limit.unit.value if limit.unit is not Unit.TOKENS else "",
        f"model {limit.model}" if limit.model is not None else "",
        f"endpoint {', '.join(limit.endpoints)}" if limit.endpoints else "",
        "shadow" if limit.shadow else "",
    )
    return " ".join((f"{limit.scope}:{limit.amount}/{limit.window}", *filter(None, further)))


def _shown(amount: object) -> int | str | None:
    """Return a stored amount as a plain int. The driver has number types of its own, and old shells write
    doubles.
    """
    if amount is None:
        return None
    whole = isinstance(amount, int) or (isinstance(amount, float) and amount.is_integer())
    return int(amount) if whole and not isinstance(amount, bool) else str(amount)  # type: ignore[call-overload]
