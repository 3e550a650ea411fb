"""Build the metering of one replica from its stores and options. `app` and the tests build it here alone."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from extproc.core.quota.drafting import Drafter
from extproc.core.quota.limits import Window
from extproc.core.quota.models import Models
from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.reservation import ReservationId
from extproc.metering.admission import Admission
from extproc.metering.circuit_breaker import CircuitBreaker, CircuitBreakerOptions
from extproc.metering.delivery_queue import QueueRoom
from extproc.metering.denial_alerts import DenialAlerts
from extproc.metering.denial_writer import DenialWriter
from extproc.metering.denials import DenialOptions, Denials
from extproc.metering.drain import drain
from extproc.metering.epoch_follower import EpochFollower
from extproc.metering.estimator import Estimator, PromptCounter
from extproc.metering.expiry import Expiry, ExpiryOptions
from extproc.metering.hold_saver import HoldSaver
from extproc.metering.journal_backlog import JournalBacklog
from extproc.metering.journal_sweeper import JournalSweeper, SweepOptions
from extproc.metering.leases import RENEWALS, Leases
from extproc.metering.ledger_drift import LedgerDrift
from extproc.metering.ledger_writer import DENIALS_AT_MOST, ENTRIES_AT_MOST, LedgerWriter
from extproc.metering.limit_gauges import LimitGauges, LimitGaugesOptions
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.membership import Membership, MembershipOptions
from extproc.metering.outcomes import Outcomes
from extproc.metering.presence import Presence
from extproc.metering.rebuild import Rebuild, RebuildOptions
from extproc.metering.restored_ledger import RestoredLedger, RestoredLedgerOptions
from extproc.metering.service import MeteringService
from extproc.metering.settler import CLOSINGS, Settler, SettlerOptions
from extproc.metering.shard import Shard
from extproc.metering.shards import Shards
from extproc.metering.shared_clock import SharedClock
from extproc.metering.spool_replay import SpoolReplay
from extproc.metering.takeover import Takeover, TakeoverOptions
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.alerts import AlertSink
from extproc.ports.base import Clock, ShardId
from extproc.ports.epochs import CounterStore
from extproc.ports.ledger import Ledger
from extproc.ports.records import Records
from extproc.ports.spool import Spool
from extproc.ports.tenants import Limits


@dataclass(frozen=True, slots=True)
class MeteringOptions:
    """Bound metering; durations in seconds.

    A decision takes at most `decision_timeout_s`, whatever the counters do. The epochs are looked at every
    `check_s`, and nothing is written to the ledger when the last look is older than `fresh_s`.
    """

    decision_timeout_s: float = 0.1
    reservation_ttl_s: float = 900.0
    record_denied: bool = True
    denials: DenialOptions = field(default_factory=DenialOptions)
    alert_on_denials: bool = False
    refuse_unbounded: bool = True
    learn: bool = True
    allow_share: float = 0.1
    save_after_s: float = 0.25
    ledger_linger_s: float = 0.1
    check_s: float = 0.25
    fresh_s: float = 0.9
    breaker: CircuitBreakerOptions = field(default_factory=CircuitBreakerOptions)
    settler: SettlerOptions = field(default_factory=SettlerOptions)
    expiry: ExpiryOptions = field(default_factory=ExpiryOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    takeover: TakeoverOptions = field(default_factory=TakeoverOptions)
    membership: MembershipOptions = field(default_factory=MembershipOptions)
    rebuild: RebuildOptions = field(default_factory=RebuildOptions)
    restored: RestoredLedgerOptions = field(default_factory=RestoredLedgerOptions)
    limit_gauges: LimitGaugesOptions = field(default_factory=LimitGaugesOptions)


@dataclass(frozen=True, slots=True)
class MeteringStores:
    """Name the stores that metering works on, as ports."""

    counters: CounterStore
    ledger: Ledger
    records: Records
    spool: Spool


@dataclass(frozen=True, slots=True)
class Metering:
    """Hold the parts of one replica's metering, and keep them going."""

    clock: SharedClock
    service: MeteringService
    shards: Shards
    local: LocalAdmission
    denials: DenialWriter
    denial_alerts: DenialAlerts
    backlog: JournalBacklog
    limit_gauges: LimitGauges
    drift: LedgerDrift
    saver: HoldSaver
    epochs: EpochFollower
    membership: Membership
    restored: RestoredLedger
    replay: SpoolReplay
    spool: Spool

    async def run(self) -> None:
        """Deliver, renew, expire, and follow clock and epochs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.deliver())
            group.create_task(self.epochs.run())
            group.create_task(self.restored.run())
            group.create_task(self.clock.run())

    async def deliver(self) -> None:
        """Deliver, renew and expire until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.shards.run())
            group.create_task(self.denials.run())
            group.create_task(self.denial_alerts.run())
            group.create_task(self.backlog.run())
            group.create_task(self.limit_gauges.run())
            group.create_task(self.drift.run())

    async def drain(self, timeout_s: float) -> bool:
        """Deliver what is queued, as this process ends. Return False if any of it is lost."""
        return await drain(self.shards, self.denials, self.spool, timeout_s)


