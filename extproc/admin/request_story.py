"""Tell the story of one request: what its ledger entry says, or what it holds while it runs."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from extproc.core.quota.ledger import Charge, Entry, RefusedBy
from extproc.core.quota.limits import Bucket, BucketName, read_key
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage


class Place(StrEnum):
    """Say where the story of a request was found."""

    LEDGER = "ledger"
    WAITING = "waiting"  # it has ended; its entry is not yet in the ledger
    OPEN = "open"  # it runs


class Reporter(StrEnum):
    """Say who reported the usage that a request was charged by."""

    SERVER = "server"
    ESTIMATE = "estimate"  # Tokenweir counted what was delivered
    HOLD = "hold"  # nobody: the whole hold was charged
    NOBODY = "nobody"  # nothing was charged


@dataclass(frozen=True, slots=True)
class BoundLimit:
    """Describe one limit that bound a request, in the limit's unit. None: not known, or not the case.

    `amount` is that of the limit when the request was admitted or refused. `used` and `held` are the counts at
    that moment for a limit that `refused` the request; else `used` is not known. `charged` is what the request was
    charged in the end.
    """

    scope: str
    unit: str
    window: str
    who: str
    model: str | None
    endpoints: tuple[str, ...]
    window_started_at: datetime | None
    resets_at: datetime
    amount: int | None
    used: int | None = None
    held: int | None = None
    needed: int | None = None
    charged: int | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class RequestStory:
    """Tell everything that is known of one request; with a `count` above 1, of so many denied ones of one caller.

    `outcome` is None while it is open. `prompt_estimate` and `output_estimate` are what it was expected to need at
    admission. `price` is in billionths of the currency of the configured prices. `told` says in a sentence how it
    ended and why it was charged what it was.
    """

    place: Place
    id: str
    request_id: str
    tenant: str
    service_account: str
    client_ip: str
    endpoint: str
    model: str
    stream: bool
    outcome: Outcome | None
    reason: str
    told: str
    count: int
    status: int
    held: int
    charged: int
    prompt_estimate: int
    output_estimate: int
    usage: Usage | None
    reported_by: Reporter
    price: int
    limits: tuple[BoundLimit, ...]
    would_have_denied: tuple[str, ...]
    admitted_at: datetime
    ended_at: datetime | None
    expires_at: datetime | None = None


def story_of(entry: Entry, place: Place = Place.LEDGER) -> RequestStory:
    """Tell the story of an entry."""
    who = entry.identity
    limits = [_charged(charge) for charge in entry.charges]
    if entry.refused_by is not None:
        limits.append(_refused(entry.refused_by))
    return RequestStory(
        place=place,
        id=entry.id,
        request_id=entry.request_id,
        tenant=who.tenant,
        service_account=who.service_account,
        client_ip=who.client_ip,
        endpoint=entry.endpoint,
        model=entry.model,
        stream=entry.stream,
        outcome=entry.outcome,
        reason=entry.reason,
        told=how_it_ended(entry.outcome, entry.reason),
        count=entry.count,
        status=entry.status,
        held=entry.held,
        charged=entry.charge,
        prompt_estimate=entry.cost.prompt,
        output_estimate=entry.cost.output,
        usage=entry.usage if entry.outcome is not Outcome.DENIED else None,
        reported_by=_REPORTERS[entry.outcome],
        price=entry.price,
        limits=tuple(limits),
        would_have_denied=entry.shadow,
        admitted_at=entry.admitted_at,
        ended_at=entry.ended_at,
    )


def story_of_open(reservation: Reservation) -> RequestStory:
    """Tell the story of a request that runs."""
    who = reservation.identity
    return RequestStory(
        place=Place.OPEN,
        id=reservation.id,
        request_id=reservation.request_id,
        tenant=who.tenant,
        service_account=who.service_account,
        client_ip=who.client_ip,
        endpoint=reservation.endpoint,
        model=reservation.model,
        stream=reservation.stream,
        outcome=None,
        reason="",
        told="It runs: what it may need is held, and nothing is charged yet.",
        count=1,
        status=0,
        held=reservation.held,
        charged=0,
        prompt_estimate=reservation.cost.prompt,
        output_estimate=reservation.cost.output,
        usage=None,
        reported_by=Reporter.NOBODY,
        price=0,
        limits=tuple(_holding(reservation, bucket) for bucket in reservation.buckets),
        would_have_denied=(),
        admitted_at=reservation.admitted_at,
        ended_at=None,
        expires_at=datetime.fromtimestamp(reservation.deadline, UTC),
    )


_REPORTERS: Final = {
    Outcome.SETTLED: Reporter.SERVER,
    Outcome.ESTIMATED: Reporter.ESTIMATE,
    Outcome.EXPIRED: Reporter.HOLD,
    Outcome.RELEASED: Reporter.NOBODY,
    Outcome.DENIED: Reporter.NOBODY,
}
_ENDS: Final = {
    (Outcome.SETTLED, "usage"): "The server reported its usage, and that was charged.",
    (
        Outcome.SETTLED,
        "cut_off",
    ): "The answer was cut off after the server had reported its usage: that was charged, "
    "but not more than was held.",
    (
        Outcome.SETTLED,
        "overran",
    ): "The server reported more than a strict limit had allowed it: no strict limit was "
    "charged more than was held.",
    (Outcome.SETTLED, "request"): "It counts as a request only; no tokens are counted for it.",
    (Outcome.EXPIRED, "expired"): "Nothing ended it in time: the whole hold was charged.",
    (Outcome.RELEASED, "upstream_error"): "The server answered with an error: nothing was charged.",
    (Outcome.RELEASED, "not_forwarded"): "It never reached the server: nothing was charged.",
    (Outcome.DENIED, "suspended"): "Its caller is suspended: it was refused, and nothing was charged.",
    (Outcome.DENIED, "unbounded_prompt"): "A strict limit binds it, and what it can need has no bound: it was "
    "refused, and nothing was charged.",
    (
        Outcome.DENIED,
        "unnamed_model",
    ): "A limit by model binds it, and it names no model: it was refused, and nothing was charged.",
}
_ESTIMATED: Final = {
    "missing": "the server reported no usage",
    "absurd": "the server reported an impossible usage",
    "unreadable": "the server's usage can't be read",
    "implausible": "the server reported more than there can be, or counts that contradict each other",
    "partial": "the server reported no usage of the prompt",
    "other_unit": "the server reported seconds or searches, not tokens",
    "encoded": "the answer was compressed, and can't be read",
    "binary": "the answer was audio or pictures",
    "empty": "the answer was empty",
    "cut_off": "the answer was cut off before the server reported its usage",
    "left_before_answer": "the client left before the answer began",
    "gateway_timeout": "Envoy waited too long for the answer and gave up",
}
_OTHERWISE: Final = {
    Outcome.SETTLED: "It was charged by what the server reported ({reason}).",
    Outcome.ESTIMATED: "Its charge is an estimate, because {reason}.",
    Outcome.RELEASED: "Nothing was delivered ({reason}): nothing was charged.",
    Outcome.EXPIRED: "Nothing ended it in time ({reason}): the whole hold was charged.",
    Outcome.DENIED: "A limit by {reason} had no room for it: it was refused, and nothing was charged.",
}


def how_it_ended(outcome: Outcome, reason: str) -> str:
    """Say in a sentence how a request ended. The reasons are those of docs/metrics.md."""
    if outcome is Outcome.ESTIMATED:
        reason = _ESTIMATED.get(reason, reason)
    return _ENDS.get((outcome, reason)) or _OTHERWISE[outcome].format(reason=reason or "no reason is recorded")


def _charged(charge: Charge) -> BoundLimit:
    name = read_key(charge.key)
    return _limit(name, charge.key, charge.until, charge.limit, charged=charge.amount)


def _refused(refusal: RefusedBy) -> BoundLimit:
    return _limit(
        read_key(refusal.key),
        refusal.key,
        refusal.until,
        refusal.limit,
        used=refusal.used,
        held=refusal.held,
        needed=refusal.needed,
        refused=True,
    )


def _holding(reservation: Reservation, bucket: Bucket) -> BoundLimit:
    hold = reservation.hold(bucket.limit)
    return _limit(
        read_key(bucket.key), bucket.key, bucket.interval.end, bucket.limit.amount, held=hold, needed=hold
    )


def _limit(
    name: BucketName | None,
    key: str,
    until: int,
    amount: int | None,
    *,
    used: int | None = None,
    held: int | None = None,
    needed: int | None = None,
    charged: int | None = None,
    refused: bool = False,
) -> BoundLimit:
    return BoundLimit(
        scope=name.scope.value if name is not None else key,
        unit=name.unit.value if name is not None else "",
        window=name.window.value if name is not None else "",
        who=" + ".join(name.parts) if name is not None else "",
        model=name.model if name is not None else None,
        endpoints=name.endpoints if name is not None else (),
        window_started_at=datetime.fromtimestamp(name.start, UTC) if name is not None else None,
        resets_at=datetime.fromtimestamp(until, UTC),
        amount=amount,
        used=used,
        held=held,
        needed=needed,
        charged=charged,
        refused=refused,
    )
