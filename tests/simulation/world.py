"""A world made from a seed: replicas, stores, clients, and what goes wrong; played until all is quiet again."""

import asyncio
import contextvars
import functools
import logging
import random
from collections import Counter
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from extproc.core.quota.binding import Policy, StoreFailure
from extproc.core.quota.limits import Limit, Mode, Scope, Unit, Window
from extproc.core.quota.reservation import Admitted, Denied
from extproc.core.request.identity import ClientIP, Identity, ServiceAccount, TenantId
from extproc.stores.memory.ledger import MemoryLedger
from tests.virtual_loop import run

from . import clients, nemesis
from .network import Host
from .oracle import BrokenError, Oracle
from .replica import EPOCH, LEAST_HOLD, Replica
from .servers import MemoryMachine
from .spool import Disk

ZONE = ZoneInfo("UTC")
_QUIET_WITHIN_S = 150.0
DECISION_S = 0.1


@dataclass(slots=True)
class Report:
    seed: int
    seen: dict
    exceptions: dict
    virtual_s: float
    overshoot: float = 0.0

    def told(self):
        seen = ", ".join(f"{times} {what}" for what, times in self.seen.items() if times)
        excused = "".join(f"; {times} {what}" for what, times in self.exceptions.items())
        return f"seed {self.seed}: {self.virtual_s:.1f} s: {seen}{excused}"


class Limits:
    """Implements `ports.Limits`, with what the seed says."""

    def __init__(self, policies):
        self.policies = policies

    def tenants(self):
        return self.policies.keys()

    def policy(self, tenant):
        return self.policies[tenant]


