"""Name the frames of HTTP/2 (RFC 9113), its errors and flags, and build the frames that a server sends."""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
# Nothing larger is announced, and nothing larger is sent: other streams wait for one frame at a time.
MAX_FRAME_BYTES: Final = 16_384
INITIAL_WINDOW: Final = 65_535
MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM_ID: Final = (1 << 31) - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER: Final = Struct(">HBBBL")
"""Pack the header of a frame: length in two parts (16 bits, 8 bits), type, flags, stream."""
U32: Final = Struct(">L")
SETTING: Final = Struct(">HL")


class Code(IntEnum):
    """Number the error of a connection or of a stream."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFaultError(Exception):
    """Report what ends a whole connection. The text goes to the log and to the peer."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFaultError(Exception):
    """Report what ends one stream, and leaves the others alone."""

    def __init__(self, stream: int, code: Code) -> None:
        super().__init__(code.name)
        self.stream = stream
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Build a frame. `payload` has `MAX_FRAME_BYTES` at the most."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def reset(stream: int, code: Code) -> bytes:
    """Build RST_STREAM."""
    return frame(RST_STREAM, 0, stream, U32.pack(code))


def window_update(stream: int, credit: int) -> bytes:
    """Build WINDOW_UPDATE; `stream` 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, U32.pack(credit))


def goaway(last_stream: int, code: Code, reason: str = "") -> bytes:
    """Build GOAWAY."""
    return frame(GOAWAY, 0, 0, U32.pack(last_stream) + U32.pack(code) + reason.encode()[:256])


def settings(values: dict[int, int]) -> bytes:
    """Build SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in values.items()))


def headers(stream: int, block: bytes, *, end: bool) -> bytes:
    """Build HEADERS with a whole header block."""
    return frame(HEADERS, END_HEADERS | END_STREAM if end else END_HEADERS, stream, block)
