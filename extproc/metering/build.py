"""Build the metering of one replica from its stores and options. `app` and the tests build it here alone."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from extproc.core.quota.drafting import Drafter
from extproc.core.quota.models import Models
from extproc.core.quota.reservation import ReservationId
from extproc.metering.admission import Admission
from extproc.metering.circuit_breaker import CircuitBreaker, CircuitBreakerOptions
from extproc.metering.denials import DenialOptions, Denials
from extproc.metering.epoch_follower import EpochFollower
from extproc.metering.estimator import Estimator, PromptCounter
from extproc.metering.expiry import Expiry, ExpiryOptions
from extproc.metering.holdings import Holdings
from extproc.metering.journal_sweeper import JournalSweeper, SweepOptions
from extproc.metering.leases import Leases
from extproc.metering.ledger_writer import LedgerWriter
from extproc.metering.local_admission import LocalAdmission
from extproc.metering.membership import Membership, MembershipOptions
from extproc.metering.rebuild import Rebuild, RebuildOptions
from extproc.metering.service import MeteringService
from extproc.metering.settler import Settler, SettlerOptions
from extproc.metering.shards import Part, parts_of
from extproc.metering.shared_clock import SharedClock
from extproc.metering.spool_replay import SpoolReplay
from extproc.metering.write_fence import WriteFence
from extproc.observe.metrics import Metrics
from extproc.ports.alerts import AlertSink
from extproc.ports.base import Clock
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
    refuse_unbounded: bool = True
    learn: bool = True
    allow_share: float = 0.1
    save_after_s: float = 1.0
    ledger_linger_s: float = 0.1
    check_s: float = 0.25
    fresh_s: float = 2.0
    breaker: CircuitBreakerOptions = field(default_factory=CircuitBreakerOptions)
    settler: SettlerOptions = field(default_factory=SettlerOptions)
    expiry: ExpiryOptions = field(default_factory=ExpiryOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    membership: MembershipOptions = field(default_factory=MembershipOptions)
    rebuild: RebuildOptions = field(default_factory=RebuildOptions)


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
    admission: Admission
    local: LocalAdmission
    leases: Leases
    settler: Settler
    writer: LedgerWriter
    fence: WriteFence
    expiry: Expiry
    sweeper: JournalSweeper
    holdings: Holdings
    epochs: EpochFollower
    membership: Membership
    replay: SpoolReplay
    breakers: dict[Part, CircuitBreaker]

    async def run(self) -> None:
        """Deliver, renew, expire, and follow clock and epochs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.deliver())
            group.create_task(self.epochs.run())
            group.create_task(self.clock.run())

    async def deliver(self) -> None:
        """Deliver, renew and expire until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.settler.run())
            group.create_task(self.writer.run())
            group.create_task(self.sweeper.run())
            group.create_task(self.leases.run())
            group.create_task(self.expiry.run())
            for breaker in self.breakers.values():
                group.create_task(breaker.run())


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
    fence, unready = WriteFence(options.fresh_s), asyncio.Event()
    writer = LedgerWriter(
        counters,
        counters,
        stores.ledger,
        records,
        spool,
        fence=fence,
        denials=Denials(new_id, options.denials),
        metrics=metrics,
        linger_s=options.ledger_linger_s,
    )
    local = LocalAdmission(options.allow_share, spool)
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
        options=options.settler,
    )
    leases = Leases(counters, shared_clock, options.reservation_ttl_s, metrics.lost)
    metrics.watch_queue("renewals", lambda: leases.waiting)
    expiry = Expiry(counters, settler, shared_clock, options.expiry)
    breakers = _breakers(counters, options.breaker, metrics, expiry, [settler, leases])
    admission = Admission(
        counters,
        breakers,
        local,
        settler,
        new_id=new_id,
        metrics=metrics,
        timeout_s=options.decision_timeout_s,
        unready=unready,
    )
    holdings = Holdings(
        admission, leases, settler, writer, records, clock=shared_clock, save_after_s=options.save_after_s
    )
    membership = Membership(replica, records, options.membership)
    rebuild = Rebuild(counters, records, membership, clock=shared_clock, metrics=metrics, options=options.rebuild)
    service = MeteringService(
        limits,
        Drafter(replica, options.reservation_ttl_s, options.refuse_unbounded),
        estimator,
        admission,
        leases,
        settler=settler,
        writer=writer,
        counters=counters,
        clock=shared_clock,
        new_id=new_id,
        metrics=metrics,
        record_denied=options.record_denied,
        view_timeout_s=options.decision_timeout_s,
    )
    epochs = EpochFollower(
        counters,
        holdings,
        settler,
        writer,
        rebuild,
        membership=membership,
        fence=fence,
        metrics=metrics,
        wanted=unready,
        check_s=options.check_s,
    )
    shared_clock.on_step(expiry.clock_stepped)
    shared_clock.on_step(leases.renew_due)
    return Metering(
        clock=shared_clock,
        service=service,
        admission=admission,
        local=local,
        leases=leases,
        settler=settler,
        writer=writer,
        fence=fence,
        expiry=expiry,
        sweeper=JournalSweeper(counters, counters, writer, fence, metrics=metrics, options=options.sweep),
        holdings=holdings,
        epochs=epochs,
        membership=membership,
        replay=SpoolReplay(settler, writer, records),
        breakers=breakers,
    )


def _breakers(
    counters: CounterStore,
    options: CircuitBreakerOptions,
    metrics: Metrics,
    expiry: Expiry,
    waiting: Sequence[Settler | Leases],
) -> dict[Part, CircuitBreaker]:
    """Make a circuit breaker for each part of the counters that fails by itself."""
    breakers: dict[Part, CircuitBreaker] = {}

    def changed(part: Part, is_open: bool) -> None:
        metrics.breaker(is_open=any(breaker.is_open for breaker in breakers.values()))
        if is_open:
            expiry.counters_away(part)
            return
        expiry.counters_back(part)
        for each in waiting:
            each.retry()

    for part in parts_of(counters):
        breakers[part] = CircuitBreaker(partial(counters.ping, part), options, partial(changed, part))
    return breakers
