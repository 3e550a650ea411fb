"""Bound what one peer may cost, and what all peers together may keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from extproc.http2.frames import Code, ConnectionFaultError

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Set the bounds of a server. Sizes are in bytes, times in seconds.

    `streams`: at once on a connection; a stream that was reset counts until its handler has ended.
    `held_bytes`: messages that no handler has taken yet, whole or not, of all peers together.
    `output_bytes`: what is kept for a peer that does not read. `idle_frames`: see `Calm`.
    """

    connections: int = 1_000
    streams: int = 1_000
    message_bytes: int = 4 * _MIB
    header_block_bytes: int = 16_384
    header_list_bytes: int = 16_384
    continuations: int = 8
    held_bytes: int = 64 * _MIB
    output_bytes: int = _MIB
    connection_window: int = _MIB
    idle_frames: int = 2_000
    idle_frames_per_s: int = 500
    idle_frames_per_message: int = 4
    handshake_s: float = 10.0
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 30.0
    stall_s: float = 60.0


class Calm:
    """Count the frames of a peer that bring nothing forward, against its messages and the time.

    Such frames are pings, settings, window updates, fragments, resets and frames of closed streams. A peer may
    send `idle_frames` of them at once; the allowance grows by `idle_frames_per_s` a second, and by
    `idle_frames_per_message` for each message, but never beyond `idle_frames`.
    """

    __slots__ = ("_clock", "_left", "_limits", "_seen", "_since", "messages")

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.messages = 0
        self._limits = limits
        self._clock = clock
        self._left = limits.idle_frames
        self._since = clock()
        self._seen = 0

    def spend(self, frames: int = 1) -> None:
        """Count frames. Raise `ConnectionFaultError` if these are too many."""
        self._left -= frames
        if self._left < 0:
            self._refill()

    def _refill(self) -> None:
        limits, now = self._limits, self._clock()
        earned = int((now - self._since) * limits.idle_frames_per_s)
        earned += (self.messages - self._seen) * limits.idle_frames_per_message
        self._since, self._seen = now, self.messages
        self._left = min(self._left + earned, limits.idle_frames)
        if self._left < 0:
            raise ConnectionFaultError(Code.ENHANCE_YOUR_CALM, "too many frames that bring nothing forward")


class Holder(Protocol):
    """Keep bytes of messages, as a connection does."""

    held: int

    def shed(self) -> None:
        """Give up one message that is kept. Call it only while `held` is above 0."""


class Holdings:
    """Bound the bytes of messages that all peers together have sent and nobody has taken.

    The peer that has most of them loses its oldest one, and nobody else does.
    """

    __slots__ = ("_holders", "_most", "total")

    def __init__(self, most_bytes: int) -> None:
        self.total = 0
        self._most = most_bytes
        self._holders: set[Holder] = set()

    def add(self, holder: Holder) -> None:
        """Know a peer."""
        self._holders.add(holder)

    def remove(self, holder: Holder) -> None:
        """Forget a peer, and what it held."""
        self._holders.discard(holder)
        self.total -= holder.held
        holder.held = 0

    def take(self, holder: Holder, size: int) -> None:
        """Count bytes of a peer, and make room if these are too many."""
        holder.held += size
        self.total += size
        while self.total > self._most:
            max(self._holders, key=_held).shed()

    def give(self, holder: Holder, size: int) -> None:
        """Count bytes of a peer as taken."""
        holder.held -= size
        self.total -= size


def _held(holder: Holder) -> int:
    return holder.held
