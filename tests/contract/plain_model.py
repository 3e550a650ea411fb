"""The counters in the most obvious way: every reservation that was ever made, and sums over them.

Shares no rule with the code that it judges: holds are worked out here, in fractions, and the output bound of a
strict limit is found by trying every one.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from extproc.core.quota.limits import Mode, Unit
from tests.changing import replace


def needs(limit, reservation, output):
    """What a bucket has to hold for a reservation, with an output bound of `output` per choice."""
    prompt, generated = reservation.cost.prompt, reservation.cost.output
    if limit.mode is Mode.STRICT and reservation.bound is not None:
        prompt, generated = reservation.bound.prompt, output * reservation.bound.choices
    if limit.unit is Unit.REQUESTS:
        return reservation.requests
    if limit.unit is Unit.INPUT_TOKENS:
        return prompt
    if limit.unit is Unit.OUTPUT_TOKENS:
        return generated
    weights = reservation.weights
    dearest_in, dearest_out = max(weights.input, weights.cached_input), max(weights.output, weights.reasoning)
    return ceil(Fraction(dearest_in * prompt + dearest_out * generated, 1000))


@dataclass
class Held:
    """An open reservation: as its holder knows it, and what each bucket holds."""

    reservation: object
    output: int
    holds: list


class PlainModel:
    def __init__(self):
        self.open = {}
        self.ends = {}  # id -> (outcome, what it crossed)
        self.charged = []  # (bucket's key, charge)
        self.crossed = set()  # (bucket's key, threshold)

    def used(self, bucket):
        return sum(charge for key, charge in self.charged if key == bucket.key)

    def held(self, bucket, without=None):
        return sum(
            hold
            for each in self.open.values()
            for b, hold in zip(each.reservation.buckets, each.holds, strict=True)
            if b.key == bucket.key and each.reservation.id != without
        )

    def count(self, bucket, without=None):
        return self.used(bucket), self.held(bucket, without)

    def fits(self, bucket, reservation, output):
        limit = bucket.limit
        if limit.mode is Mode.SOFT:
            return self.used(bucket) < limit.amount
        return self.used(bucket) + self.held(bucket) + needs(limit, reservation, output) <= limit.amount

    def refusing(self, reservation, output):
        """The real limits that have no room."""
        return [b for b in reservation.buckets if not b.limit.shadow and not self.fits(b, reservation, output)]

    def reserve(self, reservation):
        """("ended",) or ("denied", bucket, need) or ("admitted", output, counts with it, shadowed buckets).

        Of a repeated one the shadows are not told: they are what they would be now.
        """
        if reservation.id in self.ends:
            return ("ended",)
        known = self.open.get(reservation.id)
        if known is None:
            bound = reservation.bound
            tried = range(bound.output, bound.least - 1, -1) if bound is not None else (0,)
            output = next((n for n in tried if not self.refusing(reservation, n)), None)
            if output is None:
                refusing = self.refusing(reservation, tried[-1])
                told = min(refusing, key=lambda b: (-b.interval.end, max(0, b.limit.amount - sum(self.count(b)))))
                return ("denied", told, needs(told.limit, reservation, tried[-1]))
            least = tried[-1]  # what a strict limit would have lowered it to, before it denied
            shadowed = [b for b in reservation.buckets if b.limit.shadow and not self.fits(b, reservation, least)]
            holds = [needs(b.limit, reservation, output) for b in reservation.buckets]
            granted = reservation
            if bound is not None:
                granted = replace(reservation, bound=replace(bound, output=output))
            self.open[reservation.id] = Held(granted, output, holds)
            return ("admitted", output, [self.count(b) for b in reservation.buckets], shadowed)
        counts = []
        for bucket in reservation.buckets:
            used, others = self.count(bucket, without=reservation.id)
            counts.append((used, others + needs(bucket.limit, reservation, known.output)))
        return ("admitted", known.output, counts, None)

    def renew(self, reservation):
        known = self.open.get(reservation.id)
        if known is None or reservation.deadline < known.reservation.deadline:
            return
        for i, bucket in enumerate(reservation.buckets):
            known.holds[i] = max(known.holds[i], needs(bucket.limit, reservation, known.output))
        known.reservation = reservation

    def close(self, closing, thresholds):
        """(outcome that stands, [(bucket's key, used, threshold)])."""
        reservation = closing.reservation
        if reservation.id in self.ends:
            outcome, crossed = self.ends[reservation.id]
            return outcome, crossed if outcome is closing.outcome else []
        known, crossed = self.open.pop(reservation.id, None), []
        if known is not None:
            for bucket, charge in zip(reservation.buckets, closing.charges, strict=True):
                self.charged.append((bucket.key, charge))
                used, amount = self.used(bucket), bucket.limit.amount
                for threshold in thresholds:
                    reached = amount and Fraction(used, amount) >= Fraction(threshold, 100)
                    if reached and (bucket.key, threshold) not in self.crossed:
                        self.crossed.add((bucket.key, threshold))
                        crossed.append((bucket.key, used, threshold))
        self.ends[reservation.id] = closing.outcome, crossed
        return self.ends[reservation.id]

    def overdue(self, now):
        return [each.reservation for each in self.open.values() if each.reservation.deadline < now]
