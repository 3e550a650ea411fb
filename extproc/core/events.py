"""Define the events of an exchange and the effects that answer them: plain values, independent of the
transport.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from extproc.core.quota.drafting import Ask, Caller
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Subject
from extproc.core.quota.reservation import Decision, Denied, Reservation, Suspended, Unavailable
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.quota.settlement import Settlement
from extproc.core.rejections import Rejection
from extproc.core.request.apart import BodyFacts, Reading, Unread
from extproc.core.request.bodies.facts import Malformed
from extproc.core.request.identity import Identity

Headers = Mapping[str, str]

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Hold the request headers (lower-case names, repeated ones joined by commas) and what Envoy verified.

    `peer` is the URI in the peer's certificate, empty without mTLS.
    """

    headers: Headers
    claims: Mapping[str, object]
    source_address: str
    end_of_stream: bool
    peer: str = ""


@dataclass(frozen=True, slots=True)
class RequestBody:
    data: bytes
    end_of_stream: bool


@dataclass(frozen=True, slots=True)
class RequestTrailers:
    """Report that the request ends with trailers, without an end of stream on its last body chunk."""


@dataclass(frozen=True, slots=True)
class BodyRead:
    """Answer `ReadBody`. `now` is the time of the answer.

    `Suspended` and `Denied`: the caller was refused before its body was read.
    """

    result: BodyFacts | Malformed | Unread | Suspended | Denied
    now: datetime


@dataclass(frozen=True, slots=True)
class Decided:
    """Answer `Reserve`. `now` is the time of the answer."""

    decision: Decision
    now: datetime


@dataclass(frozen=True, slots=True)
class Inspected:
    """Answer `Inspect`. `now` is the time of the answer."""

    insight: Insight | Unavailable
    now: datetime


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    headers: Headers
    end_of_stream: bool


@dataclass(frozen=True, slots=True)
class ResponseBody:
    data: bytes
    end_of_stream: bool


@dataclass(frozen=True, slots=True)
class ResponseTrailers:
    """Report that the answer ends with trailers, without an end of stream on its last chunk."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Answer `Pause`: the loop was free for others."""


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Report that Envoy's stream is gone: the client left, the upstream broke off, or the exchange was over.

    `delivered` is False if the write of a reply was not even begun. Envoy may have got one that was begun.
    """

    delivered: bool = True


Event = (
    RequestHead
    | RequestBody
    | RequestTrailers
    | BodyRead
    | Decided
    | Inspected
    | ResponseHead
    | ResponseBody
    | ResponseTrailers
    | Resumed
    | StreamClosed
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Ask for the facts of a large body, read where it delays nobody. They come back as `BodyRead`.

    `caller` describes the request without its body, to refuse a caller that is suspended or has nothing left.
    """

    reading: Reading
    body: bytes
    caller: Caller


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask for a decision and a hold. The decision comes back as `Decided`."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask for the limits that bind an identity. The answer comes back as `Inspected`."""

    identity: Identity
    subject: Subject
    route: Route = NO_ROUTE


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop before the next step of long work, so that others can go on. `Resumed` answers it."""


@dataclass(frozen=True, slots=True)
class Grow:
    """Raise the hold to the value in `reservation`, because the answer outgrew it. Nothing waits for the
    result.
    """

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class HeadReply:
    """Let headers pass with these changes. The event that is answered decides which headers: request or
    response.
    """

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BodyReply:
    """Let a body chunk pass. `data` replaces it; None leaves it unchanged."""

    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class TrailersReply:
    """Let trailers pass."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the client instead of the upstream."""

    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Close:
    """End the reservation."""

    reservation: Reservation
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Finish:
    """Report that nothing is left to do: the stream may end."""


Reply = HeadReply | BodyReply | TrailersReply | Reject
Effect = ReadBody | Reserve | Inspect | Pause | Reply | Grow | Close | Finish
