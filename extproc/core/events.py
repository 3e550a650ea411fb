"""Define the events of an exchange and the effects that answer them: plain values, independent of the
transport.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

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
GATEWAY_TIMEOUT: Final = 504

# ---------------------------------------------------------------- events


class RequestHead(Struct, frozen=True):
    """Hold the request headers (lower-case names, repeated ones joined by commas) and what Envoy verified.

    `peer` is the URI in the peer's certificate, empty without mTLS.
    """

    headers: Headers
    claims: Mapping[str, object]
    source_address: str
    end_of_stream: bool
    peer: str = ""


class RequestBody(Struct, frozen=True):
    """Report a piece of the request's body. `more` follows `data`: a large piece stays in the parts in which it
    came.
    """

    data: bytes
    end_of_stream: bool
    more: Sequence[bytes] = ()


class RequestTrailers(Struct, frozen=True):
    """Report that the request ends with trailers, without an end of stream on its last body chunk."""


class BodyRead(Struct, frozen=True):
    """Answer `ReadBody`. `now` is the time of the answer.

    `Suspended` and `Denied`: the caller was refused before its body was read.
    """

    result: BodyFacts | Malformed | Unread | Suspended | Denied
    now: datetime


class Decided(Struct, frozen=True):
    """Answer `Reserve`. `now` is the time of the answer."""

    decision: Decision
    now: datetime


class Inspected(Struct, frozen=True):
    """Answer `Inspect`. `now` is the time of the answer."""

    insight: Insight | Unavailable
    now: datetime


class ResponseHead(Struct, frozen=True):
    """Report the head of the answer.

    `details` is what Envoy says of where a 504 comes from: `via_upstream`, or why Envoy itself gave it. It is
    empty for every other status, and where Envoy is not asked for it.
    """

    status: int
    headers: Headers
    end_of_stream: bool
    details: str = ""


class ResponseBody(Struct, frozen=True):
    data: bytes
    end_of_stream: bool


class ResponseTrailers(Struct, frozen=True):
    """Report that the answer ends with trailers, without an end of stream on its last chunk."""


class Resumed(Struct, frozen=True):
    """Answer `Pause`: the loop was free for others."""


class StreamClosed(Struct, frozen=True):
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


class ReadBody(Struct, frozen=True):
    """Ask for the facts of a large body, read where it delays nobody. They come back as `BodyRead`.

    `body` is in parts. `caller` describes the request without it, to refuse a caller that is suspended or has
    nothing left.
    """

    reading: Reading
    body: tuple[bytes, ...]
    caller: Caller


class Reserve(Struct, frozen=True):
    """Ask for a decision and a hold. The decision comes back as `Decided`."""

    ask: Ask


class Inspect(Struct, frozen=True):
    """Ask for the limits that bind an identity. The answer comes back as `Inspected`."""

    identity: Identity
    subject: Subject
    route: Route = NO_ROUTE


class Pause(Struct, frozen=True):
    """Stop before the next step of long work, so that others can go on. `Resumed` answers it."""


class Grow(Struct, frozen=True):
    """Raise the hold to the value in `reservation`, because the answer outgrew it. Nothing waits for the
    result.
    """

    reservation: Reservation


class HeadReply(Struct, frozen=True):
    """Let headers pass with these changes. The event that is answered decides which headers: request or
    response.
    """

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()


class BodyReply(Struct, frozen=True):
    """Let a body chunk pass. `data` replaces it; None leaves it unchanged. `more` follows `data`: what replaces a
    large body stays in parts.
    """

    data: bytes | None = None
    more: Sequence[bytes | memoryview] = ()


class TrailersReply(Struct, frozen=True):
    """Let trailers pass."""


class Reject(Struct, frozen=True):
    """Answer the client instead of the upstream."""

    rejection: Rejection


class Close(Struct, frozen=True):
    """End the reservation."""

    reservation: Reservation
    settlement: Settlement


class Finish(Struct, frozen=True):
    """Report that nothing is left to do: the stream may end."""


Reply = HeadReply | BodyReply | TrailersReply | Reject
Effect = ReadBody | Reserve | Inspect | Pause | Reply | Grow | Close | Finish
