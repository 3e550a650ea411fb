"""The admin's use cases, over ports. Faults are `StoreError`; what an operator gets wrong is `AdminError`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum

from extproc.core.identity import (
    MAX_NAME_CHARS,
    UNKNOWN_IP,
    ClientIP,
    Identity,
    ServiceAccount,
    TenantId,
    is_name,
    normalise_ip,
)
from extproc.core.limits import MAX_AMOUNT
from extproc.core.policies import SHORT_LIMITS, BadDocument, Defaults, policy_from
from extproc.core.quota import BucketState, Policy, bind
from extproc.ports import (
    Counters,
    DailyUsage,
    Document,
    TenantRecord,
    TenantStore,
    UsageFilter,
    UsageReports,
)

# Reports are read by people: who wants more than this is better served by a filter.
MAX_ROWS = 10_000
# What `top` sums up, at most: one row is a service account, client IP and date, so this is some 100 MB.
_MAX_SUMMED = 200_000


class AdminError(Exception):
    """The request can't be carried out; the message names the field and the fix."""


class NotFoundError(AdminError):
    """There is no such thing."""


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's limits as stored; `problem` says why they can't be used, if so.

    An amount that is no whole number of tokens is shown as the text of what is stored.
    """

    tenant: str
    sa_limit: int | str | None
    ip_limit: int | str | None
    timezone: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which limits bind an identity now, and what is left. `known`: the tenant has limits of its own."""

    identity: Identity
    known: bool
    problem: str | None
    states: tuple[BucketState, ...]


class By(StrEnum):
    """What `top` sums up by."""

    SERVICE_ACCOUNT = "service-account"
    CLIENT_IP = "client-ip"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Ranked:
    """The usage of one service account, client IP or tenant over all dates asked for."""

    name: str
    usage: int
    input: int
    output: int
    requests: int
    denied: int


class Admin:
    """Use cases; holds no state of its own."""

    def __init__(
        self,
        tenants: TenantStore,
        reports: UsageReports,
        counters: Counters,
        defaults: Defaults,
        now: Callable[[], datetime],
    ) -> None:
        self._tenants = tenants
        self._reports = reports
        self._counters = counters
        self._defaults = defaults
        self._now = now

    async def tenants(self) -> list[TenantView]:
        views = [self._view(document) for document in await self._tenants.documents()]
        return sorted(views, key=lambda view: view.tenant)

    async def tenant(self, tenant: str) -> TenantView:
        """Raises `NotFoundError`."""
        document = await self._tenants.document(_tenant_id(tenant))
        if document is None:
            raise NotFoundError(f"tenant '{tenant}' has no limits of its own; the defaults bind it")
        return self._view(document)

    async def set_tenant(self, tenant: str, changes: dict[str, int | None]) -> tuple[TenantView, bool]:
        """Sets some of `sa_limit` and `ip_limit` (None: it no longer binds); others stay. True where it is new."""
        name = _tenant_id(tenant)
        _check_changes(changes)
        stored = await self._tenants.document(name) or {}
        amounts = {limit: _changed(limit, changes, stored) for limit in SHORT_LIMITS}
        if all(amount is None for amount in amounts.values()):
            raise AdminError(
                f"at least one of {', '.join(SHORT_LIMITS)} must stay; to use the defaults, delete the tenant"
            )
        new = await self._tenants.put(TenantRecord(name, amounts["sa_limit"], amounts["ip_limit"]))
        return await self.tenant(tenant), new

    async def delete_tenant(self, tenant: str) -> None:
        """Raises `NotFoundError`."""
        if not await self._tenants.delete(_tenant_id(tenant)):
            raise NotFoundError(f"tenant '{tenant}' has no limits of its own")

    async def daily(self, wanted: UsageFilter, at_most: int = MAX_ROWS) -> list[DailyUsage]:
        """Daily usage, newest first. Raises `AdminError` for a filter that can't fit anything."""
        return await self._reports.daily(_checked(wanted), at_most)

    async def top(self, wanted: UsageFilter, by: By, at_most: int) -> list[Ranked]:
        """Who used the most, over all dates asked for. Raises `AdminError` where that is too much to sum up."""
        days = await self._reports.daily(_checked(wanted), _MAX_SUMMED + 1)
        if len(days) > _MAX_SUMMED:
            raise AdminError(f"more than {_MAX_SUMMED} days of usage to sum up: give dates or a tenant")
        totals: dict[str, Ranked] = {}
        for day in days:
            name = _name(day, by)
            total = totals.get(name, Ranked(name, 0, 0, 0, 0, 0))
            totals[name] = replace(
                total,
                usage=total.usage + day.usage,
                input=total.input + day.input,
                output=total.output + day.output,
                requests=total.requests + day.requests,
                denied=total.denied + day.denied,
            )
        return sorted(totals.values(), key=lambda total: (-total.usage, total.name))[:at_most]

    async def explain(self, tenant: str, service_account: str, client_ip: str) -> Explanation:
        """Which limits bind this identity now: used, held, remaining, reset."""
        account = ServiceAccount(_named("service account", service_account))
        identity = Identity(_tenant_id(tenant), account, _client_ip(client_ip))
        policy, problem = await self._policy(identity.tenant)
        buckets = bind(policy, identity, self._now())
        counts = await self._counters.read(identity.tenant, buckets)
        states = tuple(BucketState(b, c) for b, c in zip(buckets, counts, strict=True))
        return Explanation(identity, policy.known, problem, states)

    async def _policy(self, tenant: TenantId) -> tuple[Policy, str | None]:
        document = await self._tenants.document(tenant)
        read = policy_from(document, self._defaults) if document is not None else self._defaults.policy(tenant)
        if isinstance(read, BadDocument):
            return self._defaults.policy(tenant), read.message
        return read, None

    def _view(self, document: Document) -> TenantView:
        read = policy_from(document, self._defaults)
        return TenantView(
            tenant=str(document.get("tenant_id", "")),
            sa_limit=_shown(document.get("sa_limit")),
            ip_limit=_shown(document.get("ip_limit")),
            timezone=str(document.get("timezone") or self._defaults.zone.key),
            problem=read.message if isinstance(read, BadDocument) else None,
        )


