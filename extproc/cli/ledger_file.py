"""Read and write the ledger as a file: JSON lines in MongoDB's extended JSON, as `mongoexport` writes them.

A file in the order of admission is read as a stream, however long. Any other file is sorted by an index of its
lines (16 bytes per line while it is built, about 50 while it is sorted), at most `MAX_UNSORTED` lines.
"""

from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, BinaryIO, Final

import msgspec

from extproc.admin.errors import AdminError
from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Charge, Entry, RefusedBy
from extproc.core.quota.reservation import ReservationId
from extproc.core.quota.settlement import Outcome
from extproc.core.quota.usage import Usage
from extproc.core.request.addresses import ClientIP
from extproc.core.request.identity import Identity, ServiceAccount, TenantId
from extproc.given.files import GivenFileError, lines, opened
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.documents import entry_document

MAX_UNSORTED: Final = 10_000_000
_MAX_LINE_BYTES: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS: Final = 253_402_300_799_999  # the end of the year 9999
_MOST: Final = 2**53


class _Number(msgspec.Struct, frozen=True):
    """Hold a number of canonical extended JSON, or of the older strict JSON."""

    long: str | None = msgspec.field(name="$numberLong", default=None)
    int_: str | None = msgspec.field(name="$numberInt", default=None)
    double: str | None = msgspec.field(name="$numberDouble", default=None)


_Int = Annotated[int, msgspec.Meta(ge=0, le=_MOST)] | _Number


class _Date(msgspec.Struct, frozen=True):
    date: datetime | int | _Number = msgspec.field(name="$date")


_When = datetime | _Date


class _Cost(msgspec.Struct, frozen=True):
    prompt: _Int = 0
    output: _Int = 0


class _Usage(msgspec.Struct, frozen=True):
    input: _Int = 0
    output: _Int = 0
    cached: _Int = 0
    reasoning: _Int = 0
    total: _Int = 0
    audio_input: _Int = 0
    audio_output: _Int = 0
    cache_written: _Int = 0


class _Charge(msgspec.Struct, frozen=True):
    k: str
    u: _Int
    n: _Int
    l: _Int | None = None  # noqa: E741 - the name in the ledger


class _Refusal(msgspec.Struct, frozen=True):
    k: str
    u: _Int
    l: _Int  # noqa: E741 - the name in the ledger
    used: _Int
    held: _Int
    needed: _Int


class _Line(msgspec.Struct, frozen=True):
    tenant_id: str
    service_account: str = msgspec.field(name="serviceAccount")
    client_ip: str = msgspec.field(name="clientIP")
    date: str
    admitted_at: _When
    ended_at: _When
    endpoint: str
    model: str
    state: Outcome
    reason: str
    charge: _Int
    usage: _Usage
    id: Any = msgspec.field(name="_id", default="")
    held: _Int = 0
    status: _Int = 0
    stream: bool = False
    request_id: str = ""
    cost: _Cost | None = None
    shadow: tuple[str, ...] = ()
    price: _Int = 0
    charges: tuple[_Charge, ...] = ()
    count: _Int = 1
    refused_by: _Refusal | None = None


class _Moment(msgspec.Struct, frozen=True):
    admitted_at: _When


_LINES: Final = msgspec.json.Decoder(_Line)
_MOMENTS: Final = msgspec.json.Decoder(_Moment)


