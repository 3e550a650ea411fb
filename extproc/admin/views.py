"""Describe tenants for those who read: the limits in effect, as stored, and what can't be used of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from extproc.admin.documents import Source, own_limits, sources
from extproc.core.quota.binding import Policy, Terms, TopUp, limits_of
from extproc.core.quota.limits import Limit, Scope, Unit, Window
from extproc.core.quota.policies import BadDocument, Defaults, Repaired, repaired_policy
from extproc.core.request.addresses import UNKNOWN_IP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.ports.documents import Document

NOTHING_RAISED: Final = "no limit of that scope, window, unit, model and endpoint"


@dataclass(frozen=True, slots=True)
class TenantView:
    """Describe a tenant's limits as stored; `problem` names the fields that can't be used.

    An amount that is no whole number of tokens is shown as its stored text. `limits` is the number of the tenant's
    own limits that bind the whole tenant, the two short ones included. `defaults` are the default limits that bind
    in addition, such as "service_account:12000/day". `on_store_failure` is the value in effect, its own or the
    default. `suspended_accounts` are single service accounts; `top_ups` is the number of those in force. `version`
    is what a change may name in `if_version`.
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
    mode: str | None = None
    suspended_accounts: tuple[str, ...] = ()
    top_ups: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    managed_by: str | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class TermsView:
    """Describe one service account's own terms, beside limits."""

    service_account: str
    unlimited: bool
    suspended: str | None


@dataclass(frozen=True, slots=True)
class TenantDetail:
    """Describe everything in a tenant's document that can be used, and the document itself.

    `top_up_notes` has the note of each of `top_ups`.
    """

    view: TenantView
    document: Document
    limits: tuple[Source, ...]
    terms: tuple[TermsView, ...]
    top_ups: tuple[TopUp, ...]
    top_up_notes: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class TenantFilter:
    """Select tenants. All that are given must fit. `name` is a glob, `label` is NAME or NAME=VALUE.

    `suspended`: the tenant or one of its service accounts is suspended. `problem`: a field can't be used.
    """

    name: str | None = None
    suspended: bool | None = None
    mode: str | None = None
    label: str | None = None
    problem: bool | None = None

    def fits(self, view: TenantView) -> bool:
        """Return whether the tenant is selected."""
        suspended = view.suspended is not None or bool(view.suspended_accounts)
        return (
            (self.name is None or fnmatchcase(view.tenant, self.name))
            and self.suspended in (None, suspended)
            and self.mode in (None, view.mode)
            and self.problem in (None, view.problem is not None)
            and (self.label is None or self._labelled(view))
        )

    def _labelled(self, view: TenantView) -> bool:
        name, equals, value = (self.label or "").partition("=")
        return name in view.labels and (not equals or view.labels[name] == value)


ANY_TENANT: Final = TenantFilter()


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """Describe a limit that can bind requests of a tenant, and where it is from."""

    tenant: str
    source: Source


@dataclass(frozen=True, slots=True)
class LimitFilter:
    """Select limits. All that are given must fit. `own`: only those of documents, without the default ones."""

    scope: Scope | None = None
    window: Window | None = None
    unit: Unit | None = None
    service_account: str | None = None
    own: bool = False

    def fits(self, source: Source) -> bool:
        """Return whether the limit is selected."""
        limit = source.limit
        pairs = (
            (self.scope, limit.scope),
            (self.window, limit.window),
            (self.unit, limit.unit),
            (self.service_account, source.whose),
        )
        wanted = all(given in (None, found) for given, found in pairs)
        return wanted and not (self.own and source.field is None)


ANY_LIMIT: Final = LimitFilter()


def detail_of(document: Document, defaults: Defaults, now: datetime) -> TenantDetail:
    """Return everything in a document that can be used, and the document itself."""
    read = repaired_policy(document, defaults)
    view = view_of(document, defaults, now)
    if isinstance(read, BadDocument):
        return TenantDetail(view, document, (), (), (), ())
    limits = tuple(sources(read.document, read.policy))
    top_ups = read.policy.top_ups
    return TenantDetail(
        view, document, limits, _terms_of(read.policy), top_ups, _notes_of(read.document, len(top_ups))
    )


def _notes_of(document: Document, count: int) -> tuple[str | None, ...]:
    """Return the notes of top-ups, in their order. A document as it was used has all of them."""
    items = document.get("top_ups")
    notes = [item.get("note") for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    return (
        tuple(str(note) if note is not None else None for note in notes)
        if len(notes) == count
        else (None,) * count
    )


def view_of(document: Document, defaults: Defaults, now: datetime) -> TenantView:
    """Return the view of a document; of one that can't be used at all, the defaults."""
    read = repaired_policy(document, defaults)
    if isinstance(read, BadDocument):
        read = Repaired(defaults.policy(TenantId("")), {}, (read.message,))
    policy = read.policy
    return TenantView(
        tenant=str(document.get("tenant_id", "")),
        sa_limit=_shown(document.get("sa_limit")),
        ip_limit=_shown(document.get("ip_limit")),
        timezone=str(document.get("timezone") or defaults.zone.key),
        problem="; ".join(read.problems) or None,
        suspended=policy.suspended,
        limits=len(own_limits(read.document)),
        defaults=_defaults_beside(read.document, policy),
        on_store_failure=policy.on_store_failure.value,
        mode=str(document["mode"]) if document.get("mode") is not None else None,
        suspended_accounts=tuple(name for name, each in policy.accounts.items() if each.suspended is not None),
        top_ups=sum(top_up.until > now.timestamp() for top_up in policy.top_ups),
        labels=labels_of(document),
        managed_by=str(document["managed_by"]) if document.get("managed_by") is not None else None,
        version=version_of(document) or 0,
    )


def labels_of(document: Document) -> dict[str, str]:
    """Return the labels of a document, as text; none if the field holds no labels."""
    labels = document.get("labels")
    return {str(name): str(value) for name, value in labels.items()} if isinstance(labels, Mapping) else {}


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


def _terms_of(policy: Policy) -> tuple[TermsView, ...]:
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
