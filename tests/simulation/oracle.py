"""What really happened, as the clients and upstreams know it, and what must never be so."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from extproc.core.quota.limits import Mode, Unit
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome, Settlement, charges, expiry

# What is open for longer than this, with MongoDB there, is durable; and so is an end.
DURABLE_S = 1.0
# A decision is known to whoever asked so much later at the most.
ANSWERED_S = 0.1


class BrokenError(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Request:
    """One request that was admitted, by a process (one life of a replica)."""

    reservation: Reservation
    process: object
    at: float
    keys: tuple
    holds: list
    unbounded: int = 0  # what it needs in all, where its client gave no output bound
    written: int = 0
    settlement: Settlement | None = None
    ended_at: float = 0.0
    states: list = field(default_factory=list)  # all that it held, first to last


class Oracle:
    """Books of what was granted, kept apart from the product's.

    `least` is what the product promises to hold at least for a request without an output bound.
    """

    def __init__(self, loop, least):
        self._loop = loop
        self._least = least
        self.used = Counter()  # what was charged, as soon as it is known
        self.largest = Counter()  # key -> the most that a request without an output bound needs
        self.overshoot = 0.0  # the largest one, as a part of what is promised to be the most
        self.requests = {}
        self.by_key = defaultdict(list)
        self.limits = {}  # key -> the largest amount that it had
        self.granted = Counter()
        self.outgrown = Counter()
        self.local = defaultdict(Counter)  # key -> process -> what it granted by itself
        self.share = 0.0
        self.seen = Counter()  # how often what happened, for the report
        self.exceptions = Counter()
        self.lost = Counter()  # what the product counted as lost, by queue
        self.may_be_undecided = lambda entry: False
        self.may_expire = lambda request: False
        self.is_unknown = lambda request: None
        self.is_lost = lambda request: None  # set by the world: the exception that covers a request, or None

    # ------------------------------------------------ what clients see

    def decided(self, decision, took, limit_s):
        self.seen[decision] += 1
        if took > limit_s + 1e-6:
            raise BrokenError(f"a decision took {took * 1000:.1f} ms")

    def admitted(self, reservation, process, unbounded=0):
        tenant = reservation.identity.tenant
        keys = tuple((tenant, bucket.key) for bucket in reservation.buckets)
        holds = [reservation.hold(bucket.limit) for bucket in reservation.buckets]
        request = Request(reservation, process, self._loop.time(), keys, holds, unbounded, states=[reservation])
        self.seen["admitted alone"] += reservation.local
        if reservation.id in self.requests:
            raise BrokenError(f"{reservation.id} was granted twice")
        self.requests[reservation.id] = request
        for key, bucket, hold in zip(keys, reservation.buckets, holds, strict=True):
            self.by_key[key].append(request)
            self.limits[key] = max(bucket.limit.amount, self.limits.get(key, 0))
            self.largest[key] = max(unbounded, self.largest[key])
            self.granted[key] += hold
            if reservation.local:
                self._granted_locally(key, bucket.limit, request, hold)
            self._check(key, bucket.limit)
        return request

    def grew(self, request, reservation):
        for i, (key, bucket) in enumerate(zip(request.keys, reservation.buckets, strict=True)):
            hold = reservation.hold(bucket.limit)
            more, request.holds[i] = hold - request.holds[i], hold
            self.granted[key] += more
            self.outgrown[key] += more
        request.reservation = reservation
        request.states.append(reservation)

    def ended(self, request, settlement):
        request.settlement = settlement
        request.ended_at = self._loop.time()
        reservation = request.reservation
        charged = charges(reservation, settlement)
        for key, bucket, hold, charge in zip(
            request.keys, reservation.buckets, request.holds, charged, strict=True
        ):
            self.granted[key] += charge - hold
            self.outgrown[key] += max(0, charge - hold)
            if bucket.limit.mode is Mode.STRICT and charge > hold:
                raise BrokenError(f"{reservation.id}: a strict bucket was charged {charge}, it held {hold}")
            self.used[key] += charge
            self._check_overshoot(key, bucket.limit)

    # ------------------------------------------------ over-admission

    def _granted_locally(self, key, limit, request, hold):
        by_process = self.local[key]
        by_process[request.process] += hold
        if limit.shadow:
            return
        if limit.mode is Mode.STRICT:
            raise BrokenError(f"{request.reservation.id} was admitted past the strict limit of {key} locally")
        mine = [r for r in self.by_key[key] if r.reservation.local and r.process is request.process]
        granted = sum(self._stands(r, key) for r in mine)
        if limit.mode is not Mode.SOFT and granted > self.share * limit.amount + self.outgrown[key]:
            raise BrokenError(f"{request.process.name} granted {granted} of {key} by itself")

    def _check(self, key, limit):
        if limit.shadow or limit.mode is Mode.SOFT:
            return
        most = self.limits[key] + self.outgrown[key]
        if key in self.local:
            most += sum(self._stands(r, key) for r in self.by_key[key] if r.reservation.local)
        over = self.granted[key] - most
        if over > 0:
            self._over_admitted(key, over, most)

    def _check_overshoot(self, key, limit):
        """The bound of docs/guarantees.md: n x (M - f), where n holds of f fit into the limit."""
        if limit.shadow or limit.mode is not Mode.RESERVE or limit.unit is not Unit.TOKENS:
            return
        most = self.limits[key] // self._least * max(0, self.largest[key] - self._least)
        over = self.used[key] - self.limits[key]
        over -= sum(self._stands(r, key) for r in self.by_key[key] if r.reservation.local)
        if over <= 0:
            return
        self.overshoot = max(self.overshoot, over / most if most else 0.0)
        if over > most and over - most > self._covered(key, "used too much"):
            raise BrokenError(f"{key}: {over} were used beyond {self.limits[key]}, at most {most} can be")

    def _stands(self, request, key):
        i = request.keys.index(key)
        if request.settlement is None:
            return request.holds[i]
        return charges(request.reservation, request.settlement)[i]

    def _covered(self, key, what):
        covered = 0
        for request in self.by_key[key]:
            exception = self.is_unknown(request)
            if exception is not None:
                covered += self._stands(request, key)
                self.exceptions[f"{what}: {exception}"] += 1
        return covered

    def _over_admitted(self, key, over, most):
        covered = self._covered(key, "over-admitted")
        if over > covered:
            raise BrokenError(
                f"over-admitted {key}: granted {self.granted[key]}, at most {most}, covered by exceptions {covered}"
            )

    # ------------------------------------------------ at the end

    def check_ledger(self, entries, *, recorded_denials=True):
        """Each admitted request has exactly its entry, and nothing else has one."""
        for request in self.requests.values():
            entry = entries.get(request.reservation.id)
            if entry is None:
                self._excused(request, "is not in the ledger")
            else:
                self._check_entry(request, entry)
        for entry in entries.values():
            if entry.outcome is Outcome.DENIED:
                continue
            if sum(charge.amount for charge in entry.charges) < 0 or entry.charge < 0:
                raise BrokenError(f"{entry.id} has negative charges")
            if entry.id not in self.requests:
                if entry.outcome is not Outcome.EXPIRED or not self.may_be_undecided(entry):
                    raise BrokenError(f"{entry.id} is in the ledger as {entry.outcome} and was never admitted")
                self.exceptions["undecided, then expired"] += 1

    def _check_entry(self, request, entry):
        settlement = request.settlement
        if settlement is not None and entry.outcome is settlement.outcome:
            want = charges(request.reservation, settlement)
            want = {key[1]: amount for key, amount in zip(request.keys, want, strict=True) if amount}
            got = {charge.key: charge.amount for charge in entry.charges}
            if entry.charge != settlement.charge or got != want:
                raise BrokenError(
                    f"{entry.id} is charged {entry.charge} {got} and used {settlement.charge} {want}"
                )
            return
        if entry.outcome is not Outcome.EXPIRED:
            said = settlement.outcome if settlement is not None else "still open"
            raise BrokenError(f"{entry.id} is {entry.outcome} in the ledger, and was {said}")
        if not self.may_expire(request):
            raise BrokenError(f"{self._told(request)} expired though its replica lived")
        self.seen["expired"] += 1
        held = {expiry(state).charge for state in request.states}
        if entry.charge not in held:
            raise BrokenError(f"{entry.id} expired with {entry.charge}, it held {held}")
        used = request.reservation.cost.prompt + request.written if request.written else 0
        if settlement is not None:
            used = settlement.charge
        if entry.charge < used:
            if len(request.states) < 2 and used <= request.reservation.held:
                raise BrokenError(f"{entry.id} expired with {entry.charge}, {used} were used")
            self.exceptions["expired: had outgrown what was known of it"] += 1

    def _excused(self, request, what):
        exception = self.is_lost(request)
        if exception is None:
            raise BrokenError(f"{self._told(request)} {what}")
        self.exceptions[f"{what}: {exception}"] += 1

    def _told(self, request):
        said = request.settlement.outcome if request.settlement is not None else "still open"
        return f"{request.reservation.id} ({said}, admitted at {request.at:.3f})"