class World:
    replay = ""  # what a command that replays it says further

    def __init__(self, seed, loop, trace=None, machine=MemoryMachine):
        self.seed, self.loop = seed, loop
        self.rng = random.Random(f"world {seed}")
        self.trace = (lambda text: trace(f"{loop.time():10.4f}  {text}")) if trace is not None else None
        self.outside = contextvars.copy_context()
        self.failure = None
        self.over = asyncio.Event()
        rng = self.rng
        self.ttl_s = 20.0
        # Near the end of a minute, or of a day.
        self.start_s = rng.choice((43_170.0, 43_190.0, 86_370.0, 40_000.0))
        self.length_s = rng.choice((3.0, 6.0, 12.0))
        self.check_s = rng.choice((0.25, 0.5, 1.0))
        self.oracle = Oracle(loop, LEAST_HOLD)
        self.oracle.share = 0.1
        self.redis = Host(loop, rng, "redis", self.trace, give_up_s=1.0)
        self.mongo = Host(loop, rng, "mongo", self.trace, give_up_s=2.0)
        self.server_machine = machine(self)
        self.ledger = MemoryLedger()
        self.identities, self.limits = self._tenants(rng)
        self.replicas = []
        self.slots = rng.choice((1, 2, 2, 3))
        self.skews = [rng.choice((0.0, 0.0, -60.0, 60.0)) for _ in range(self.slots)]
        self.disks = [Disk() for _ in range(self.slots)]
        self.lives = 0
        self.background = []
        self.in_trouble = False
        self.redis.ambush = self.mongo.ambush = nemesis.ambushes(self)
        self.oracle.is_lost = functools.partial(nemesis.exception, self)
        self.oracle.is_unknown = functools.partial(nemesis.unknown, self)
        self.oracle.may_be_undecided = self._may_be_undecided
        self.oracle.may_expire = self._may_expire

    def say(self, text):
        if self.trace is not None:
            self.trace(text)

    def failed(self, error):
        if self.failure is None:
            self.failure = error
        self.over.set()

    # ------------------------------------------------ what there is

    def _tenants(self, rng):
        identities, policies = [], {}
        for name in ("acme", "umbrella", "initech")[: rng.randint(1, 3)]:
            tenant = TenantId(name)
            accounts = [ServiceAccount(f"sa{number}") for number in range(rng.randint(1, 2))]
            identities += [Identity(tenant, account, ClientIP("10.0.0.1")) for account in accounts]
            failure = StoreFailure.ALLOW if rng.random() < 0.4 else StoreFailure.DENY
            policies[tenant] = Policy(tenant, tuple(_limits(rng)), ZONE, on_store_failure=failure)
        return identities, Limits(policies)

    def start_replica(self, slot):
        self.lives += 1
        replica = Replica(self, f"{'abc'[slot]}{self.lives}", self.skews[slot], self.disks[slot])
        replica.slot = slot
        self.replicas.append(replica)
        self.say(f"{replica.name} starts")
        return replica

    @property
    def serving(self):
        return [r for r in self.replicas if not r.killed and not r.leaving]

    @property
    def open(self):
        return [r for r in self.serving if r.serving]

    # ------------------------------------------------ what happens

    async def play(self):
        for slot in range(self.slots):
            self.start_replica(slot)
        await asyncio.sleep(1.0)
        self.start(self._arrivals())
        self._further()
        self.start(self._trouble())
        self.in_trouble = True
        await self._until(self.length_s)
        self.in_trouble = False
        for task in self.background:
            task.cancel()
        await asyncio.wait(self.background)
        for task in self.background:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()
        await nemesis.heal(self)
        await self._quiet()
        self._check_books()
        await self._alive()
        oracle = self.oracle
        return Report(self.seed, dict(oracle.seen), dict(oracle.exceptions), self.loop.time(), oracle.overshoot)

    def start(self, coroutine):
        """Something that goes on until all faults are over."""
        self.background.append(self.loop.create_task(coroutine, context=self.outside))

    async def _trouble(self):
        await nemesis.trouble(self)

    def _further(self):
        """Worlds with more in them start it here."""

    async def _until(self, seconds):
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return
        raise self.failure

    async def _arrivals(self):
        rng = self.rng
        rate = rng.choice((2.0, 5.0, 10.0))
        while True:
            await asyncio.sleep(rng.expovariate(rate))
            self.arrive(rng.choice((1, 1, 1, 3)))

    def arrive(self, many=1):
        rng = self.rng
        for _ in range(many):
            serving = self.open
            if not serving:
                return
            self.asks(rng.choice(serving), clients.plan(rng, self.identities, self.ttl_s))

    def asks(self, process, what):
        if process.paused or process.leaving:
            return  # its client would wait, or ask another
        task = process.serve(clients.exchange(what, process, self.oracle, self.loop, DECISION_S))
        if what.leaves_after_s is not None:
            self.loop.call_later(what.leaves_after_s, task.cancel, context=self.outside)

    # ------------------------------------------------ the end

    async def _quiet(self):
        """Waits until nothing is in flight, and says what is if that takes too long."""
        deadline = self.loop.time() + _QUIET_WITHIN_S
        while (left := self._unsettled()) is not None:
            if self.loop.time() > deadline:
                raise BrokenError(f"not quiet after {_QUIET_WITHIN_S:.0f} s: {left}")
            await self._until(1.0)

    def _unsettled(self):
        if any(replica.clients for replica in self.serving):
            return "streams"
        machine = self.server_machine
        if waiting := machine.waiting():
            return f"{waiting} entries in the journal"
        if machine.aside():
            raise BrokenError("entries were set aside")
        if (why := machine.unready()) is not None:
            return why
        for (tenant, key), held in machine.held().items():
            if held:
                return f"{held} held in {tenant} {key}"
        for replica in self.serving:
            if not replica.serving:
                return f"{replica.name} does not serve"
            if replica.ends_waiting() or replica.entries_waiting():
                return f"queues of {replica.name}"
            if replica.disk.used():
                return f"the spool of {replica.name}"
        return None

    def _check_books(self):
        entries = self.ledger._entries
        self.oracle.check_ledger(entries)
        if self.oracle.lost:
            raise BrokenError(f"lost: {dict(self.oracle.lost)}")
        machine = self.server_machine
        machine.check()
        now, sums = machine.now(), Counter()
        for entry in entries.values():
            for charge in entry.charges:
                if charge.until > now:
                    sums[entry.identity.tenant, charge.key] += charge.amount
        there = machine.lasting() | sums.keys()
        counted = Counter({key: used for key, used in machine.used().items() if key in there})
        for key in sorted(sums.keys() | counted.keys()):
            if sums[key] != counted[key]:
                raise BrokenError(f"{key}: the ledger has {sums[key]}, the counters {counted[key]}")

    async def _alive(self):
        """All faults are over: every replica decides."""
        for replica in self.serving:
            for identity in self.identities:
                decision = await self._decided_by(replica, identity)
                if not isinstance(decision, Admitted | Denied):  # it may have been woken just now
                    await asyncio.sleep(2.0)
                    decision = await self._decided_by(replica, identity)
                if not isinstance(decision, Admitted | Denied):
                    raise BrokenError(f"{replica.name} does not decide: {type(decision).__name__}")

    async def _decided_by(self, replica, identity):
        what = clients.Plan(identity, 1, 1, 1, 1, 0.001, "usage")
        task = replica.serve(clients.exchange(what, replica, self.oracle, self.loop, DECISION_S))
        await asyncio.wait({task})
        return task.result()

    async def bury(self):
        for replica in self.replicas:
            await replica.bury()

    # ------------------------------------------------ exceptions

    def _may_be_undecided(self, entry):
        """Its replica was gone, or stood still, before it could say that the client had no answer.

        Not long before: of what it was asked for earlier, it had recorded all that it knew as admitted.
        """
        name, _, _ = entry.id.partition("-")
        process = next(replica for replica in self.replicas if replica.name == name)
        if process.killed and nemesis.undecided(self, process, self._since_start(entry.admitted_at)):
            return True
        return process.longest_pause_s > self.ttl_s / 3

    def _since_start(self, instant):
        return (instant - EPOCH).total_seconds() - self.start_s

    def _may_expire(self, request):
        """Its replica could not renew or end it in time."""
        process = request.process
        if process.killed and (request.settlement is None or nemesis.fresh(self, request)):
            return True
        return process.longest_pause_s > self.ttl_s / 3


