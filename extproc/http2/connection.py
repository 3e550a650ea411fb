"""Serve one peer on a transport: cut bytes into frames, keep the connection alive, and close it."""

import asyncio
import logging
from typing import Final, cast

from extproc.http2.conversation import Conversation
from extproc.http2.frames import (
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    PING,
    PREFACE,
    Code,
    ConnectionFaultError,
    frame,
    goaway,
)
from extproc.http2.host import Host
from extproc.http2.peer import peer_of
from extproc.http2.status import Status
from extproc.http2.upkeep import CLOSING_S, DRAIN_S, Upkeep

# How much one peer may have done before the others have their turn.
_FRAMES_A_TURN: Final = 256
_PING: Final = b"\0" * 8

_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Serve one peer. Feed it with `data_received`; it writes to the transport that `connection_made` brought."""

    def __init__(self, host: Host) -> None:
        self.begun = host.loop.time()
        self._host = host
        self._talk = Conversation(host)
        self._upkeep = Upkeep(host.limits, self.begun)
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._need = len(PREFACE)
        self._prefaced = self._later = False
        self._draining_at: float | None = None
        self._closing_at: float | None = None

    # ------------------------------------------------------------ what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to talk."""
        self._transport = cast("asyncio.Transport", transport)
        self._talk.output.open(self._transport)
        self._talk.peer = peer_of(transport.get_extra_info("peercert"))
        if self._host.add(self, self._talk):
            self._talk.greet()
        else:
            self._closing_at = self.begun
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call: its peer is gone."""
        del exc
        self._transport = None
        self._closing_at = self._closing_at or self._host.loop.time()
        self._talk.output.close()
        self._talk.abandon()
        self._host.remove(self, self._talk)

    def eof_received(self) -> bool:
        """Close: gRPC has no use for a peer that can't send."""
        return False

    def pause_writing(self) -> None:
        """Let calls wait: the peer does not read."""
        self._talk.output.paused = True

    def resume_writing(self) -> None:
        """Let calls go on."""
        self._talk.output.resume()

    def data_received(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""
        if self._closing_at is not None:
            return
        if self._rest or self._later or not self._prefaced:
            self._rest += data
            if self._later or (len(self._rest) < self._need and self._may_be_preface()):
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            self._consume(data)
        except ConnectionFaultError as fault:
            self._fail(fault)
        except Exception:  # noqa: BLE001  one connection may fail, the server goes on
            _log.exception("http2 connection failed: it is closed, its streams end")
            self._fail(ConnectionFaultError(Code.INTERNAL_ERROR, "an error of ours"))

    def _may_be_preface(self) -> bool:
        return self._prefaced or PREFACE.startswith(self._rest)

    # ------------------------------------------------------------ frames

    def _consume(self, data: bytes) -> None:
        """Handle the whole frames at the beginning of `data`, and keep the rest."""
        offset, end = 0, len(data)
        if not self._prefaced:
            if not data.startswith(PREFACE):
                raise ConnectionFaultError(Code.PROTOCOL_ERROR, "no preface of HTTP/2")
            self._prefaced = True
            offset = len(PREFACE)
        talk, unpack, turn = self._talk, HEADER.unpack_from, _FRAMES_A_TURN
        talk.work = 0
        self._need = HEADER_BYTES
        while end - offset >= HEADER_BYTES:
            high, low, kind, flags, stream = unpack(data, offset)
            size = high << 8 | low
            if size > MAX_FRAME_BYTES:
                raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "a frame that is too large")
            start = offset + HEADER_BYTES
            if start + size > end:
                self._need = HEADER_BYTES + size
                break
            if turn <= talk.work:
                self._go_on_later()
                break
            offset = start + size
            turn -= 1
            talk.handle(kind, flags, stream & MAX_STREAM_ID, data, start, offset)
        if turn < _FRAMES_A_TURN and talk.between:
            self._upkeep.heard = True
        if offset < end:
            self._rest += data[offset:] if offset else data

    def _go_on_later(self) -> None:
        """Let other connections have their turn first."""
        self._later = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._host.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._later = False
        if self._closing_at is not None or self._transport is None:
            return
        self._need = 0
        self.data_received(b"")
        if not self._later and self._closing_at is None:
            self._transport.resume_reading()

    # ------------------------------------------------------------ the end

    @property
    def idle(self) -> bool:
        """Tell whether there is no call."""
        return not self._talk.running and not self._talk.calls

    def _fail(self, fault: ConnectionFaultError) -> None:
        """Tell the peer what is wrong, and close."""
        if fault.code is not Code.NO_ERROR:
            self._host.fault(fault.code.name.lower(), fault.reason)
        self._talk.abandon()
        self._talk.output.send(goaway(self._talk.last, fault.code, fault.reason))
        self._close()

    def close(self) -> None:
        """Close when what was said is written; the peer may repeat what we did not serve."""
        if self._closing_at is None:
            self._talk.output.send(goaway(self._talk.last, Code.NO_ERROR))
            self._close()

    def _close(self) -> None:
        self._closing_at = self._host.loop.time()
        self._talk.output.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whether or not the peer has read what was said."""
        if self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """Ask the peer to begin no more streams. Those that it begins before it knows are served."""
        if self._draining_at is None and self._closing_at is None:
            self._draining_at = self._host.loop.time()
            self._talk.ponged = False
            self._talk.output.send(goaway(MAX_STREAM_ID, Code.NO_ERROR) + frame(PING, 0, 0, _PING))

    def cut_off(self) -> None:
        """End all calls, and close."""
        for call in list(self._talk.calls.values()):
            call.fail(Status.UNAVAILABLE, "The server is stopping.")
        self.close()

    def look(self, now: float) -> None:
        """See to what is due. Call it about once a second."""
        if self._closing_at is not None:
            if now - self._closing_at > CLOSING_S:
                self.abort()
            return
        talk, upkeep = self._talk, self._upkeep
        upkeep.greeted, upkeep.settled = talk.greeted, talk.settled
        try:
            if upkeep.look(now, paused=talk.output.paused):
                talk.output.send(frame(PING, 0, 0, _PING))
        except ConnectionFaultError as fault:
            self._fail(fault)
            return
        for call in [call for call, since in talk.blocked.items() if now - since > self._host.limits.stall_s]:
            talk.stalled(call)
        if self._draining_at is not None:
            self._drained(now)

    def _drained(self, now: float) -> None:
        talk = self._talk
        if talk.served == MAX_STREAM_ID and (talk.ponged or now - (self._draining_at or now) >= DRAIN_S):
            talk.served = talk.last
            talk.output.send(goaway(talk.last, Code.NO_ERROR))
        if talk.served != MAX_STREAM_ID and self.idle:
            self._close()
