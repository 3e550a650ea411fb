"""A document of `tenantLimitation` -> `Policy`. `{tenant_id, sa_limit, ip_limit}` alone is a whole document."""

from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from extproc.core.identity import TenantId, is_name
from extproc.core.limits import MAX_AMOUNT, Limit, Scope, Window
from extproc.core.quota import Policy

# The talk's names: tokens a day per service account, and per service account + client IP.
SHORT_LIMITS = {
    "sa_limit": (Scope.SERVICE_ACCOUNT, Window.DAY),
    "ip_limit": (Scope.SERVICE_ACCOUNT_IP, Window.DAY),
}


@dataclass(frozen=True, slots=True)
class BadDocument:
    """A document that can't be used; `message` names the field and the fix."""

    tenant: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Defaults:
    """What binds a tenant that has no document, or whose document sets no limit. Never nothing."""

    limits: tuple[Limit, ...]
    zone: ZoneInfo

    def policy(self, tenant: TenantId) -> Policy:
        return Policy(tenant, self.limits, self.zone, known=False)


def short_limits(sa_limit: int | None, ip_limit: int | None) -> tuple[Limit, ...]:
    """The two limits of the talk; one that is None does not exist."""
    amounts = {"sa_limit": sa_limit, "ip_limit": ip_limit}
    return tuple(Limit(*SHORT_LIMITS[name], amount) for name, amount in amounts.items() if amount is not None)


def policy_from(document: Mapping[str, object], defaults: Defaults) -> Policy | BadDocument:
    """Reads one document. Fields that it does not know are left alone. Never raises.

    Numbers may be integers or whole floats (the legacy mongo shell writes every number as a double). A limit
    that is absent or null does not bind; where both are, the defaults bind.
    """
    tenant = document.get("tenant_id")
    if not isinstance(tenant, str) or not is_name(tenant):
        return BadDocument(None, "'tenant_id' must be a printable string of 1 to 256 characters")
    amounts: dict[str, int | None] = {}
    for name in SHORT_LIMITS:
        amount = _amount(document.get(name))
        if isinstance(amount, str):
            return BadDocument(tenant, f"'{name}' {amount}")
        amounts[name] = amount
    zone = _zone(document.get("timezone"), defaults.zone)
    if isinstance(zone, str):
        return BadDocument(tenant, f"'timezone' {zone}")
    limits = short_limits(amounts["sa_limit"], amounts["ip_limit"])
    return Policy(TenantId(tenant), limits or defaults.limits, zone)


def _amount(value: object) -> int | str | None:
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value <= MAX_AMOUNT:  # type: ignore[operator]
        return f"must be a whole number of tokens from 0 to {MAX_AMOUNT}"
    return int(value)  # type: ignore[call-overload, no-any-return]


def _zone(value: object, default: ZoneInfo) -> ZoneInfo | str:
    if value is None:
        return default
    try:
        return ZoneInfo(value) if isinstance(value, str) and value else "must be an IANA time zone"
    except (KeyError, ValueError, OSError):  # unknown, malformed, the name of a folder
        return "is no IANA time zone that this host knows; use one such as 'Europe/Berlin'"