def _named(what: str, text: str) -> str:
    if not is_name(text):
        raise AdminError(f"the {what} must be a printable name of 1 to {MAX_NAME_CHARS} characters")
    return text


def _tenant_id(text: str) -> TenantId:
    return TenantId(_named("tenant", text))


def _client_ip(text: str) -> ClientIP:
    address = normalise_ip(text)
    if address == UNKNOWN_IP != text:
        raise AdminError(f"{text!r} is no IP address")
    return address


def _check_changes(changes: Mapping[str, int | None]) -> None:
    if not changes:
        raise AdminError(f"nothing to set: give {' or '.join(SHORT_LIMITS)}")
    for name, amount in changes.items():
        if name not in SHORT_LIMITS:
            raise AdminError(f"{name!r} is no limit; use one of {', '.join(SHORT_LIMITS)}")
        if amount is not None and not 0 <= amount <= MAX_AMOUNT:
            raise AdminError(f"'{name}' must be from 0 to {MAX_AMOUNT} tokens")


def _changed(limit: str, changes: Mapping[str, int | None], stored: Document) -> int | None:
    if limit in changes:
        return changes[limit]
    amount = _shown(stored.get(limit))
    if isinstance(amount, str) or not 0 <= (amount or 0) <= MAX_AMOUNT:
        # Neither kept (the tenant would go on without limits of its own) nor dropped (nothing would bind there).
        raise AdminError(f"the stored '{limit}' can't be used ({amount}): set it too")
    return amount


def _shown(amount: object) -> int | str | None:
    """A stored amount as a plain int: the driver's own number types are none, and old shells write doubles."""
    if amount is None:
        return None
    whole = isinstance(amount, int) or (isinstance(amount, float) and amount.is_integer())
    return int(amount) if whole and not isinstance(amount, bool) else str(amount)  # type: ignore[call-overload]


def _checked(wanted: UsageFilter) -> UsageFilter:
    """The filter in the form that usage is stored in."""
    since, until = _date("since", wanted.since), _date("until", wanted.until)
    if since is not None and until is not None and since > until:
        raise AdminError(f"'since' ({since}) must not be after 'until' ({until})")
    for what, name in (("tenant", wanted.tenant), ("service account", wanted.service_account)):
        if name is not None:
            _named(what, name)
    client_ip = _client_ip(wanted.client_ip) if wanted.client_ip is not None else None
    return replace(wanted, client_ip=client_ip, since=since, until=until)


def _date(name: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        # Python reads other forms of ISO 8601 too; usage is stored under this one.
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise AdminError(f"'{name}' must be a date such as 2026-01-31, not {text!r}") from None


def _name(day: DailyUsage, by: By) -> str:
    match by:
        case By.SERVICE_ACCOUNT:
            return day.service_account
        case By.CLIENT_IP:
            return day.client_ip
        case By.TENANT:
            return day.tenant
