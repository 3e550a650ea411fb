"""Hold what one peer and we have said: streams, header blocks, windows. Errors are those of RFC 9113."""

from typing import Final

from extproc.http2.blocks import PRIORITY_BYTES, Block, fragment, unpadded
from extproc.http2.call import Call
from extproc.http2.departed import Departed
from extproc.http2.frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    INITIAL_WINDOW,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PADDED,
    PING,
    SETTINGS,
    U32,
    Code,
    ConnectionFaultError,
    StreamFaultError,
    frame,
    reset,
    settings,
    window_update,
)
from extproc.http2.head import HEADERS_TOO_LARGE, Head, MalformedError, check_trailers
from extproc.http2.host import Host
from extproc.http2.hpack import Decoder, HeaderBlockError, HeaderListError
from extproc.http2.limits import Calm
from extproc.http2.output import Output
from extproc.http2.peer import NOBODY, Peer
from extproc.http2.peer_settings import (
    HEADER_TABLE_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    read_settings,
)
from extproc.http2.replies import http_error, last_frame
from extproc.http2.status import Status

# A header block that is new counts as so many bytes to a frame when turns are given out.
_BLOCK_BYTES_A_FRAME: Final = 64
# One that is new and larger than this counts as so many bytes to a frame that brings nothing forward.
_LARGE_BLOCK_BYTES: Final = 1024
_BLOCK_BYTES_A_POINT: Final = 128
_CALLS_A_POINT: Final = 16
_PING_BYTES: Final = 8


