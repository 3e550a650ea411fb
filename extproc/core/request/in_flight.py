"""Bound the requests of each tenant that one process serves at once."""

from collections.abc import Callable
from typing import Final

_UNBOUNDED: Final = 1 << 62


def _tell_nobody(tenant: str) -> None:
    """Do nothing."""


class InFlight:
    """Count requests in flight by tenant, up to `cap` of each. The exchanges of one event loop share it.

    A tenant without a request in flight takes no memory. `on_refused` is called with the tenant of each request
    that does not fit.
    """

    __slots__ = ("_counts", "_on_refused", "cap")

    def __init__(self, cap: int = _UNBOUNDED, on_refused: Callable[[str], None] = _tell_nobody) -> None:
        self.cap = cap
        self._counts: dict[str, int] = {}
        self._on_refused = on_refused

    def enter(self, tenant: str) -> bool:
        """Count a request. Return False, and count nothing, if the tenant is at its cap."""
        count = self._counts.get(tenant, 0)
        if count >= self.cap:
            self._on_refused(tenant)
            return False
        self._counts[tenant] = count + 1
        return True

    def leave(self, tenant: str) -> None:
        """Take back one `enter` that returned True."""
        count = self._counts[tenant] - 1
        if count:
            self._counts[tenant] = count
        else:
            del self._counts[tenant]

    @property
    def tenants(self) -> int:
        """Return the number of tenants with requests in flight."""
        return len(self._counts)

    def most(self) -> int:
        """Return the requests in flight of the tenant that has most. Other threads may call it."""
        return max(self._counts.copy().values(), default=0)


class Place:
    """Hold the place of one exchange in `InFlight`. The exchange must end with `leave`."""

    __slots__ = ("_in_flight", "_tenant")

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._tenant: str | None = None

    def take(self, tenant: str) -> bool:
        """Take the place, once. Return False if the tenant has no place left."""
        if not self._in_flight.enter(tenant):
            return False
        self._tenant = tenant
        return True

    def leave(self) -> None:
        """Give the place back, if it was taken. Further calls change nothing."""
        if self._tenant is not None:
            self._in_flight.leave(self._tenant)
            self._tenant = None