def _limits(rng):
    """A tenant's limits, tight enough to be reached."""
    amount = rng.choice((300, 1000, 3000))
    mode = rng.choice((Mode.RESERVE, Mode.RESERVE, Mode.STRICT))
    yield Limit(Scope.TENANT, Window.DAY, amount, mode=mode)
    if rng.random() < 0.4:
        yield Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, amount // 3, mode=rng.choice(list(Mode)))
    if rng.random() < 0.3:
        yield Limit(Scope.TENANT, Window.MINUTE, rng.choice((10, 30)), Unit.REQUESTS)
    if rng.random() < 0.2:
        yield Limit(Scope.SERVICE_ACCOUNT, Window.DAY, amount // 2, Unit.OUTPUT_TOKENS, shadow=True)


def simulate(seed, trace=None, world=World, machine=MemoryMachine):
    """Plays one seed in a kind of world. Raises `BrokenError` where an invariant does not hold."""
    logging.getLogger("extproc").setLevel(logging.CRITICAL)

    state = random.getstate()
    random.seed(f"product {seed}")  # some of the product's pauses are random
    try:
        with machine.patched():
            return _play(seed, trace, functools.partial(world, machine=machine))
    finally:
        random.setstate(state)


def _play(seed, trace, kind):
    async def main(loop):
        world = kind(seed, loop, trace)
        try:
            return await world.play()
        finally:
            await world.bury()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    shuffled = random.Random(f"order {seed}") if seed % 2 else None
    return run(main, shuffled)
