"""One replica: the product's own objects, put together as a process that can be paused and killed."""

import asyncio
import itertools
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from extproc.core.quota.costs import Costing
from extproc.core.quota.models import ModelProfile, Models
from extproc.metering.build import MeteringOptions, MeteringStores, build_metering
from extproc.metering.estimator import NoCounter
from extproc.metering.expiry import ExpiryOptions
from extproc.metering.limit_gauges import LimitGaugesOptions
from extproc.metering.rebuild import RebuildOptions
from extproc.ports.base import StoreError
from tests.virtual_loop import Process

from .network import RemoteStore
from .spool import Spool

MODELS = Models(
    ModelProfile(
        Costing(
            prompt_bytes_per_token=1,
            prompt_overhead_tokens=0,
            media_tokens=0,
            typical_output_tokens=20,
            template_bound_tokens=0,
            message_bound_tokens=0,
            max_output_tokens=40,
            min_output_tokens=4,
        )
    )
)
# A prompt of a token, and what is configured as typical output.
LEAST_HOLD = 1 + 20
BARRIER_S = 5.0
UNSEEN_S = RebuildOptions().unseen_s
EPOCH = datetime(2026, 3, 1, tzinfo=UTC)


class Clock:
    """The host's clock, which may be wrong."""

    def __init__(self, loop, start_s, skew_s):
        self._loop, self._start = loop, EPOCH + timedelta(seconds=start_s + skew_s)

    def now(self):
        return self._start + timedelta(seconds=self._loop.time())


class Told:
    """Stands for the metrics: remembers what was lost, takes everything else."""

    def __init__(self, on_lost):
        self.lost = on_lost
        self._nothing = lambda *_, **__: None

    @contextmanager
    def reserving(self):
        yield

    def __getattr__(self, name):
        return self._nothing


class Alerts:
    def put(self, alert):
        pass


class Replica(Process):
    """One life of a replica. `metering` is the product's own."""

    def __init__(self, world, name, skew_s, disk):
        super().__init__(name)
        self.world = world
        self.loop = world.loop
        self.started_at = world.loop.time()
        self.killed = self.ended = False
        self.leaving = False
        self.pauses_at = []
        self.paused_s = self.longest_pause_s = 0.0
        self.pauses = 0
        self.clients = set()
        self.left_clean = None
        self.serving = False
        self.own_clock = Clock(world.loop, world.start_s, skew_s)
        self.disk = disk
        self._numbers = itertools.count(1)
        self.context.run(self._build)

    def _build(self):
        world, metrics = self.world, Told(self._lost)
        self.counters = world.server_machine.client(self.name)
        durable = RemoteStore(world.mongo, world.ledger, self.name)
        self.spool = Spool(self.disk, lambda: self.killed or self.ended)
        self.metering = build_metering(
            MeteringStores(self.counters, durable, durable, self.spool),
            world.limits,
            models=MODELS,
            counter=NoCounter(),
            alerts=Alerts(),
            metrics=metrics,
            clock=self.own_clock,
            new_id=lambda: f"{self.name}-{next(self._numbers)}",
            replica=self.name,
            monotonic=self.loop.time,
            options=MeteringOptions(
                reservation_ttl_s=world.ttl_s,
                allow_share=world.oracle.share,
                check_s=world.check_s,
                expiry=ExpiryOptions(interval_s=2.0, renewed_within_s=5.0),
                rebuild=RebuildOptions(barrier_s=BARRIER_S),
                # They change nothing, and spread their readings by chance.
                limit_gauges=LimitGaugesOptions(tenants=0),
            ),
        )
        self.service, self.clock = self.metering.service, self.metering.clock
        self.main = self.loop.create_task(self._run())
        self.main.add_done_callback(self._ended, context=world.outside)

    async def _run(self):
        async with asyncio.TaskGroup() as group:
            await self._ready()
            self.serving = True
            group.create_task(self.metering.run())
            group.create_task(self._replay())

    async def _ready(self):
        """It serves when it knows the time, and all that was lost is rebuilt."""
        while True:
            try:
                await self.clock.sync()
                while not await self.metering.epochs.start():  # noqa: ASYNC110 - as `serve` does
                    await asyncio.sleep(0.05)
            except StoreError:
                await asyncio.sleep(1.0)
            else:
                return

    async def _replay(self):
        """What earlier processes left on the disk."""
        while True:
            for spool in self.disk.left_behind():
                await self.metering.replay.replay_file(spool.left())
                spool.remove()
            await asyncio.sleep(5.0)

    def _ended(self, task):
        if not task.cancelled() and task.exception() is not None:
            self.world.failed(task.exception())

    def _lost(self, queue, items):
        self.world.oracle.lost[queue] += items

    def ends_waiting(self):
        return sum(len(shard.settler) for shard in self.metering.shards)

    def entries_waiting(self):
        return sum(len(shard.ledger_writer) for shard in self.metering.shards)

    # ------------------------------------------------ what happens to it

    def serve(self, coroutine):
        task = self.loop.create_task(coroutine, context=self.context.copy())
        self.clients.add(task)
        task.add_done_callback(self._served, context=self.world.outside)
        return task

    def _served(self, task):
        self.clients.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.world.failed(task.exception())

    def pause(self):
        self.pauses += 1
        self._paused_at = self.loop.time()
        self.pauses_at.append([self._paused_at, float("inf")])
        self.loop.pause(self)

    def resume(self):
        if self.paused and not self.killed:
            self.pauses += 1
            self._pause_is_over()
            self.loop.resume(self)

    def _pause_is_over(self):
        paused_s = self.loop.time() - self._paused_at
        self.paused_s += paused_s
        self.pauses_at[-1][1] = self.loop.time()
        self.longest_pause_s = max(paused_s, self.longest_pause_s)

    def stood_still_s(self, since, until):
        """How long it was paused between two times."""
        return sum(max(0.0, min(end, until) - max(began, since)) for began, end in self.pauses_at)

    def kill(self):
        """As by SIGKILL: none of its callbacks ever runs again."""
        if self.killed:
            return
        if self.paused:
            self._pause_is_over()
        else:
            self.loop.pause(self)
        self.killed = True
        self.killed_at = self.loop.time()

    async def stop(self, drain_s):
        """As on SIGTERM: streams get some time, then they are cut, then what is queued is delivered."""
        self.leaving = True
        if self.clients:
            await asyncio.wait(self.clients, timeout=drain_s)
        for task in list(self.clients):
            task.cancel()
        if self.clients:
            await asyncio.wait(self.clients)
        self.left_clean = await self.metering.drain(5.0)
        self.main.cancel()
        await asyncio.wait({self.main})
        try:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.metering.membership.deregister()
        finally:  # also if all faults are over, and with them the one that stopped it
            self.ended = True

    async def bury(self):
        """Ends what is left of its tasks, when nothing that they do matters any more."""
        if self.paused:
            self.loop.resume(self)
        while left := [task for task in self.tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1.0)
        await self.world.server_machine.bury(self.counters)
