"""How a reservation ends: on reported usage, on an estimate, with nothing at all; and what is charged for it."""

from dataclasses import dataclass
from enum import StrEnum

from extproc.core.quota import Cost
from extproc.core.usage import NO_USAGE, Usage, estimated_output


class Outcome(StrEnum):
    """How a request ended. All but `DENIED` are the ends of a reservation; each happens once."""

    SETTLED = "settled"  # on usage that the upstream reported
    ESTIMATED = "estimated"  # on what was counted, for want of usage
    RELEASED = "released"  # nothing was delivered: nothing is charged
    EXPIRED = "expired"  # nobody ended it in time: charged as held
    DENIED = "denied"  # there was none: the request did not fit


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation ends: what is charged, on which usage, and why so (a small fixed set of reasons)."""

    outcome: Outcome
    usage: Usage
    charge: int
    reason: str
    status: int = 0


@dataclass(frozen=True, slots=True)
class Estimates:
    """What an estimate is made of: the cost that was held, and bytes per output token."""

    cost: Cost
    bytes_per_token: int

    def settle(self, usage: Usage, *, complete: bool) -> Settlement:
        # Who was cut off never pays more than was held, whatever the upstream says it generated.
        charge = usage.total if complete else min(usage.total, self.cost.total)
        return Settlement(Outcome.SETTLED, usage, charge, "usage" if complete else "cut_off")

    def estimate(self, content_bytes: int, pieces: int, reason: str) -> Settlement:
        prompt = self.cost.prompt
        room = max(0, self.cost.total - prompt)
        output = min(room, estimated_output(content_bytes, pieces, self.bytes_per_token))
        return Settlement(Outcome.ESTIMATED, Usage(prompt, output, total=prompt + output), prompt + output, reason)


def released(reason: str) -> Settlement:
    return Settlement(Outcome.RELEASED, NO_USAGE, 0, reason)
