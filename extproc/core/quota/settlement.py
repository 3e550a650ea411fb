"""How a reservation ends: on reported usage, on an estimate, with nothing at all; and what is charged for it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from extproc.core.quota.costs import EVEN, Cost, Weights
from extproc.core.quota.limits import Limit, Mode, Unit
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.usage import NO_USAGE, Usage, estimated_output


class Outcome(StrEnum):
    """How a request ended. All but `DENIED` are the ends of a reservation; each happens once."""

    SETTLED = "settled"  # on usage that the upstream reported
    ESTIMATED = "estimated"  # on what was counted, for want of usage
    RELEASED = "released"  # nothing was delivered: no token is charged
    EXPIRED = "expired"  # nobody ended it in time: charged as held
    DENIED = "denied"  # there was none: the request did not fit


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation ends: what is charged, on which usage, and why so (a small fixed set of reasons).

    `charge` is in weighted tokens. `capped`: no bucket is charged more than it held. `forwarded` is False where
    the upstream never had the request; only then it does not count as one.
    """

    outcome: Outcome
    usage: Usage
    charge: int
    reason: str
    status: int = 0
    capped: bool = False
    forwarded: bool = True


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a settlement is made of: the cost that was held, bytes per output token, and weights.

    `cost.output` is the output that was held. With `all_strict` nothing above the hold is ever charged: the limits
    stand whatever the upstream does, and what it does shows in the usage. Where others bind beside a strict one,
    they are charged the whole (and the strict one what it held, see `charges`).
    """

    cost: Cost
    bytes_per_token: int
    weights: Weights = EVEN
    held: int | None = None
    strict: bool = False
    all_strict: bool = False

    @classmethod
    def of(cls, reservation: Reservation, bytes_per_token: int) -> "Estimates":
        cost = Cost(reservation.cost.prompt, reservation.output_held)
        strict, all_strict = reservation.strict, reservation.all_strict
        return cls(cost, bytes_per_token, reservation.weights, reservation.held, strict, all_strict)

    def settle(self, usage: Usage, *, complete: bool) -> Settlement:
        # Who was cut off never pays more than was held, whatever the upstream says it generated.
        cut_off = not complete
        whole = self.weights.of(usage)
        charge = min(whole, self._held) if self.all_strict or cut_off else whole
        reason = "cut_off" if cut_off else "overran" if self.strict and whole > self._held else "usage"
        # Strict buckets are capped by their mode. Others beside them hold an estimate, which usage may outgrow.
        return Settlement(Outcome.SETTLED, usage, charge, reason, capped=cut_off)

    def estimate(self, content_bytes: int, pieces: int, reason: str, *, complete: bool = False) -> Settlement:
        """Settles on what was counted. Only a `complete` answer is charged more than was held for it."""
        output = estimated_output(content_bytes, pieces, self.bytes_per_token)
        if not complete or self.strict:
            output = min(self.cost.output, output)
        usage = Usage(self.cost.prompt, output, total=self.cost.prompt + output)
        whole = self.weights.of(usage)
        charge = whole if complete and not self.strict else min(whole, self._held)
        return Settlement(Outcome.ESTIMATED, usage, charge, reason, capped=not complete or self.strict)

    @property
    def _held(self) -> int:
        return self.held if self.held is not None else self.weights.at_most(self.cost.prompt, self.cost.output)


def released(reason: str, *, forwarded: bool = True) -> Settlement:
    """Nothing was delivered, so no token is charged."""
    return Settlement(Outcome.RELEASED, NO_USAGE, 0, reason, forwarded=forwarded)


def expiry(reservation: Reservation) -> Settlement:
    """How a reservation ends that nobody ended: charged as held, never refunded."""
    prompt, output = reservation.cost.prompt, reservation.output_held
    usage = Usage(prompt, output, total=prompt + output)
    return Settlement(Outcome.EXPIRED, usage, reservation.held, "expired", capped=True)


def charges(reservation: Reservation, settlement: Settlement) -> tuple[int, ...]:
    """What each bucket of the reservation is charged, in its unit.

    A strict bucket is never charged more than it held: its limit stands by construction. All others that count
    tokens are charged what the ledger says, also where they held less than a strict one beside them.
    """
    return tuple(_charge(reservation, settlement, bucket.limit) for bucket in reservation.buckets)


def _charge(reservation: Reservation, settlement: Settlement, limit: Limit) -> int:
    strict = limit.mode is Mode.STRICT  # a shadow of one too: it counts what one would count
    if limit.unit is Unit.TOKENS and not strict:
        return settlement.charge
    held = reservation.hold(limit)
    if settlement.outcome is Outcome.EXPIRED:
        return held
    charge = _counted(reservation, settlement, limit.unit)
    return min(charge, held) if settlement.capped or strict else charge


def _counted(reservation: Reservation, settlement: Settlement, unit: Unit) -> int:
    match unit:
        case Unit.TOKENS:
            return settlement.charge
        case Unit.INPUT_TOKENS:
            return settlement.usage.input
        case Unit.OUTPUT_TOKENS:
            return max(0, settlement.usage.total - settlement.usage.input)
        case Unit.REQUESTS:
            return reservation.requests if settlement.forwarded else 0
        case _:
            assert_never(unit)