def build_metering(
    stores: MeteringStores,
    limits: Limits,
    *,
    models: Models,
    counter: PromptCounter,
    alerts: AlertSink,
    metrics: Metrics,
    clock: Clock,
    new_id: Callable[[], ReservationId],
    replica: str,
    options: MeteringOptions,
    monotonic: Callable[[], float] = time.monotonic,
) -> Metering:
    """Build the metering of one replica. `clock` is the host's; the counters' clock takes its place once known."""
    counters, records, spool = stores.counters, stores.records, stores.spool
    shared_clock = SharedClock(counters, clock, monotonic=monotonic)
    estimator = Estimator(models, counter, metrics, learn=options.learn)
    local, unready = LocalAdmission(options.allow_share, spool), asyncio.Event()
    outcomes = Outcomes(counters, records)
    domains = PARTITIONS if counters.independent else 1
    closings, renewals = QueueRoom(CLOSINGS.max_queued, domains), QueueRoom(RENEWALS.max_queued, domains)
    entries, denied = QueueRoom(ENTRIES_AT_MOST, domains), QueueRoom(DENIALS_AT_MOST, domains)

    def shard(shard_id: ShardId) -> Shard:
        fence = WriteFence(options.fresh_s)
        writer = LedgerWriter(
            counters,
            stores.ledger,
            records,
            spool,
            fence=fence,
            metrics=metrics,
            room=entries,
            denial_room=denied,
            linger_s=options.ledger_linger_s,
        )
        settler = Settler(
            counters,
            spool,
            writer,
            local,
            clock=shared_clock,
            models=models,
            estimator=estimator,
            alerts=alerts,
            metrics=metrics,
            room=closings,
            options=options.settler,
        )
        breaker = CircuitBreaker(partial(counters.ping, shard_id), options.breaker)
        admission = Admission(
            counters,
            shard_id,
            breaker,
            local,
            settler,
            new_id=new_id,
            metrics=metrics,
            timeout_s=options.decision_timeout_s,
            unready=unready,
        )
        leases = Leases(counters, shared_clock, options.reservation_ttl_s, room=renewals, on_lost=metrics.lost)
        presence = Presence(replica)
        sweeper = JournalSweeper(
            counters,
            shard_id,
            writer,
            fence=fence,
            presence=presence,
            clock=shared_clock,
            options=options.sweep,
        )
        return Shard(
            counters=counters,
            outcomes=outcomes,
            admission=admission,
            leases=leases,
            settler=settler,
            ledger_writer=writer,
            circuit_breaker=breaker,
            write_fence=fence,
            expiry=Expiry(
                counters, shard_id, settler, writer, breaker=breaker, clock=shared_clock, options=options.expiry
            ),
            journal_sweeper=sweeper,
            presence=presence,
            takeover=Takeover(
                presence,
                shard_id,
                counters,
                records,
                leases=leases,
                settler=settler,
                writer=writer,
                sweeper=sweeper,
                fence=fence,
                options=options.takeover,
            ),
        )

    if counters.independent:
        shards = Shards({partition: shard(partition) for partition in range(PARTITIONS)})
    else:
        shards = Shards(dict.fromkeys(range(PARTITIONS), shard(None)))
    metrics.watch_queue("closings", closings.__len__)
    metrics.watch_queue("renewals", renewals.__len__)
    metrics.watch_queue("ledger", entries.__len__)
    metrics.watch_breaker(lambda: any(each.circuit_breaker.is_open for each in shards))
    denials = DenialWriter(shards, Denials(new_id, options.denials), metrics)
    windows = options.settler.alert_windows if options.alert_on_denials else frozenset[Window]()
    denial_alerts = DenialAlerts(counters, alerts, shared_clock, windows)
    saver = HoldSaver(replica, shards, records, shared_clock, options.save_after_s)
    membership = Membership(replica, records, options.membership)
    restored = RestoredLedger(
        counters, records, shards, clock=shared_clock, metrics=metrics, options=options.restored
    )
    rebuild = Rebuild(
        counters,
        records,
        shards,
        membership,
        restored,
        clock=shared_clock,
        metrics=metrics,
        options=options.rebuild,
    )
    drafter = Drafter(replica, options.reservation_ttl_s, options.refuse_unbounded)
    service = MeteringService(
        limits,
        drafter,
        estimator,
        shards,
        denials,
        denial_alerts=denial_alerts,
        counters=counters,
        clock=shared_clock,
        new_id=new_id,
        metrics=metrics,
        record_denied=options.record_denied,
        view_timeout_s=options.decision_timeout_s,
    )
    epochs = EpochFollower(
        counters,
        shards,
        saver,
        rebuild,
        membership=membership,
        metrics=metrics,
        wanted=unready,
        check_s=options.check_s,
    )
    gauges = LimitGauges(
        counters,
        limits,
        drafter.plans.latest,
        clock=shared_clock,
        metrics=metrics,
        options=options.limit_gauges,
    )
    return Metering(
        clock=shared_clock,
        service=service,
        shards=shards,
        local=local,
        denials=denials,
        denial_alerts=denial_alerts,
        backlog=JournalBacklog(counters, metrics, options.sweep.every_s),
        limit_gauges=gauges,
        drift=LedgerDrift(
            counters,
            records,
            gauges.shown,
            clock=shared_clock,
            metrics=metrics,
            tenants=options.limit_gauges.tenants,
        ),
        saver=saver,
        epochs=epochs,
        membership=membership,
        restored=restored,
        replay=SpoolReplay(shards, outcomes, records),
        spool=spool,
    )
