"""Count denied requests: the first of a minute and bucket have ledger entries of their own, the others share some.

A caller without quota can be denied hundreds of times a second. An entry of its own for each of these requests
would fill the ledger: one entry per caller, endpoint and reason says how many there were.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import Entry, RefusedBy, denied_entry
from extproc.core.quota.reservation import Denied, Reservation, ReservationId
from extproc.core.request.identity import Identity

# The model of an entry that stands for requests of several models: a caller can make names up.
SEVERAL_MODELS: Final = "(several)"
_MINUTE_S: Final = 60

_Key = tuple[Identity, str, str, str]  # the caller, the date, the endpoint, the reason


@dataclass(frozen=True, slots=True)
class DenialOptions:
    """Give the first `singly_per_minute` denials of a minute and bucket entries of their own.

    The others are counted, and written every `write_s` seconds. `buckets` and `callers` bound the memory: the
    denials of further buckets are counted, those of further callers need a place in the ledger's queue at once.
    """

    singly_per_minute: int = 10
    write_s: float = 5.0
    buckets: int = 10_000
    callers: int = 10_000


@dataclass(slots=True)
class _Sum:
    first: Entry
    last_at: datetime
    denied: Denied | None
    count: int = 0
    prompt: int = 0
    output: int = 0


@dataclass(slots=True)
class Denials:
    """Tell which denials are written singly, and sum the others."""

    new_id: Callable[[], ReservationId]
    options: DenialOptions = field(default_factory=DenialOptions)
    _minute: int = -1
    _firsts: dict[tuple[str, str], int] = field(default_factory=dict)
    _sums: dict[_Key, _Sum] = field(default_factory=dict)

    def is_single(self, reservation: Reservation, bucket: str) -> bool:
        """Return whether this denial is among the first of its minute and bucket, and count it."""
        minute = int(reservation.admitted_at.timestamp()) // _MINUTE_S
        if minute != self._minute:
            self._minute, self._firsts = minute, {}
        key = (reservation.identity.tenant, bucket)
        known = self._firsts.get(key)
        if known is None and len(self._firsts) >= self.options.buckets:
            return False
        count = known or 0
        if count >= self.options.singly_per_minute:
            return False
        self._firsts[key] = count + 1
        return True

    def add(self, reservation: Reservation, reason: str, denied: Denied | None = None) -> bool:
        """Count a denial. Return False if there is no room for another caller: it is not counted then."""
        key = (reservation.identity, reservation.date, reservation.endpoint.value, reason)
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= self.options.callers:
                return False
            first = replace(denied_entry(reservation, reason), id=self.new_id(), request_id="")
            found = self._sums[key] = _Sum(first, reservation.admitted_at, denied)
        elif found.first.model != reservation.model:
            found.first = replace(found.first, model=SEVERAL_MODELS)
        if reservation.admitted_at >= found.last_at:
            found.last_at, found.denied = reservation.admitted_at, denied
        found.count += 1
        found.prompt += reservation.cost.prompt
        found.output += reservation.cost.output
        return True

    def oldest(self) -> Entry | None:
        """Return the oldest sum as an entry; None if there is none."""
        if not self._sums:
            return None
        found = next(iter(self._sums.values()))
        cost = Cost(found.prompt, found.output)
        refusal = RefusedBy.of(found.denied) if found.denied is not None else None
        return replace(found.first, count=found.count, cost=cost, ended_at=found.last_at, refused_by=refusal)

    def drop_oldest(self) -> None:
        """Forget the oldest sum: it is recorded."""
        del self._sums[next(iter(self._sums))]

    def __len__(self) -> int:
        return len(self._sums)
