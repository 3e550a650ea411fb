"""A world to test metering in: memory stores that can fail as real ones do, and a clock to set."""

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from extproc.core.quota.binding import bind
from extproc.core.quota.costs import Costing
from extproc.core.quota.drafting import Ask
from extproc.core.quota.limits import Subject
from extproc.core.quota.models import FREE, ModelProfile, Models
from extproc.core.quota.policies import BadDocument, Defaults, limits_from, policy_from
from extproc.core.quota.reservation import Admitted
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.body import RequestFacts, prompt_texts
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.identity import Identity
from extproc.metering.build import MeteringOptions, MeteringStores, build_metering
from extproc.metering.expiry import ExpiryOptions
from extproc.metering.journal_sweeper import SweepOptions
from extproc.metering.membership import MembershipOptions
from extproc.metering.rebuild import RebuildOptions
from extproc.metering.restored_ledger import RestoredLedgerOptions
from extproc.metering.settler import SettlerOptions
from extproc.observe.metrics import Metrics
from extproc.ports.base import StoreError
from extproc.ports.ledger import UsageFilter
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.spool import NoSpool

WHO = Identity("acme", "sa", "10.0.0.1")
COSTING = Costing(prompt_bytes_per_token=1, prompt_overhead_tokens=0, media_tokens=0, typical_output_tokens=5)
DECISION_TIMEOUT_S = 0.02


def away():
    return StoreError("away", transient=True)


def refused():
    return StoreError("refused", transient=False)


class Clock:
    def __init__(self):
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def now(self):
        return self.time

    def seconds(self):
        return self.time.timestamp()

    def passes(self, seconds):
        self.time += timedelta(seconds=seconds)


class Counters(MemoryCounters):
    """Faults come from queues: each call takes one and, if it is none, is carried out."""

    def __init__(self, server=None):
        super().__init__(server)
        self.hang = False
        self.hang_after = False
        self.before = []
        self.after = []  # the call was carried out, its answer got lost
        self.poison = set()
        self.closed = []
        self.renewed = []
        self.hang_reads = False
        self.no_ping = False

    async def ping(self, shard_id=None):
        if self.no_ping:
            raise away()
        await super().ping(shard_id)

    async def reserve(self, reservation):
        if self.hang:
            await asyncio.Event().wait()
        _fail(self.before)
        decision = await super().reserve(reservation)
        if self.hang_after:
            await asyncio.Event().wait()
        _fail(self.after)
        return decision

    async def close(self, closings, thresholds=()):
        _fail(self.before)
        if self.poison & {closing.reservation.id for closing in closings}:
            raise refused()
        self.closed += closings
        outcomes = await super().close(closings, thresholds)
        _fail(self.after)
        return outcomes

    async def renew(self, reservations):
        _fail(self.before)
        self.renewed += reservations
        await super().renew(reservations)

    async def read(self, tenant, buckets):
        if self.hang_reads:
            await asyncio.Event().wait()
        return await super().read(tenant, buckets)

    async def overdue(self, now, at_most, shard_id=None):
        _fail(self.before)
        return await super().overdue(now, at_most, shard_id)


class Ledger(MemoryLedger):
    def __init__(self):
        super().__init__()
        self.before = []
        self.after = []
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, entries, still=None):
        self.calls += 1
        await self.open.wait()
        _fail(self.before)
        await super().append(entries, still)
        _fail(self.after)


def _fail(faults):
    fault = faults.pop(0) if faults else None
    if fault is not None:
        raise fault


class Alerts(list):
    put = list.append


class Tokenizer:
    """Counts a token for every character of a prompt's texts, for models called m."""

    def __init__(self):
        self.answer = lambda texts: sum(map(len, texts))

    def knows(self, model):
        return model == "counted"

    async def count(self, model, endpoint, prompt):
        texts = prompt_texts(Target(endpoint), prompt)
        return None if texts is None else self.answer(texts)

    def start(self):
        pass

    async def aclose(self):
        pass


class Policies:
    """Limits to set by hand; a tenant without any has the defaults."""

    def __init__(self, defaults):
        self.defaults = defaults
        self.documents = {}

    def tenants(self):
        return self.documents.keys()

    def policy(self, tenant):
        read = policy_from({"tenant_id": tenant} | self.documents.get(tenant, {}), self.defaults)
        assert not isinstance(read, BadDocument), read
        return read