class Conversation:
    """Handle whole frames of one peer.

    `work` is what handling has cost beyond a frame, in frames, since it was set to 0.
    """

    def __init__(self, host: Host) -> None:
        self.loop = host.loop
        self.limits = host.limits
        self.holdings = host.holdings
        self.peer: Peer = NOBODY
        self.held = 0
        self.holding: dict[Call, None] = {}
        self.blocked: dict[Call, float] = {}
        self.output = Output(host.loop, host.limits.output_bytes)
        self.calm = Calm(host.limits, host.loop.time)
        self.calls: dict[int, Call] = {}
        self.last = 0
        """Count up to the last stream that the peer has begun."""
        self.served = MAX_STREAM_ID
        """Bound the streams that are served."""
        self.running = 0
        self.greeted = False
        self.settled = False
        self.ponged = False
        self.work = 0
        self._host = host
        self._decoder = Decoder(host.limits.header_list_bytes)
        self._departed = Departed(host.limits.streams)
        self._initial_window = INITIAL_WINDOW
        self._debt = 0
        self._block: Block | None = None
        self._only = SETTINGS  # the kind that must come next; -1: any
        self._handlers = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_reset,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    @property
    def between(self) -> bool:
        """Tell whether any frame may come: no header block is open."""
        return self._only < 0

    def greet(self) -> None:
        """Send our settings, and allow more on the connection than on a stream."""
        limits = self.limits
        ours = {
            HEADER_TABLE_SIZE: 0,
            MAX_CONCURRENT_STREAMS: limits.streams,
            MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
        }
        self.output.add(settings(ours))
        self.output.send(window_update(0, limits.connection_window - INITIAL_WINDOW))

    def abandon(self) -> None:
        """End all calls without a word."""
        for call in list(self.calls.values()):
            call.abandon()

    def shed(self) -> None:
        """End the call that has kept bytes for the longest time."""
        next(iter(self.holding)).fail(Status.RESOURCE_EXHAUSTED, "The memory for messages is full.")

    def stalled(self, call: Call) -> None:
        """End a call whose peer has not let one message through for too long."""
        self.output.send(reset(call.stream, Code.ENHANCE_YOUR_CALM))
        call.abandon()

    def leave(self, call: Call) -> None:
        """Forget a stream that is closed on our side."""
        self.calls.pop(call.stream, None)
        if not call.ended_in:
            self._departed.add(call.stream)

    def ended(self, call: Call) -> None:
        """Note that the handler of a call has ended."""
        del call
        self.running -= 1
        self._host.ended()

    def handle(  # noqa: PLR0917  the hot path
        self, kind: int, flags: int, stream: int, data: bytes, start: int, stop: int
    ) -> None:
        """Handle a frame, whose payload is `data` from `start` to `stop`. Raise `ConnectionFaultError`."""
        if self._only >= 0:
            self._check_order(kind, flags, stream)
        try:
            if kind <= CONTINUATION:
                self._handlers[kind](flags, stream, data, start, stop)
            else:
                self.calm.spend()
        except StreamFaultError as fault:
            self._fail_stream(fault)

    def _check_order(self, kind: int, flags: int, stream: int) -> None:
        """Check a frame where only one kind may come: after the preface, and within a header block."""
        block = self._block
        if block is not None:
            if kind != CONTINUATION or stream != block.stream:
                raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a frame within a header block")
        elif kind != SETTINGS or flags & ACK:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "no settings after the preface")
        else:
            self._only = -1
            self.greeted = True

    def _fail_stream(self, fault: StreamFaultError) -> None:
        self.calm.spend(2)
        self.output.send(reset(fault.stream, fault.code))
        call = self.calls.get(fault.stream)
        if call is not None:
            call.abandon()
        self._departed.add(fault.stream)

    def _credit(self, size: int) -> None:
        """Give the peer its window of the connection back, in large parts."""
        self._debt += size
        if self._debt > self.limits.connection_window // 2:
            self.output.send(window_update(0, self._debt))
            self._debt = 0

    def _on_data(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        size = stop - start
        self._credit(size)
        if flags & PADDED:  # before the stream is looked at: an error in padding is the connection's
            start, stop = unpadded(data, start, stop)
        call = self.calls.get(stream)
        if call is None:
            self._stray(stream, ended=flags & END_STREAM != 0)
            return
        if call.ended_in:
            raise StreamFaultError(stream, Code.STREAM_CLOSED)
        call.debt += size
        if call.debt > INITIAL_WINDOW:
            raise StreamFaultError(stream, Code.FLOW_CONTROL_ERROR)
        if flags & PADDED:
            self.calm.spend()
        if start < stop:
            call.received += stop - start
            call.receive(data, start, stop)
        elif not flags & END_STREAM:
            self.calm.spend()
        if flags & END_STREAM:
            if call.over:
                self._departed.forget(stream)
            else:
                call.end_in()

    def _stray(self, stream: int, *, ended: bool) -> None:
        """Take a frame of a stream that is no more."""
        if not stream or stream > self.last or not stream & 1:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a frame of a stream that was not begun")
        self.calm.spend()
        if not self._departed.knows(stream):
            raise StreamFaultError(stream, Code.STREAM_CLOSED)
        if ended:
            self._departed.forget(stream)

    def _on_headers(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        if not stream & 1:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "headers on a stream that no client may begin")
        part, end_stream = fragment(flags, data, start, stop), flags & END_STREAM != 0
        if flags & END_HEADERS:
            self._headers(stream, part, end_stream=end_stream)
        else:
            self._block = Block(stream, part, self.limits, end_stream=end_stream)
            self._only = CONTINUATION

    def _on_continuation(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        block = self._block
        if block is None or block.stream != stream:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a continuation of nothing")
        block.add(data[start:stop])
        if flags & END_HEADERS:
            self._block, self._only = None, -1
            self._headers(stream, block.data, end_stream=block.end_stream)

    def _headers(self, stream: int, block: bytes, *, end_stream: bool) -> None:
        """Take a whole header block: of a call that begins, or the trailers of one."""
        if stream <= self.last:
            self._trailers(stream, block, end_stream=end_stream)
            return
        head = self._host.heads.known(block, self._decoder)
        self.last = stream
        if head is None:
            head = self._new_head(stream, block)
        if stream > self.served or self.running >= self.limits.streams:
            raise StreamFaultError(stream, Code.REFUSED_STREAM)
        if head.handler is None:
            self._refuse(stream, head, end_stream=end_stream)
            return
        call = Call(self, stream, head, self._initial_window)
        self.calls[stream] = call
        self.running += 1
        self._host.running += 1
        call.start()
        if end_stream:
            call.end_in()

    def _new_head(self, stream: int, block: bytes) -> Head:
        """Read a head that was not read before."""
        self.work += len(block) // _BLOCK_BYTES_A_FRAME
        if len(block) > _LARGE_BLOCK_BYTES:
            self.calm.spend(len(block) // _BLOCK_BYTES_A_POINT)
        try:
            return self._host.heads.read(block, self._decoder)
        except HeaderBlockError:
            raise ConnectionFaultError(Code.COMPRESSION_ERROR, "a header block that can't be decoded") from None
        except MalformedError:
            raise StreamFaultError(stream, Code.PROTOCOL_ERROR) from None
        except HeaderListError:
            return Head("", refusal=http_error(HEADERS_TOO_LARGE))

    def _refuse(self, stream: int, head: Head, *, end_stream: bool) -> None:
        """Answer a request that no handler gets."""
        self.calm.spend()
        self.output.send(last_frame(stream, head.refusal))
        if not end_stream:
            self.output.send(reset(stream, Code.NO_ERROR))
            self._departed.add(stream)

    def _trailers(self, stream: int, block: bytes, *, end_stream: bool) -> None:
        call = self.calls.get(stream)
        if call is None and not self._departed.knows(stream):
            raise ConnectionFaultError(Code.STREAM_CLOSED, "headers of a stream that is closed")
        self.calm.spend()
        try:
            headers = self._decoder.decode(block)
            if call is not None and call.ended_in:
                raise StreamFaultError(stream, Code.STREAM_CLOSED)
            check_trailers(headers)
        except HeaderBlockError:
            raise ConnectionFaultError(Code.COMPRESSION_ERROR, "trailers that can't be decoded") from None
        except (MalformedError, HeaderListError):
            raise StreamFaultError(stream, Code.PROTOCOL_ERROR) from None
        if call is None:
            self._departed.forget(stream)
        elif not end_stream:
            raise StreamFaultError(stream, Code.PROTOCOL_ERROR)
        else:
            call.end_in()

    def _on_priority(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        del flags, data
        self.calm.spend()
        if not stream:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a priority of no stream")
        if stop - start != PRIORITY_BYTES:
            if stream > self.last:
                raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "a priority of a wrong length")
            raise StreamFaultError(stream, Code.FRAME_SIZE_ERROR)

    def _on_reset(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        del flags, data
        if stop - start != U32.size:
            raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "a reset of a wrong length")
        if not stream & 1 or stream > self.last:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a reset of a stream that was not begun")
        call = self.calls.get(stream)
        if call is None:
            if not self._departed.forget(stream):
                self.calm.spend()
            return
        if not call.begun:
            self.calm.spend(2)
        call.abandon()
        self._departed.forget(stream)

    def _on_settings(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        if stream:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "settings of a stream")
        self.calm.spend()
        if flags & ACK:
            if start != stop:
                raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            self.settled = True
            self._decoder.forbid_table()
            return
        wanted = read_settings(data[start:stop]).initial_window
        if wanted is not None and wanted != self._initial_window:
            self._change_windows(wanted)
        self.output.send(frame(SETTINGS, ACK, 0))

    def _change_windows(self, wanted: int) -> None:
        self.calm.spend(len(self.calls) // _CALLS_A_POINT)
        change, self._initial_window = wanted - self._initial_window, wanted
        for call in self.calls.values():
            try:
                call.allow(change)
            except StreamFaultError:
                raise ConnectionFaultError(Code.FLOW_CONTROL_ERROR, "a window that is too large") from None
        self.output.pump()

    def _on_push_promise(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        del flags, stream, data, start, stop
        raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a push from a client")

    def _on_ping(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        if stream:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a ping of a stream")
        if stop - start != _PING_BYTES:
            raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "a ping of a wrong length")
        self.calm.spend()
        if not flags & ACK:
            self.output.send(frame(PING, ACK, 0, data[start:stop]))
        else:
            self.ponged = True

    def _on_goaway(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        del flags, data
        if stream:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "GOAWAY of a stream")
        if stop - start < 2 * U32.size:
            raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
        self.calm.spend()

    def _on_window_update(self, flags: int, stream: int, data: bytes, start: int, stop: int) -> None:
        del flags
        if stop - start != U32.size:
            raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "a window update of a wrong length")
        self.calm.spend()
        credit = U32.unpack_from(data, start)[0] & MAX_WINDOW
        if not stream:
            self.output.window += credit
            if not credit:
                raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a window update of nothing")
            if self.output.window > MAX_WINDOW:
                raise ConnectionFaultError(Code.FLOW_CONTROL_ERROR, "a window that is too large")
        else:
            call = self.calls.get(stream)
            if call is None:
                if stream > self.last or not stream & 1:
                    raise ConnectionFaultError(Code.PROTOCOL_ERROR, "a window of a stream that was not begun")
                return
            if not credit:
                raise StreamFaultError(stream, Code.PROTOCOL_ERROR)
            call.allow(credit)
        self.output.pump()
