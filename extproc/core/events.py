"""What happens in an exchange, and what is to be done about it: plain values that know no transport."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from extproc.core.quota.drafting import Ask
from extproc.core.quota.insight import Insight
from extproc.core.quota.limits import Subject
from extproc.core.quota.reservation import Decision, Reservation, Unavailable
from extproc.core.quota.routes import NO_ROUTE, Route
from extproc.core.quota.settlement import Settlement
from extproc.core.rejections import Rejection
from extproc.core.request.identity import Identity

Headers = Mapping[str, str]

# ---------------------------------------------------------------- what happens


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Request headers (by lower-case name, repeated ones joined by commas) and what Envoy verified.

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
    """The request ends with trailers instead of an end of stream on its last body chunk."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The answer to `Reserve`; `now` is when it came."""

    decision: Decision
    now: datetime


@dataclass(frozen=True, slots=True)
class Inspected:
    """The answer to `Inspect`; `now` is when it came."""

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
    """The answer ends with trailers instead of an end of stream on its last chunk."""


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Envoy's side is gone: the client left, the upstream broke off, or all was over anyway.

    `delivered` is False where the last reply could not be handed to Envoy.
    """

    delivered: bool = True


Event = (
    RequestHead
    | RequestBody
    | RequestTrailers
    | Decided
    | Inspected
    | ResponseHead
    | ResponseBody
    | ResponseTrailers
    | StreamClosed
)

# ---------------------------------------------------------------- what is to be done


@dataclass(frozen=True, slots=True)
class Reserve:
    """Decide and hold; the decision comes back as `Decided`."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Inspect:
    """Tell what binds an identity; the answer comes back as `Inspected`."""

    identity: Identity
    subject: Subject
    route: Route = NO_ROUTE


@dataclass(frozen=True, slots=True)
class Grow:
    """The answer outgrows what is held for it: hold what the reservation says now. Nothing waits for it."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class HeadReply:
    """Lets headers go on, changed so. Which headers (request, response) follows from the event replied to."""

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BodyReply:
    """Lets a body chunk go on; `data` replaces it, None leaves it as it is."""

    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class TrailersReply:
    """Lets trailers go on."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answers the client in the upstream's place."""

    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Close:
    """Ends the reservation."""

    reservation: Reservation
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to do: the stream may end."""


Reply = HeadReply | BodyReply | TrailersReply | Reject
Effect = Reserve | Inspect | Reply | Grow | Close | Finish
