"""Bound the memory that the bodies of all exchanges of a process use while they are read."""

from collections.abc import Mapping
from typing import Final

_UNBOUNDED: Final = 1 << 62
# Overhead of one piece of a body: the object, its place in a list and its future reply.
PIECE_BYTES: Final = 128
# The largest body by default: several pictures. Settings, Envoy's configuration and the charts have this number.
MAX_BODY_BYTES: Final = 32 << 20
# So long Envoy waits for the answer to a message by default: several times what the largest body takes.
# Settings, Envoy's configuration and the chart have this number.
MESSAGE_TIMEOUT_S: Final = 2.0
# Larger bodies have a budget of their own: few of them would fill that of all others.
LARGE_BYTES: Final = 1 << 20


class Buffers:
    """Count buffered bytes against bounds. The exchanges of one event loop share it.

    `max_bytes` bounds the bodies of up to `LARGE_BYTES`, `max_large_bytes` the larger ones. Of the latter, one
    tenant has half at the most, so that large bodies of one tenant are never a reason to refuse those of another.
    """

    __slots__ = ("_tenants", "kept_bytes", "large_bytes", "max_bytes", "max_large_bytes")

    def __init__(self, max_bytes: int = _UNBOUNDED, max_large_bytes: int = _UNBOUNDED) -> None:
        self.max_bytes = max_bytes
        self.max_large_bytes = max_large_bytes
        self.kept_bytes = 0
        self.large_bytes = 0
        self._tenants: dict[str, int] = {}  # large bytes of each tenant that has some

    @property
    def all_bytes(self) -> int:
        """Return the bytes of all bodies."""
        return self.kept_bytes + self.large_bytes

    def fits(self, size: int, tenant: str = "") -> bool:
        """Return whether a body of `size` more bytes of this tenant would fit now. Reserves nothing."""
        if size > LARGE_BYTES:
            return self.fits_large(size, tenant)
        return self.kept_bytes + size <= self.max_bytes

    def fits_large(self, more: int, tenant: str) -> bool:
        """Return whether `more` bytes of large bodies of this tenant would fit now."""
        of_tenant = self._tenants.get(tenant, 0) + more
        return self.large_bytes + more <= self.max_large_bytes and of_tenant <= self.max_large_bytes // 2

    def add_large(self, more: int, tenant: str) -> None:
        """Count `more` bytes of large bodies of this tenant; a negative number takes them back."""
        self.large_bytes += more
        left = self._tenants.get(tenant, 0) + more
        if left:
            self._tenants[tenant] = left
        else:
            del self._tenants[tenant]


class Kept:
    """Hold the share of one exchange of this tenant in `Buffers`. The exchange must end with `keep(0)`."""

    __slots__ = ("_buffers", "_bytes", "_tenant")

    def __init__(self, buffers: Buffers, tenant: str = "") -> None:
        self._buffers = buffers
        self._tenant = tenant
        self._bytes = 0

    def keep(self, size: int) -> bool:
        """Set the bytes that this exchange keeps to `size`. Return False, and change nothing, if there is no room
        for more. A smaller `size` always succeeds.
        """
        if size > LARGE_BYTES or self._bytes > LARGE_BYTES:
            return self._keep_large(size)
        total = self._buffers.kept_bytes + size - self._bytes
        if size > self._bytes and total > self._buffers.max_bytes:
            return False
        self._buffers.kept_bytes = total
        self._bytes = size
        return True

    def _keep_large(self, size: int) -> bool:
        """Do the same for a body that is large before or after: it counts as a whole in one budget."""
        was_large, is_large = self._bytes > LARGE_BYTES, size > LARGE_BYTES
        more = (size if is_large else 0) - (self._bytes if was_large else 0)
        if size > self._bytes and not self._buffers.fits_large(more, self._tenant):
            return False
        self._buffers.add_large(more, self._tenant)
        self._buffers.kept_bytes += (0 if is_large else size) - (0 if was_large else self._bytes)
        self._bytes = size
        return True


def declared_bytes(headers: Mapping[str, str]) -> int:
    """Return the body size that the headers declare; 0 if `content-length` is missing or unusable."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004
