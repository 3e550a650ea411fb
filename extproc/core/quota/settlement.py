"""End a reservation on reported usage, on an estimate or on nothing, and compute its charge."""

from enum import StrEnum
from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from extproc.core.quota.costs import EVEN, Cost, Weights
from extproc.core.quota.limits import Limit, Mode, Unit
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.usage import NO_USAGE, Usage, estimated_output
from extproc.core.request.body import MAX_TOKENS

# Output that a server may report beyond what it was told to keep to: it counts differently, or stops late ...
SLACK_TOKENS: Final = 4096
# ... that a choice may have though nobody sees it and no details tell of it ...
UNSEEN_TOKENS: Final = 8192
# ... and the most that is believed to be reasoning of a choice, where the client set no bound.
REASONING_TOKENS: Final = 131_072
_STRICT, _TOKENS = Mode.STRICT, Unit.TOKENS  # to find a member of an enumeration takes 0.1 us
# No token of text is longer than this. A count of fewer tokens than `FEW_TOKENS` is held against the text's size;
# larger counts are not, because what seems to be text may be a picture, and servers cut long prompts.
LONGEST_TOKEN_BYTES: Final = 512
FEW_TOKENS: Final = 16


class Outcome(StrEnum):
    """List the ways that a request can end. All but `DENIED` end a reservation; each reservation ends once."""

    SETTLED = "settled"  # on usage that the upstream reported
    ESTIMATED = "estimated"  # on counted content, because there was no usage
    RELEASED = "released"  # nothing was delivered: no token is charged
    EXPIRED = "expired"  # nothing ended it in time: the hold is charged
    DENIED = "denied"  # the request did not fit: there was no reservation


class Settlement(Struct, frozen=True):
    """Describe the end of a reservation: its charge, the usage behind it, and the reason (a small fixed set).

    `charge` is in weighted tokens. `capped`: no bucket is charged more than it held. `forwarded` is False if the
    upstream never got the request; only then it does not count as a request.
    """

    outcome: Outcome
    usage: Usage
    charge: int
    reason: str
    status: int = 0
    capped: bool = False
    forwarded: bool = True


class Estimates(Struct, frozen=True):
    """Hold the inputs of a settlement: the cost that was held, bytes per output token, weights, and the client's
    own bound on the output of all `choices`.

    `cost.output` is the output that was held. With `all_strict` nothing above the hold is ever charged: the limits
    hold whatever the upstream does, and any excess shows in the usage only. If other limits bind beside a strict
    one, their buckets are charged the whole usage, and the strict bucket at most its hold (see `charges`).
    """

    cost: Cost
    bytes_per_token: int
    weights: Weights = EVEN
    held: int | None = None
    strict: bool = False
    all_strict: bool = False
    bound: int | None = None
    choices: int = 1
    prompt_bytes: int = 0

    @classmethod
    def of(
        cls,
        reservation: Reservation,
        bytes_per_token: int,
        *,
        bound: int | None = None,
        choices: int = 1,
        prompt_bytes: int = 0,
    ) -> "Estimates":
        """Return the inputs for a reservation. `bound` is the client's own, on the output of all `choices`.

        `prompt_bytes` is the size of the prompt's text.
        """
        return cls(
            Cost(reservation.cost.prompt, reservation.output_held),
            bytes_per_token,
            reservation.weights,
            reservation.held,
            reservation.strict,
            reservation.all_strict,
            bound,
            choices,
            prompt_bytes,
        )

    def tokens(self, content_bytes: int, pieces: int) -> int:
        """Estimate the output tokens of text so far: at most the client's own bound."""
        output = estimated_output(content_bytes, pieces, self.bytes_per_token)
        return output if self.bound is None else min(output, self.bound)

    def believable(self, usage: Usage, possible: int) -> Usage:
        """Return the usage, with no more output than there can be; the same object if it is believable.

        `possible` is the most tokens that the delivered bytes can be. Beyond it there may be tokens that nobody
        sees: reasoning, and what a server generates beyond the client's bound.
        """
        claimed = usage.total - usage.input
        hidden = max(usage.reasoning, claimed - usage.output)
        if self.bound is None:
            most = max(possible, UNSEEN_TOKENS * self.choices) + min(hidden, REASONING_TOKENS * self.choices)
        else:
            room = SLACK_TOKENS + min(hidden, UNSEEN_TOKENS * self.choices)
            most = max(possible, 2 * self.bound + room)
        if claimed <= most:
            return usage
        output = min(usage.output, most)
        return replace(
            usage,
            output=output,
            total=usage.input + most,
            reasoning=min(usage.reasoning, output),
            audio_output=min(usage.audio_output, output),
        )

    def with_input(self, usage: Usage, most_input: int | None = None) -> Usage:
        """Return the usage with the prompt's estimate in place of an input that can't be; else the same object.

        With `most_input` the input is only known to be at least the usage's, and at most that.
        """
        if most_input is None:
            nothing = not usage.input and self.cost.prompt
            if not (nothing or self.is_too_few(usage.input, self.prompt_bytes)):
                return usage
            most_input = MAX_TOKENS
        estimate = min(max(usage.input, self.cost.prompt), most_input)
        total = min(MAX_TOKENS, usage.total - usage.input + estimate)
        return replace(usage, input=min(estimate, total - usage.output), total=total)

    @staticmethod
    def is_too_few(tokens: int, text_bytes: int) -> bool:
        """Tell whether a text of this size can't have so few tokens."""
        return tokens < FEW_TOKENS and text_bytes > LONGEST_TOKEN_BYTES * max(1, tokens)

    def settle(self, usage: Usage, *, complete: bool) -> Settlement:
        # A cut-off answer never costs more than was held, whatever usage the upstream reports.
        cut_off = not complete
        whole = self.weights.of(usage)
        charge = min(whole, self._held) if self.all_strict or cut_off else whole
        reason = "cut_off" if cut_off else "overran" if self.strict and whole > self._held else "usage"
        # Strict buckets are capped by their mode. Other buckets hold an estimate, which usage may exceed.
        return Settlement(Outcome.SETTLED, usage, charge, reason, capped=cut_off)

    def estimate(self, content_bytes: int, pieces: int, reason: str, *, complete: bool = False) -> Settlement:
        """Settle on the counted content. Only a `complete` answer may be charged more than its hold."""
        output = max(min(pieces, MAX_TOKENS), self.tokens(content_bytes, pieces))
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
    """Release the reservation: nothing was delivered, so no token is charged."""
    return Settlement(Outcome.RELEASED, NO_USAGE, 0, reason, forwarded=forwarded)


def expiry(reservation: Reservation) -> Settlement:
    """Settle a reservation that nothing ended: charge its hold, refund nothing."""
    prompt, output = reservation.cost.prompt, reservation.output_held
    usage = Usage(prompt, output, total=prompt + output)
    return Settlement(Outcome.EXPIRED, usage, reservation.held, "expired", capped=True)


def charges(reservation: Reservation, settlement: Settlement) -> tuple[int, ...]:
    """Return the charge of each bucket of the reservation, in its unit.

    A strict bucket is never charged more than it held, so its limit is never exceeded. All other token buckets are
    charged what the ledger says, even if they held less than a strict bucket of the same request.
    """
    return tuple([_charge(reservation, settlement, bucket.limit) for bucket in reservation.buckets])


def _charge(reservation: Reservation, settlement: Settlement, limit: Limit) -> int:
    strict = limit.mode is _STRICT  # also for a shadow: it counts what a strict limit would count
    if limit.unit is _TOKENS and not strict:
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
