"""Define the limits that a route carries, in addition to those of the calling tenant.

The limits come from two sources. Envoy's rate limit filter sends them as descriptor entries (`hits`); those count
requests. A route of the ext_proc filter sends them as metadata of its gRPC stream, which only Envoy's
configuration can write: `tokenweir-route` names the route, `tokenweir-limits` lists its limits; those may count
tokens too.

A route's name is part of its buckets' keys. Routes with the same name (a model and its canary) share buckets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from extproc.core.quota.limits import MAX_AMOUNT, NO_SUBJECT, Bucket, Limit, Scope, Unit, Window, interval_at
from extproc.core.request.identity import MAX_NAME_CHARS, Identity, is_name

# Each one is a bucket of one atomic step; a route with more of them is a configuration error.
MAX_ROUTE_LIMITS: Final = 16
ROUTE_KEY: Final = "tokenweir-route"
LIMITS_KEY: Final = "tokenweir-limits"
# Replaces the rate limit filter's domain, so that a route has the same buckets whichever filter asks.
DOMAIN: Final = "tokenweir"

_SCOPES: Final = {scope.value: scope for scope in Scope}
_WINDOWS: Final = {window.value: window for window in Window}
_UNITS: Final = {unit.value: unit for unit in Unit}
# The other scopes need a model or endpoint, which some requests of a route don't have.
_ROUTE_SCOPES: Final = frozenset({Scope.TENANT, Scope.SERVICE_ACCOUNT, Scope.CLIENT_IP, Scope.SERVICE_ACCOUNT_IP})
_LIMIT = re.compile(r"([a-z_+]+):([0-9]{1,13})/([a-z]+)(?::([a-z_]+))?")
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """Describe a limit of a route, and the parts of its bucket.

    The parts end with a domain and the route's name (or the model's, if there is none). So the limit never shares
    a bucket with another route, nor with a limit of the tenant, which has fewer parts.
    """

    limit: Limit
    parts: tuple[str, ...]

    def bucket(self, now: datetime, zone: ZoneInfo) -> Bucket:
        """Return the bucket that counts at `now` (aware), in the windows of the tenant's time zone."""
        return Bucket(self.limit, self.parts, interval_at(self.limit.window, now, zone))


@dataclass(frozen=True, slots=True)
class Route:
    """Describe a route of the ext_proc filter. Without a name it has no limits."""

    name: str = ""
    limits: tuple[Limit, ...] = ()

    def buckets(self, identity: Identity, now: datetime, zone: ZoneInfo) -> Iterator[Bucket]:
        """Yield the buckets that a request of `identity` on this route must fit in, beside those of its tenant."""
        for limit in self.limits:
            parts = limit.scope.parts(identity, NO_SUBJECT) or ()
            yield RouteLimit(limit, (*parts, DOMAIN, "route", self.name)).bucket(now, zone)


NO_ROUTE: Final = Route()


@dataclass(frozen=True, slots=True)
class BadRoute:
    """Report an error in the route's configuration, independent of the caller. `message` is for the operator."""

    message: str


@lru_cache(maxsize=4096)
def read_route(name: str, limits: str) -> Route | BadRoute:
    """Read a route's metadata.

    Args:
        name: the value of `ROUTE_KEY`, empty if there is none.
        limits: the value of `LIMITS_KEY`: limits in the form of `limit_from`, separated by commas.
    """
    texts = [text.strip() for text in limits.split(",") if text.strip()]
    if name and not is_name(name):
        return BadRoute(f"{ROUTE_KEY} must be a name: 1 to {MAX_NAME_CHARS} printable characters.")
    if texts and not name:
        return BadRoute(f"{LIMITS_KEY} needs {ROUTE_KEY} beside it: the name that its buckets belong to.")
    found: dict[str, Limit] = {}
    for text in texts:
        limit = limit_from(text)
        if limit is None or limit.scope not in _ROUTE_SCOPES:
            return BadRoute(
                f"{LIMITS_KEY}: a limit must read scope:amount/window or scope:amount/window:unit, such as "
                f"client_ip:60/minute or service_account:12000/day:tokens; not {text[:_SHOWN_CHARS]!r}."
            )
        # The amount is no part of a bucket's key. If two limits share a bucket, the lower one decides.
        found[limit.kind] = min(found.get(limit.kind, limit), limit, key=lambda each: each.amount)
    if len(found) > MAX_ROUTE_LIMITS:
        return BadRoute(f"{LIMITS_KEY}: a route can have {MAX_ROUTE_LIMITS} limits, not {len(found)}.")
    return Route(name, tuple(found.values())) if name else NO_ROUTE


def limit_from(text: str) -> Limit | None:
    """Read a limit such as `client_ip:60/minute` (requests) or `service_account:12000/day:tokens`; None if
    invalid.
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        return None
    scope, amount, window = _SCOPES.get(found[1]), int(found[2]), _WINDOWS.get(found[3])
    unit = _UNITS.get(found[4] or Unit.REQUESTS)
    if scope is None or window is None or unit is None or amount > MAX_AMOUNT:
        return None
    return Limit(scope, window, amount, unit)
