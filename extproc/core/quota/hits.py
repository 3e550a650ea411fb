"""Read the descriptors of Envoy's rate limit filter into a `Hit`.

A descriptor is a list of entries (key and value) that the actions of a route made from one HTTP request. All
descriptors of a call come from that one request, so together they name one caller. The tenant's own limits bind it
once, in one step with the limits of the route. A denied request counts nowhere.

These entries are read: `tenant`, `service_account`, `client_ip`, Envoy's `remote_address` and
`masked_remote_address`, `model`. `limit` and `route` apply to their own descriptor only. All others are ignored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from extproc.core.quota.limits import Limit, Subject, Unit
from extproc.core.quota.routes import MAX_ROUTE_LIMITS, RouteLimit, limit_from
from extproc.core.request.addresses import IPV6_PREFIX, UNKNOWN_IP, ClientIP, client_ip, client_network
from extproc.core.request.identity import (
    MAX_NAME_CHARS,
    Identity,
    IdentityRules,
    UnusableIdentity,
    identify,
    is_name,
)

MAX_HITS: Final = 1_000_000

_ADDRESSES = ("client_ip", "remote_address")
_MASKED_ADDRESS = "masked_remote_address"
_OF_THE_CALLER = frozenset({"tenant", "service_account", "model", *_ADDRESSES, _MASKED_ADDRESS})
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Hold one descriptor as it came.

    `hits` is its own `hits_addend`, None if it has none. `refunds` stands for `is_negative_hits`. `overrides`
    means that it carries Envoy's own kind of limit.
    """

    entries: tuple[tuple[str, str], ...]
    hits: int | None = None
    refunds: bool = False
    overrides: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """Describe one HTTP request that Envoy asks about, counted as 1 to `MAX_HITS` requests.

    The tenant's limits on requests bind it, and those in `extra`. `model` is None if no entry names one.
    """

    identity: Identity
    model: str | None
    hits: int
    extra: tuple[RouteLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class BadDescriptor:
    """Report an error in the filter's configuration, independent of the caller. `message` is for the operator."""

    message: str


def read_hit(
    domain: str,
    descriptors: Sequence[Descriptor],
    hits_addend: int = 0,
    tenant_pattern: re.Pattern[str] | None = None,
    ipv6_prefix: int = IPV6_PREFIX,
) -> Hit | UnusableIdentity | BadDescriptor:
    """Read one call of the rate limit filter.

    Without a service account the caller is anonymous. Without a tenant, the tenant is derived from the service
    account as in `IdentityRules`. A repeated entry must have the same value each time; two different values are an
    error.

    Args:
        domain: the filter's domain.
        descriptors: the descriptors as they came.
        hits_addend: the call's, 0 if it has none. Descriptors may have their own; the largest counts. It never
            counts as less than 1: a check that counts nothing would promise room that the next request may take.
        tenant_pattern: see `IdentityRules`.
        ipv6_prefix: see `IdentityRules`.
    """
    problem = _unsupported(domain, descriptors)
    if problem is not None:
        return problem
    caller = _caller(descriptors)
    if isinstance(caller, UnusableIdentity):
        return caller
    identity = _identity(caller, tenant_pattern, ipv6_prefix)
    if isinstance(identity, UnusableIdentity):
        return identity
    limits: dict[tuple[str, tuple[str, ...]], RouteLimit] = {}
    for found in _route_limits(domain, descriptors, caller, identity, ipv6_prefix):
        if not isinstance(found, RouteLimit):
            return found
        key = (found.limit.kind, found.parts)
        # The amount is no part of a bucket's key. If two limits share a bucket, the lower one decides.
        limits[key] = min(limits.get(key, found), found, key=lambda each: each.limit.amount)
    if len(limits) > MAX_ROUTE_LIMITS:
        return BadDescriptor(f"A request can have {MAX_ROUTE_LIMITS} entries 'limit', not {len(limits)}.")
    return Hit(identity, caller.get("model"), _hits(descriptors, hits_addend), tuple(limits.values()))


def _unsupported(domain: str, descriptors: Sequence[Descriptor]) -> BadDescriptor | None:
    if not is_name(domain):
        return BadDescriptor(f"The rate limit domain must be a name: 1 to {MAX_NAME_CHARS} printable characters.")
    if not descriptors:
        return BadDescriptor("A rate limit request needs a descriptor.")
    for each in descriptors:
        if each.overrides:
            return BadDescriptor("Envoy's own 'limit' of a descriptor is not supported; use an entry 'limit'.")
        if each.refunds:
            return BadDescriptor("Negative hits are not supported: nothing is given back.")
    return None


def _caller(descriptors: Sequence[Descriptor]) -> dict[str, str] | UnusableIdentity:
    """Merge the entries of all descriptors about the caller and its model. Each entry must have one value."""
    merged: dict[str, str] = {}
    for key, value in (entry for each in descriptors for entry in each.entries):
        if key in {"model", "route"} and not is_name(value):
            return _no_name(key)
        if key in _OF_THE_CALLER and merged.setdefault(key, value) != value:
            return UnusableIdentity(key, f"The rate limit entry '{key}' has two different values.")
    return merged


def _identity(
    caller: Mapping[str, str], tenant_pattern: re.Pattern[str] | None, ipv6_prefix: int
) -> Identity | UnusableIdentity:
    rules = IdentityRules("service_account", "tenant", tenant_pattern=tenant_pattern)
    identity = identify(rules, caller, {}, "")
    if isinstance(identity, UnusableIdentity):
        return _no_name(identity.source)
    return replace(identity, client_ip=_address(caller, ipv6_prefix) or UNKNOWN_IP)


def _no_name(key: str) -> UnusableIdentity:
    message = f"The rate limit entry '{key}' must be a name: 1 to {MAX_NAME_CHARS} printable characters."
    return UnusableIdentity(key, message)


def _address(entries: Mapping[str, str], ipv6_prefix: int) -> ClientIP | None:
    """Return the address itself if there is one, else the network that Envoy masked it to."""
    for key in _ADDRESSES:
        if key in entries:
            return client_ip(entries[key], ipv6_prefix)
    return client_network(entries[_MASKED_ADDRESS], ipv6_prefix) if _MASKED_ADDRESS in entries else None


def _hits(descriptors: Sequence[Descriptor], hits_addend: int) -> int:
    largest = max(each.hits if each.hits is not None else hits_addend for each in descriptors)
    return min(max(1, largest), MAX_HITS)


def _route_limits(
    domain: str,
    descriptors: Sequence[Descriptor],
    caller: Mapping[str, str],
    identity: Identity,
    ipv6_prefix: int,
) -> Iterator[RouteLimit | BadDescriptor]:
    model = caller.get("model")
    for each in descriptors:
        own = dict(each.entries)
        # A descriptor's own address comes first: one may count by address and the next one by network.
        address = _address(own, ipv6_prefix) or _address(caller, ipv6_prefix)
        route = ("route", own["route"]) if "route" in own else ("model", model) if model is not None else ()
        for key, value in each.entries:
            if key == "limit":
                limit = _limit(value)
                yield (
                    limit
                    if isinstance(limit, BadDescriptor)
                    else _bound(limit, identity, address, model, (domain, *route))
                )


def _bound(
    limit: Limit, identity: Identity, address: ClientIP | None, model: str | None, route: tuple[str, ...]
) -> RouteLimit | BadDescriptor:
    parts = limit.scope.parts(replace(identity, client_ip=address or UNKNOWN_IP), Subject(model))
    if parts is None or ("client_ip" in limit.scope.names and address is None):
        return BadDescriptor(f"A limit by {limit.scope} needs an entry for each of its parts.")
    return RouteLimit(limit, (*parts, *route))


def _limit(text: str) -> Limit | BadDescriptor:
    limit = limit_from(text)
    if limit is not None and limit.unit is Unit.REQUESTS and text.count(":") == 1:
        return limit
    return BadDescriptor(
        "The rate limit entry 'limit' must read scope:amount/window, such as client_ip:60/minute; "
        f"not {text[:_SHOWN_CHARS]!r}."
    )