def line_of(entry: Entry) -> str:
    """Return the entry as one line, as `mongoexport` writes it."""
    document = entry_document(entry)
    for name in ("admitted_at", "ended_at"):
        at = document[name].astimezone(UTC)
        document[name] = {"$date": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"}
    return msgspec.json.encode(document).decode()


def read_ledger(name: str, wanted: UsageFilter) -> Iterator[Entry]:
    """Yield the file's entries, oldest admission first. Raise `AdminError`, which names the line."""
    try:
        with opened(name) as file:
            order = _order(file, name)
            file.seek(0)
            whole = enumerate(lines(file, _MAX_LINE_BYTES), start=1)
            for number, line in whole if order is None else _picked(file, order):
                if line.isspace():
                    continue
                entry = _entry(_decoded(_LINES, line, name, number), name, number)
                if wanted.fits(entry):
                    yield entry
    except GivenFileError as error:
        raise AdminError(f"{name}: {error}") from None
    except OSError as error:
        raise AdminError(f"{name}: can't be read: {error.strerror or error}") from None


def _order(file: BinaryIO, name: str) -> list[tuple[int, int]] | None:
    """Return line numbers and offsets in the order of admission; None if the file is in that order."""
    times, offsets, numbers = array("d"), array("Q"), array("Q")
    offset = 0
    for number, line in enumerate(lines(file, _MAX_LINE_BYTES), start=1):
        if not line.isspace():
            moment = _decoded(_MOMENTS, line, name, number).admitted_at
            times.append(_instant(moment, name, number).timestamp())
            offsets.append(offset)
            numbers.append(number)
        offset += len(line)
    if all(first <= second for first, second in pairwise(times)):
        return None
    if len(times) > MAX_UNSORTED:
        raise AdminError(
            f"{name}: has more than {MAX_UNSORTED} lines and is not in the order of admission: export it with "
            "'tokenweir usage export', or mongoexport --sort '{admitted_at: 1}'"
        )
    return [(numbers[i], offsets[i]) for i in sorted(range(len(times)), key=times.__getitem__)]


def _picked(file: BinaryIO, order: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    for number, offset in order:
        file.seek(offset)
        yield number, file.readline()


def _decoded(decoder: Any, line: bytes, name: str, number: int) -> Any:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdminError(f"{name}: line {number} is no entry of the ledger: {error}") from None


def _entry(line: _Line, name: str, number: int) -> Entry:
    def whole(value: _Int) -> int:
        return value if isinstance(value, int) else _whole(value, name, number)

    usage, held, refused = line.usage, whole(line.held), line.refused_by
    return Entry(
        id=ReservationId(str(line.id)),
        request_id=line.request_id,
        identity=Identity(
            TenantId(line.tenant_id), ServiceAccount(line.service_account), ClientIP(line.client_ip)
        ),
        date=line.date,
        endpoint=line.endpoint,
        model=line.model,
        stream=line.stream,
        outcome=line.state,
        reason=line.reason,
        held=held,
        charge=whole(line.charge),
        usage=Usage(
            input=whole(usage.input),
            output=whole(usage.output),
            cached=whole(usage.cached),
            reasoning=whole(usage.reasoning),
            total=whole(usage.total),
            audio_input=whole(usage.audio_input),
            audio_output=whole(usage.audio_output),
            cache_written=whole(usage.cache_written),
        ),
        status=whole(line.status),
        admitted_at=_instant(line.admitted_at, name, number),
        ended_at=_instant(line.ended_at, name, number),
        # Entries of the first version had no cost: use the hold instead.
        cost=Cost(whole(line.cost.prompt), whole(line.cost.output)) if line.cost is not None else Cost(0, held),
        shadow=line.shadow,
        price=whole(line.price),
        charges=tuple(
            Charge(each.k, whole(each.u), whole(each.n), whole(each.l) if each.l is not None else None)
            for each in line.charges
        ),
        count=max(1, whole(line.count)),
        refused_by=RefusedBy(
            refused.k, *map(whole, (refused.u, refused.l, refused.used, refused.held, refused.needed))
        )
        if refused is not None
        else None,
    )


def _whole(value: _Number, name: str, number: int) -> int:
    text = value.long or value.int_ or value.double or ""
    try:
        exact = float(text) if value.double else int(text)
        if exact == int(exact) and 0 <= exact <= _MOST:
            return int(exact)
    except (ValueError, OverflowError):
        pass
    raise AdminError(
        f"{name}: line {number} is no entry of the ledger: {text[:40]!r} is no whole number from 0 to 2^53"
    )


def _instant(value: _When, name: str, number: int) -> datetime:
    inner = value.date if isinstance(value, _Date) else value
    if isinstance(inner, datetime):
        return inner if inner.tzinfo is not None else inner.replace(tzinfo=UTC)
    ms = inner if isinstance(inner, int) else _whole(inner, name, number)
    if not 0 <= ms <= _MAX_MS:
        raise AdminError(f"{name}: line {number} is no entry of the ledger: a date is out of range")
    return _EPOCH + timedelta(milliseconds=ms)
