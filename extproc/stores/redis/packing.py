"""Pack reservations and entries for Redis: arrays of values without names, in MessagePack.

Most bytes of a request were a reservation and an entry as JSON; packed, they take a third. Replicas of version 0.1
read JSON only, so JSON is written while one of them runs. Both are always read: JSON begins with a brace. Each
array begins with its version; a reader ignores what a later version appends.

An entry says mostly what its reservation says. So only the rest is sent when a reservation ends (`packed_end`),
and Redis puts the reservation's body beside it.
"""

from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import astuple

from extproc.core.by_identity import ByIdentity
from extproc.core.quota.costs import EVEN, Bound, Cost, Weights
from extproc.core.quota.ledger import Charge, Entry
from extproc.core.quota.limits import Bucket, Interval, Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity, ServiceAccount, TenantId

_VERSION: Final = 1
_BRACE: Final = b"{"
_ID_BYTES: Final = 16  # of an id that this version draws: 32 characters in hex

# Their numbers are in Redis: a new member is appended, and none is taken out.
SCOPES: Final = (
    *(Scope.TENANT, Scope.SERVICE_ACCOUNT, Scope.CLIENT_IP, Scope.SERVICE_ACCOUNT_IP),
    *(Scope.MODEL, Scope.SERVICE_ACCOUNT_MODEL, Scope.CLIENT_IP_MODEL, Scope.SERVICE_ACCOUNT_IP_MODEL),
    *(Scope.ENDPOINT, Scope.SERVICE_ACCOUNT_ENDPOINT, Scope.CLIENT_IP_ENDPOINT, Scope.SERVICE_ACCOUNT_IP_ENDPOINT),
)
WINDOWS: Final = (Window.MINUTE, Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH)
UNITS: Final = (Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS, Unit.REQUESTS)
MODES: Final = (Mode.RESERVE, Mode.SOFT, Mode.STRICT)
ENDPOINTS: Final = (
    *(Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES, Endpoint.MESSAGES),
    *(Endpoint.RERANK, Endpoint.SCORE, Endpoint.TRANSCRIPTIONS, Endpoint.SPEECH, Endpoint.IMAGES),
    *(Endpoint.PREDICT, Endpoint.INFER, Endpoint.ROUTE, Endpoint.QUOTA),
)
_SCOPE = {scope: number for number, scope in enumerate(SCOPES)}
_WINDOW = {window: number for number, window in enumerate(WINDOWS)}
_UNIT = {unit: number for number, unit in enumerate(UNITS)}
_MODE = {mode: number for number, mode in enumerate(MODES)}
_ENDPOINT = {endpoint: number for number, endpoint in enumerate(ENDPOINTS)}


class _Bucket(Struct, array_like=True):
    scope: int
    window: int
    amount: int
    unit: int
    mode: int
    shadow: bool
    model: str | None
    endpoints: tuple[Endpoint, ...]
    parts: tuple[str, ...]
    start: int
    end: int


class _Reservation(Struct, array_like=True):
    version: int
    id: Any  # bytes, or a text that is no such id
    request_id: Any  # bytes, or a text that is no UUID
    tenant: str
    service_account: str
    client_ip: str
    endpoint: int
    model: str
    stream: bool
    prompt: int
    output: int
    buckets: tuple[_Bucket, ...]
    admitted_at: datetime
    date: str
    deadline: float
    weights: tuple[int, int, int, int] | None
    bound: tuple[int, int, int, int, bool, str | None] | None
    requests: int
    extra_output: int
    local: bool
    replica: str


class _End(Struct, array_like=True):
    version: int
    outcome: Outcome
    reason: str
    held: int
    charge: int
    usage: tuple[int, ...]
    status: int
    ended_at: datetime
    shadow: tuple[str, ...]
    price: int
    amounts: tuple[int, ...]


def _plain(value: object) -> int:
    """Return a number of a type of its own, such as that of MongoDB's driver, as one."""
    if isinstance(value, int):
        return int(value)
    raise NotImplementedError(f"{type(value).__name__} can't be packed")


encoded: Final = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_reservation = msgspec.msgpack.Decoder(_Reservation)
_reservation_in_json = msgspec.json.Decoder(Reservation)
_end = msgspec.msgpack.Decoder(_End)
_entry_in_json = msgspec.json.Decoder(Entry)


def packed(reservation: Reservation) -> bytes:
    """Return the body of a reservation."""
    r, who, cost, bound = reservation, reservation.identity, reservation.cost, reservation.bound
    return encoded(
        (
            *(_VERSION, _packed_id(r.id), _packed_uuid(r.request_id)),
            *(who.tenant, who.service_account, who.client_ip),
            *(_ENDPOINT[r.endpoint], r.model, r.stream, cost.prompt, cost.output, _PACKED_BUCKETS.of(r.buckets)),
            *(r.admitted_at, r.date, r.deadline),
            astuple(r.weights) if r.weights != EVEN else None,
            astuple(bound) if bound is not None else None,
            *(r.requests, r.extra_output, r.local, r.replica),
        )
    )