def options_of(**given):
    """MeteringOptions from flat names, for tests that set one bound each."""
    parts = {
        "settler": SettlerOptions,
        "expiry": ExpiryOptions,
        "sweep": SweepOptions,
        "membership": MembershipOptions,
        "rebuild": RebuildOptions,
        "restored": RestoredLedgerOptions,
    }
    own = {"expiry": {"interval_s": 60.0}} | {name: {} for name in parts if name != "expiry"}
    own["restored"] = {"pause_s": 0.0}
    prefixed = {"expiry_interval_s": ("expiry", "interval_s"), "orphaned_s": ("sweep", "older_than_s")}
    prefixed |= {"collect_interval_s": ("sweep", "every_s")}
    flat = {"decision_timeout_s": DECISION_TIMEOUT_S, "ledger_linger_s": 0.0}
    for name, value in given.items():
        part, inner = prefixed.get(name, (None, name))
        part = part or next((each for each, of in parts.items() if name in {f.name for f in fields(of)}), None)
        if part is None:
            flat[name] = value
        else:
            own[part][inner] = value
    return MeteringOptions(**flat, **{part: of(**own[part]) for part, of in parts.items()})


class World:
    """One replica's metering on memory stores. Its fence is open: no epoch is followed unless a test does."""

    def __init__(
        self,
        limit=1000,
        costing=COSTING,
        prices=FREE,
        *,
        spool=None,
        counters=None,
        ledger=None,
        clock=None,
        name="",
        **options,
    ):
        self.clock, self.ledger = clock or Clock(), ledger or Ledger()
        self.counters, self.metrics = counters or Counters(), Metrics()
        self.defaults = Defaults(limits_from({"sa_limit": limit}), ZoneInfo("Asia/Tokyo"))
        self.limits, self.alerts = Policies(self.defaults), Alerts()
        self.spool = spool or NoSpool()
        numbers = itertools.count(1)
        self.metering = build_metering(
            MeteringStores(self.counters, self.ledger, self.ledger, self.spool),
            self.limits,
            models=Models(ModelProfile(costing, prices=prices)),
            counter=Tokenizer(),
            alerts=self.alerts,
            metrics=self.metrics,
            clock=self.clock,
            new_id=lambda: f"{name}r{next(numbers)}",
            replica=name,
            options=options_of(**options),
        )
        for each in ("service", "shards", "denials", "saver", "epochs", "restored"):
            setattr(self, each, getattr(self.metering, each))
        self.shard = self.shards.of(WHO.tenant)
        self.admission, self.leases, self.settler = self.shard.admission, self.shard.leases, self.shard.settler
        self.writer, self.expiry = self.shard.ledger_writer, self.shard.expiry
        self.breaker, self.fence = self.shard.circuit_breaker, self.shard.write_fence
        self.sweeper = self.shard.journal_sweeper
        for shard in self.shards:
            shard.write_fence.release()

    def follows_the_epochs(self):
        """Close the fences until a look at the epochs opens them."""
        for shard in self.shards:
            shard.write_fence._released = False

    def retry(self):
        for shard in self.shards:
            shard.retry()

    def clock_stepped(self):
        """The counters' clock was set."""
        self.metering.clock.stepped()

    async def reserve(self, cost=10, identity=WHO):
        return await self.service.reserve(ask(cost, identity))

    async def admitted(self, cost=10):
        decision = await self.reserve(cost)
        assert isinstance(decision, Admitted)
        return decision.reservation

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.metering.deliver())
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def drained(self):
        """Everything that was queued is delivered."""
        async with self.running():
            assert await self.metering.drain(5.0)

    async def counts(self, identity=WHO):
        policy = self.limits.policy(identity.tenant)
        (bucket,) = bind(policy, identity, self.clock.now(), Subject("m", Endpoint.CHAT_COMPLETIONS))
        (count,) = await self.counters.read(identity.tenant, [bucket])
        return count.used, count.held

    async def entries(self):
        return await self.ledger.entries(UsageFilter(), 1000)

    async def recorded(self):
        return [(entry.outcome, entry.charge) for entry in await self.entries()]

    def counted(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"tokenweir_{name}", labels) or 0


def ask(cost=10, identity=WHO, endpoint=Endpoint.CHAT_COMPLETIONS, **facts):
    fields = {
        "model": "m",
        "stream": False,
        "choices": 1,
        "output_bound": cost // 2,
        "prompt_bytes": cost - cost // 2,
        "media_parts": 0,
        "wants_usage": False,
    }
    return Ask(identity, endpoint, RequestFacts(**(fields | facts)), "request-1")


def usage(charge):
    return Settlement(Outcome.SETTLED, Usage(charge - 1, 1, total=charge), charge, "usage", 200)
