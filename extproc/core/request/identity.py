"""Derive the caller's `Identity` from verified attributes.

The sources are, in order: the JWT payload that Envoy's jwt_authn filter verified; headers that the operator
declares as owned by the mesh; the mTLS principal, if that is switched on; "anonymous". The client IP is Envoy's
own verdict on the peer (`source.address`). A header that a client can write is never read for the client IP.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

from msgspec import Struct

from extproc.core.request.addresses import IPV6_PREFIX, UNKNOWN_IP, ClientIP, client_ip

TenantId = NewType("TenantId", str)
ServiceAccount = NewType("ServiceAccount", str)

ANONYMOUS = "anonymous"
SPIFFE = "spiffe://"
# A longer text is no name. The bound keeps keys, log lines and documents small.
MAX_NAME_CHARS = 256
_NAME_RULE = f"1 to {MAX_NAME_CHARS} printable characters"


class Identity(Struct, frozen=True):
    """Hold the verified caller. Every part is printable, non-empty and at most `MAX_NAME_CHARS` characters."""

    tenant: TenantId
    service_account: ServiceAccount
    client_ip: ClientIP


class UnusableIdentity(Struct, frozen=True):
    """Report a verified source whose value can't be a name. `source` is the claim or header."""

    source: str
    message: str


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """Configure the sources of an identity.

    `tenant_pattern` is searched in the service account if no claim or header names a tenant; its group `tenant`
    (or else its first group) is the tenant. Header names are lower case. With `peer_principals`, the peer's mTLS
    principal names a caller that has no other name; `gateway_principals` only pass on requests of others.
    `ipv6_prefix` is the number of address bits that tell IPv6 clients apart.
    """

    service_account_claim: str = "sub"
    tenant_claim: str | None = "tenant"
    service_account_header: str | None = None
    tenant_header: str | None = None
    tenant_pattern: re.Pattern[str] | None = None
    peer_principals: bool = False
    gateway_principals: frozenset[str] = frozenset()
    ipv6_prefix: int = IPV6_PREFIX

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(c for c in (self.service_account_claim, self.tenant_claim) if c)

    @property
    def headers(self) -> tuple[str, ...]:
        return tuple(h for h in (self.service_account_header, self.tenant_header) if h)


def identify(
    rules: IdentityRules,
    claims: Mapping[str, object],
    headers: Mapping[str, str],
    source_address: str,
    peer: str = "",
) -> Identity | UnusableIdentity:
    """Return the caller's identity, or the verified source that is unusable.

    Args:
        rules: the sources to read.
        claims: the claims of a *verified* token; empty if there was none.
        headers: request headers by lower-case name; a repeated header's values are joined by commas.
        source_address: Envoy's `source.address`, such as `10.0.0.7:4321` or `[2001:db8::1]:443`.
        peer: the URI in the peer's certificate (`spiffe://...`), empty without mTLS.
    """
    principal = _caller_in_the_mesh(rules, peer)
    account = _named(rules.service_account_claim, rules.service_account_header, claims, headers)
    if isinstance(account, UnusableIdentity):
        return account
    tenant = _named(rules.tenant_claim, rules.tenant_header, claims, headers)
    if isinstance(tenant, UnusableIdentity):
        return tenant
    if account is None and principal is not None:
        if not is_name(principal):
            return UnusableIdentity("principal", f"The mTLS principal must be a name: {_NAME_RULE}.")
        account = principal
    if account is None:
        account = ANONYMOUS
    elif tenant is None:
        tenant = derived_tenant(rules.tenant_pattern, account)
    # At a sidecar the address comes from X-Forwarded-For: the gateway or the peer itself wrote it.
    address = client_ip(source_address, rules.ipv6_prefix) if principal is None else UNKNOWN_IP
    return Identity(TenantId(tenant or ANONYMOUS), ServiceAccount(account), address)


def _caller_in_the_mesh(rules: IdentityRules, peer: str) -> str | None:
    """Return the principal as Istio writes it, without its scheme; None if no principal names the caller."""
    principal = peer.removeprefix(SPIFFE)
    if not rules.peer_principals or not principal or principal in rules.gateway_principals:
        return None
    return principal


def is_name(text: str) -> bool:
    """Return whether `text` can name a tenant or service account: printable, not too long, no space around it."""
    return 0 < len(text) <= MAX_NAME_CHARS and text.isprintable() and text == text.strip()


def _named(
    claim: str | None, header: str | None, claims: Mapping[str, object], headers: Mapping[str, str]
) -> str | UnusableIdentity | None:
    if claim is not None and claim in claims:
        value = claims[claim]
        if isinstance(value, str) and is_name(value):
            return value
        return UnusableIdentity(claim, f"The token's claim '{claim}' must be a string: {_NAME_RULE}.")
    if header is not None and header in headers:
        text = headers[header]
        # A comma means that the header came twice: once from the mesh, once from somebody else.
        if is_name(text) and "," not in text:
            return text
        return UnusableIdentity(header, f"The header '{header}' must hold one name: {_NAME_RULE}.")
    return None


def derived_tenant(pattern: re.Pattern[str] | None, account: str) -> str | None:
    """Return the tenant that a service account leads to by the pattern; None if it leads to none."""
    found = pattern.search(account) if pattern is not None else None
    if found is None:
        return None
    tenant = found.groupdict().get("tenant") or next((g for g in found.groups() if g), None)
    return tenant if tenant is not None and is_name(tenant) else None