def read_body(body: bytes) -> Reservation:
    """Return the reservation of a body, packed or JSON. Raise a `msgspec.MsgspecError` or an `IndexError`."""
    if body[:1] == _BRACE:
        return _reservation_in_json.decode(body)
    r = _reservation.decode(body)
    return Reservation(
        id=ReservationId(r.id.hex() if isinstance(r.id, bytes) else r.id),
        request_id=_uuid(r.request_id.hex()) if isinstance(r.request_id, bytes) else r.request_id,
        identity=Identity(TenantId(r.tenant), ServiceAccount(r.service_account), ClientIP(r.client_ip)),
        endpoint=ENDPOINTS[r.endpoint],
        model=r.model,
        stream=r.stream,
        cost=Cost(r.prompt, r.output),
        buckets=tuple(map(_bucket, r.buckets)),
        admitted_at=r.admitted_at,
        date=r.date,
        deadline=r.deadline,
        weights=Weights(*r.weights) if r.weights is not None else EVEN,
        bound=Bound(*r.bound) if r.bound is not None else None,
        requests=r.requests,
        extra_output=r.extra_output,
        local=r.local,
        replica=r.replica,
    )


def packed_end(reservation: Reservation, entry: Entry) -> bytes | None:
    """Return what an entry says beyond its reservation; None if it says anything else than its reservation."""
    r = reservation
    if (entry.id, entry.request_id, entry.model, entry.date) != (r.id, r.request_id, r.model, r.date):
        return None
    if (entry.identity, entry.endpoint, entry.stream) != (r.identity, r.endpoint, r.stream):
        return None
    if (entry.admitted_at, entry.cost, entry.count, entry.refused_by) != (r.admitted_at, r.cost, 1, None):
        return None
    amounts = _amounts(r.buckets, entry.charges)
    if amounts is None:
        return None
    return encoded(
        (
            *(_VERSION, entry.outcome, entry.reason, entry.held, entry.charge, astuple(entry.usage)),
            *(entry.status, entry.ended_at, entry.shadow, entry.price, amounts),
        )
    )


def read_entry(entry: bytes, body: bytes | None) -> tuple[Entry, str]:
    """Return an entry, and the replica that admitted it ('' if that is not told).

    The entry is JSON, or what `packed_end` made with the body beside it. Raise a `msgspec.MsgspecError`, or
    another ValueError, TypeError or LookupError.
    """
    if body is None:
        return _entry_in_json.decode(entry), ""
    r, end = read_body(body), _end.decode(entry)
    charged = zip(r.buckets, end.amounts, strict=True)
    made = Entry(
        id=r.id,
        request_id=r.request_id,
        identity=r.identity,
        date=r.date,
        endpoint=r.endpoint,
        model=r.model,
        stream=r.stream,
        outcome=end.outcome,
        reason=end.reason,
        held=end.held,
        charge=end.charge,
        usage=Usage(*end.usage),
        status=end.status,
        admitted_at=r.admitted_at,
        ended_at=end.ended_at,
        cost=r.cost,
        shadow=end.shadow,
        price=end.price,
        charges=tuple(Charge(b.key, b.interval.end, amount, b.limit.amount) for b, amount in charged if amount),
    )
    return made, r.replica


def _packed_id(reservation_id: str) -> bytes | str:
    try:
        found = bytes.fromhex(reservation_id)
    except ValueError:
        return reservation_id
    return found if len(found) == _ID_BYTES and found.hex() == reservation_id else reservation_id


def _packed_uuid(text: str) -> bytes | str:
    """Return an id of Envoy's in half of its bytes, and any other text as it is."""
    digits = text.replace("-", "")
    found = _packed_id(digits)
    return found if isinstance(found, bytes) and _uuid(digits) == text else text


def _uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _bucket_values(bucket: Bucket) -> tuple[object, ...]:
    limit = bucket.limit
    return (
        *(_SCOPE[limit.scope], _WINDOW[limit.window], limit.amount, _UNIT[limit.unit], _MODE[limit.mode]),
        *(limit.shadow, limit.model, limit.endpoints, bucket.parts, bucket.interval.start, bucket.interval.end),
    )


def _packed_buckets(buckets: tuple[Bucket, ...]) -> Raw:
    return Raw(encoded([_bucket_values(bucket) for bucket in buckets]))


# The buckets of a caller's requests are the same objects until a window ends.
_PACKED_BUCKETS: Final = ByIdentity(_packed_buckets)


def _bucket(b: _Bucket) -> Bucket:
    limit = Limit(
        SCOPES[b.scope], WINDOWS[b.window], b.amount, UNITS[b.unit], MODES[b.mode], b.shadow, b.model, b.endpoints
    )
    return Bucket(limit, b.parts, Interval(b.start, b.end))


def _is_of(charge: Charge, bucket: Bucket) -> bool:
    return charge.key == bucket.key and charge.until == bucket.interval.end and charge.limit == bucket.limit.amount


def _amounts(buckets: tuple[Bucket, ...], charges: tuple[Charge, ...]) -> list[int] | None:
    """Return the charge of each bucket; None if charges and buckets do not agree in their order."""
    amounts, next_ = [], 0
    for bucket in buckets:
        charge = charges[next_] if next_ < len(charges) else None
        if charge is not None and _is_of(charge, bucket):
            if not charge.amount:
                return None
            amounts.append(charge.amount)
            next_ += 1
        else:
            amounts.append(0)
    return amounts if next_ == len(charges) else None
