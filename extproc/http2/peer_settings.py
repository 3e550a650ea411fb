"""Read the settings of a peer."""

from dataclasses import dataclass
from typing import Final

from extproc.http2.frames import MAX_FRAME_BYTES, MAX_WINDOW, SETTING, Code, ConnectionFaultError

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6
_LARGEST_FRAME: Final = (1 << 24) - 1


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Hold what matters to us: the window of streams that begin, None if it stays."""

    initial_window: int | None = None


def read_settings(payload: bytes) -> PeerSettings:
    """Read the payload of SETTINGS. Raise `ConnectionFaultError`."""
    if len(payload) % SETTING.size:
        raise ConnectionFaultError(Code.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
    window: int | None = None
    for name, value in SETTING.iter_unpack(payload):
        if name == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFaultError(Code.FLOW_CONTROL_ERROR, "an initial window that is too large")
            window = value
        elif name == ENABLE_PUSH and value > 1:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif name == MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value <= _LARGEST_FRAME:
            raise ConnectionFaultError(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of its range")
    return PeerSettings(window)
