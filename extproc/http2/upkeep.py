"""Notice connections that are of no use any more: peers that are gone, that say nothing, or that do not read."""

from typing import Final

from extproc.http2.frames import Code, ConnectionFaultError
from extproc.http2.limits import Limits

# How long the first GOAWAY may take to its peer, before the last one names the last stream that is served.
DRAIN_S: Final = 1.0
# How long a peer may take to read why its connection is closed.
CLOSING_S: Final = 5.0


class Upkeep:
    """Hold the times of one connection. `look` is called about once a second; no connection has a timer."""

    __slots__ = ("_asked_at", "_begun", "_heard_at", "_limits", "_paused_at", "greeted", "heard", "settled")

    def __init__(self, limits: Limits, now: float) -> None:
        self.greeted = False
        """Set when the peer's preface and settings have come."""
        self.settled = False
        """Set when the peer has acknowledged our settings."""
        self.heard = False
        """Set whenever a whole frame has come."""
        self._limits = limits
        self._begun = self._heard_at = now
        self._asked_at: float | None = None
        self._paused_at: float | None = None

    def look(self, now: float, *, paused: bool) -> bool:
        """Tell whether to send a ping. Raise `ConnectionFaultError` for a connection that is to be closed."""
        limits = self._limits
        age = now - self._begun
        if age > limits.handshake_s and not self.greeted:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "no preface in time")
        if age > limits.handshake_s + limits.keepalive_timeout_s and not self.settled:
            raise ConnectionFaultError(Code.SETTINGS_TIMEOUT, "settings that were not acknowledged in time")
        if not paused:
            self._paused_at = None
        elif self._paused_at is None:
            self._paused_at = now
        elif now - self._paused_at > limits.stall_s:
            raise ConnectionFaultError(Code.ENHANCE_YOUR_CALM, "a peer that does not read")
        return self._silent(now)

    def _silent(self, now: float) -> bool:
        if self.heard:
            self.heard = False
            self._heard_at = now
            self._asked_at = None
        elif self._asked_at is not None:
            if now - self._asked_at > self._limits.keepalive_timeout_s:
                raise ConnectionFaultError(Code.NO_ERROR, "a peer that is gone")
        elif now - self._heard_at >= self._limits.keepalive_s:
            self._asked_at = now
            return True
        return False
