"""Bind a request to those of its tenant's limits that apply to it."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from msgspec import Struct, field
from msgspec.structs import replace

from extproc.core.quota.costs import Weights
from extproc.core.quota.limits import (
    MAX_AMOUNT,
    NO_SUBJECT,
    Bucket,
    Limit,
    Scope,
    Subject,
    Unit,
    Window,
    interval_at,
    matches,
)
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, TenantId


class StoreFailure(StrEnum):
    """Select the answer to a tenant's requests while the counters can't be reached."""

    DENY = "deny"  # 503 until the counters are back
    ALLOW = "allow"  # each replica admits a share of the limits on its own


class Terms(Struct, frozen=True):
    """Hold the terms of a service account that replace the tenant's general limits.

    The account's limits replace the tenant's limits of the same kind. `unlimited` lifts all limits that count by
    service account, never those that count the whole tenant, a client IP or a model. `suspended` is the reason.
    """

    limits: tuple[Limit, ...] = ()
    unlimited: bool = False
    suspended: str | None = None


class TopUp(Struct, frozen=True):
    """Add `amount` to the limits of one scope, window and unit until an instant (seconds since the epoch).

    `id` tells it from others, for whoever cancels it.
    """

    scope: Scope
    window: Window
    unit: Unit
    amount: int
    until: float
    service_account: str | None = None
    model: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    id: str | None = None

    def raises(self, limit: Limit, identity: Identity, now: float) -> bool:
        """Return whether the top-up counts for this limit and identity now."""
        return (
            now < self.until
            and (limit.scope, limit.window, limit.unit) == (self.scope, self.window, self.unit)
            and (limit.model, limit.endpoints) == (self.model, self.endpoints)
            and self.service_account in (None, identity.service_account)
        )


class Policy(Struct, frozen=True):
    """Hold a tenant's limits. `known` is False if nobody configured the tenant and the defaults apply.

    `accounts` has the terms of single service accounts; `others` applies to all service accounts not listed there.
    `weights` are the tenant's own, by model glob; the first match counts.
    """

    tenant: TenantId
    limits: tuple[Limit, ...]
    zone: ZoneInfo
    known: bool = True
    suspended: str | None = None
    accounts: Mapping[str, Terms] = field(default_factory=dict)
    others: Terms | None = None
    top_ups: tuple[TopUp, ...] = ()
    weights: tuple[tuple[str, Weights], ...] = ()
    min_output_tokens: int | None = None
    on_store_failure: StoreFailure = StoreFailure.DENY

    def terms(self, identity: Identity) -> Terms | None:
        return self.accounts.get(identity.service_account, self.others)

    def suspension(self, identity: Identity) -> str | None:
        """Return the reason why this identity is suspended; None if it is not."""
        terms = self.terms(identity)
        return self.suspended or (terms.suspended if terms is not None else None)

    def own_weights(self, model: str) -> Weights | None:
        """Return the tenant's own weights for a model; None where the model's configured weights count."""
        return next((weights for glob, weights in self.weights if matches(glob, model)), None)


class Binding(Struct, frozen=True):
    """Say what a policy makes of a request: the buckets it must fit in, or why its caller is `suspended`.

    `weights` are the tenant's own for the model; None if the model's configured weights count.
    """

    buckets: tuple[Bucket, ...] = ()
    suspended: str | None = None
    weights: Weights | None = None


def bind_request(policy: Policy, identity: Identity, now: datetime, subject: Subject) -> Binding:
    """Return what binds a request of `identity` for `subject` at `now`. A suspended caller has no buckets."""
    suspended = policy.suspension(identity)
    if suspended is not None:
        return Binding(suspended=suspended)
    weights = policy.own_weights(subject.model) if subject.model is not None else None
    return Binding(bind(policy, identity, now, subject), None, weights)


def bind(policy: Policy, identity: Identity, now: datetime, subject: Subject = NO_SUBJECT) -> tuple[Bucket, ...]:
    """Return all buckets that a request of `identity` for `subject` must fit in.

    If the model or endpoint is unknown, the limits that need it are left out.
    """
    found: list[Bucket] = []
    for limit in limits_of(policy, identity, now):
        parts = limit.scope.parts(identity, subject) if limit.binds(subject) else None
        if parts is not None:
            found.append(Bucket(limit, parts, interval_at(limit.window, now, policy.zone)))
    return tuple(found)


def needs_model(policy: Policy, identity: Identity, now: datetime, subject: Subject) -> bool:
    """Return whether a limit would bind a request by the name of its model, which `subject` only stands in for.

    A glob that fits every name needs none, and a shadow denies nothing.
    """
    return any(
        not limit.shadow
        and (not limit.endpoints or subject.endpoint in limit.endpoints)
        and ("model" in limit.scope.names or (limit.model is not None and not limit.binds(subject)))
        for limit in limits_of(policy, identity, now)
    )


def limits_of(policy: Policy, identity: Identity, now: datetime) -> tuple[Limit, ...]:
    """Return all limits that can bind the identity, with the amounts that count now."""
    limits = policy.limits
    terms = policy.terms(identity)
    if terms is not None:
        limits = _under(terms, limits)
    if policy.top_ups:
        limits = tuple(_raised(policy, limit, identity, now.timestamp()) for limit in limits)
    return limits


def _under(terms: Terms, limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    own = {limit.kind for limit in terms.limits}
    kept = (limit for limit in limits if limit.kind not in own)
    if terms.unlimited:
        kept = (limit for limit in kept if "service_account" not in limit.scope.names)
    return (*kept, *terms.limits)


def _raised(policy: Policy, limit: Limit, identity: Identity, now: float) -> Limit:
    more = sum(top_up.amount for top_up in policy.top_ups if top_up.raises(limit, identity, now))
    return replace(limit, amount=min(MAX_AMOUNT, limit.amount + more)) if more else limit
