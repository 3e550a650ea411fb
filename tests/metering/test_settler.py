"""What ended, on its way to the ledger: always somewhere, and once."""

import asyncio
from datetime import timedelta

import pytest

from extproc.core.quota.hits import Hit
from extproc.core.quota.settlement import Outcome
from extproc.metering.delivery_queue import QueueRoom
from extproc.ports.base import StoreError
from extproc.ports.counters import Receipt
from extproc.stores.memory.counters import MemoryServer
from tests.changing import replace

from .shared import ELSEWHERE, HERE, Cluster
from .waiting import until
from .world import WHO, World, away, refused, usage


def somewhere(world):
    """The reservations whose end is known to somebody."""
    queued = world.shards.unrecorded()
    journalled = {entry.id for entry, _ in world.counters.server.journal.values()}
    return queued | journalled | set(world.ledger._entries)


async def test_an_end_is_at_every_moment_somewhere():
    world = World()
    reservations = [await world.admitted() for _ in range(20)]
    world.counters.before = [away(), None, away()]
    world.counters.after = [None, away()]
    world.ledger.before, world.ledger.after = [away(), None], [away()]
    for number, reservation in enumerate(reservations):
        world.service.close(reservation, usage(number + 2))
    ids = {reservation.id for reservation in reservations}
    async with world.running():
        while len(world.ledger._entries) < 20 or world.counters.server.journal:
            assert somewhere(world) == ids
            world.retry()
            await asyncio.sleep(0)
    assert sorted(charge for _, charge in await world.recorded()) == list(range(2, 22))
    assert await world.counts() == (sum(range(2, 22)), 0)


async def test_a_close_whose_reply_was_lost_makes_one_entry_with_one_receipt():
    world = World()
    reservation = await world.admitted()
    world.ledger.open.clear()
    world.counters.after = [away(), away()]
    world.service.close(reservation, usage(7))
    async with world.running():
        await until(lambda: len(world.counters.closed) == 2)
        (receipt,) = world.counters.server.journal
        world.retry()
        await until(lambda: len(world.writer._queue) == 1)
        (record,) = world.writer._queue
        assert record.receipt == receipt
        world.ledger.open.set()
        await until(lambda: not world.counters.server.journal)
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


class Picky(World):
    """The ledger refuses some entries for good."""

    def refuses(self, *ids):
        append = self.ledger.append

        async def picky(entries, still=None):
            if {entry.id for entry in entries} & set(ids):
                raise refused()
            await append(entries)

        self.ledger.append = picky


@pytest.mark.parametrize("who", ["its own replica", "another"])
async def test_what_the_ledger_refuses_is_set_aside_and_the_others_are_written(who):
    world = Picky()
    reservations = [await world.admitted() for _ in range(3)]
    bad = reservations[1].id
    world.refuses(bad)
    for reservation in reservations:
        world.service.close(reservation, usage(7))
    if who == "another":
        (await_end,) = [world.settler._ends]
        await world.counters.close([end.closing for end in await_end])
        await_end._items.clear()
        assert await world.sweeper.sweep(0.0) == 3
    else:
        await world.drained()
    assert {entry.id for entry in await world.entries()} == {r.id for r in reservations} - {bad}
    (aside,) = await world.counters.aside(10)
    assert bad in aside.text
    assert aside.reason == "refused"
    assert world.counters.server.journal == {}
    assert world.counted("queue_lost_total", queue="ledger") == 0


async def test_setting_aside_is_repeated_until_it_is_done():
    world = Picky()
    reservation = await world.admitted()
    world.refuses(reservation.id)
    set_aside, faults = world.counters.set_aside, [away()]

    async def failing(*given):
        if faults:
            raise faults.pop()
        await set_aside(*given)

    world.counters.set_aside = failing
    world.service.close(reservation, usage(7))
    async with world.running():
        await until(lambda: not faults)
        assert somewhere(world) == {reservation.id}
        world.retry()
        await until(lambda: world.counters.server.aside)


async def test_what_a_dead_replica_left_in_the_journal_is_written_by_another():
    cluster = Cluster()
    a, dead, _ = await cluster.started()
    for _ in range(3):
        dead.service.close(await dead.admitted(), usage(7))
    await dead.ended()
    assert await a.sweeper.sweep(5.0) == 0, "its own replica has some time for it"
    cluster.clock.passes(5)
    assert await a.sweeper.sweep(5.0) == 3
    assert cluster.server.journal == {}
    await dead.delivered()  # it was not dead after all
    assert await cluster.quiet() == 21


async def test_a_replica_that_is_here_writes_its_own_entries_unless_it_is_stuck_for_long():
    cluster = Cluster()
    a, slow, _ = await cluster.started()
    for replica in (slow, a):
        await replica.shard.takeover.look()
    for _ in range(3):
        slow.service.close(await slow.admitted(), usage(7))
    await slow.ended()  # MongoDB takes its time
    cluster.clock.passes(20)
    await slow.shard.takeover.look()
    assert await a.sweeper.sweep(5.0) == await a.sweeper.sweep_all(0.5) == 0
    assert await slow.sweeper.sweep(5.0) == await slow.sweeper.sweep_all(0.5) == 0, "they wait in its queue"
    cluster.clock.passes(41)
    await slow.shard.takeover.look()
    assert await slow.sweeper.sweep(5.0) == 0
    assert await a.sweeper.sweep(5.0) == 3
    assert cluster.server.journal == {}
    assert await cluster.quiet() == 21


async def test_a_replica_writes_what_only_the_journal_has_of_its_entries():
    cluster = Cluster()
    a, b, _ = await cluster.started()
    a.service.close(await a.admitted(), usage(7))
    await a.ended()
    for replica in (a, b):
        await replica.shard.takeover.look()
    a.writer._queue._items.clear()  # there was no room for it
    assert await b.sweeper.sweep(0.0) == 0
    assert await a.sweeper.sweep(0.0) == 1


async def test_it_collects_by_itself_and_tells_what_waits(caplog):
    world = World(collect_interval_s=0.002, orphaned_s=5.0)
    receipt = world.counters.server.receipt(HERE)
    reservation = await world.admitted()
    world.service.close(reservation, usage(7))
    (end,) = world.settler._ends
    world.counters.server.journal[receipt] = (end.closing.entry, world.counters.server.clock() - 20)
    world.counters.before = [away()] * 100
    faults = [away(), away()]

    def failing(method):
        async def call(*given):
            if faults:
                raise faults.pop()
            return await method(*given)

        return call

    world.counters.backlog = failing(world.counters.backlog)
    world.counters.waiting = failing(world.counters.waiting)
    async with world.running():
        await until(lambda: world.ledger._entries and not faults)
        await until(lambda: not world.counters.server.journal)
        await until(lambda: world.counted("journal_entries", state="waiting") == 0)
    assert "journal: entries that were left there could not be written" in caplog.messages


async def test_what_can_be_written_but_not_removed_from_the_journal_does_not_go_round_for_ever():
    world = World()
    reservation = await world.admitted()
    world.service.close(reservation, usage(7))
    (end,) = world.settler._ends
    await world.counters.close([end.closing])

    async def failing(receipts):
        raise away()

    world.counters.written = failing
    with pytest.raises(StoreError, match="can't be removed from the journal"):
        await world.sweeper.sweep(0.0)
    assert world.ledger.calls <= 2


def bounded(queue, most):
    queue._room = QueueRoom(most)
    queue._room.join(queue)


async def epochs_of(world, identity):
    return [epoch for epoch in await world.counters.epochs() if epoch.counts(identity.tenant)]


# Taken back.


@pytest.mark.parametrize("where", ["queued", "in hand", "in the journal", "in the ledger", "denied"])
async def test_what_the_counters_forget_is_told_to_them_again_unless_the_journal_or_the_ledger_has_it(where):
    world = World(limit=10 if where == "denied" else 1000)
    reservation = await world.admitted()
    if where == "denied":
        await world.reserve()
    else:
        world.service.close(reservation, usage(7))
    world.ledger.open.clear()
    async with world.running():
        if where != "denied":
            await until(lambda: len(world.writer._queue) == 1)
        if where in ("in hand", "denied"):
            await until(lambda: world.ledger.calls == 1)
    if where == "in the ledger":
        (record,) = world.writer._queue
        await super(type(world.ledger), world.ledger).append([record.entry])
    if where != "in the journal":
        world.counters.server.journal.clear()
    here, elsewhere = await epochs_of(world, WHO), await epochs_of(world, ELSEWHERE)
    async with world.shard._paused():
        await world.shard._tell_again(elsewhere)
        assert world.settler.unended() == []
        await world.shard._tell_again(here)
        again = [r.id for r in world.settler.unended()]
        await world.shard._tell_again(here)
        assert [r.id for r in world.settler.unended()] == again, "once"
    assert again == ([] if where in ("in the journal", "in the ledger", "denied") else [reservation.id])
    world.ledger.open.set()
    await world.drained()
    assert len(await world.entries()) == 1
    if where != "denied":
        assert await world.counts() == (7, 0)
        assert world.counted("tokens_total", kind="charged") == 7


async def test_more_can_be_taken_back_than_the_queue_has_room_for(monkeypatch):
    world = World()
    bounded(world.settler._ends, 2)
    world.ledger.open.clear()
    async with world.running():
        for number in range(5):
            world.service.close(await world.admitted(), usage(7))
            await until(lambda n=number: len(world.writer._queue) == n + 1)
    world.counters.server.journal.clear()
    async with world.shard._paused():
        await world.shard._tell_again(await epochs_of(world, WHO))
    assert len(world.settler.unended()) == 5
    assert world.counted("queue_lost_total", queue="closings") == 0


async def test_when_the_ledger_cant_be_asked_nothing_is_taken_back():
    world = World()
    world.service.close(await world.admitted(), usage(7))
    world.ledger.open.clear()
    async with world.running():
        await until(lambda: len(world.writer._queue) == 1)

    async def failing(ids):
        raise away()

    world.ledger.outcomes = failing
    with pytest.raises(StoreError):
        await world.shard._tell_again(await epochs_of(world, WHO))
    assert world.settler.unended() == []
    world.ledger.open.set()
    await world.drained()
    assert await world.recorded() == [(Outcome.SETTLED, 7)]


async def test_many_ends_are_replayed_in_parts(monkeypatch):
    monkeypatch.setattr("extproc.metering.spool_replay._AT_ONCE", 3)
    world = World()
    unended = [replace(await world.admitted(), id=f"other{n}") for n in range(8)]
    assert await world.metering.replay.replay([], unended) == 8
    assert len(world.counters.server.journal) == 8
    await world.drained()
    assert len(await world.entries()) == 8


async def test_while_many_entries_wait_the_records_are_spared_and_say_so(monkeypatch):
    monkeypatch.setattr("extproc.metering.ledger_writer._SAVED_AT_MOST", 2)
    cluster = Cluster()
    (world, *_) = await cluster.started()
    began = cluster.clock.now()
    for _ in range(3):
        cluster.clock.passes(1)
        world.service.close(await world.admitted(), usage(7))
    await world.ended()
    cluster.clock.passes(5)
    await world.saver.save()
    assert cluster.ledger._saved == {}
    first = began + timedelta(seconds=1)
    assert cluster.ledger._saved_until[world.name] == first, "what comes after it may be unsaved"
    await world.delivered()
    await world.saver.save()
    assert cluster.ledger._saved_until[world.name] > cluster.clock.now() - timedelta(seconds=1)


async def test_what_waits_nowhere_else_is_saved_however_many_wait(monkeypatch):
    monkeypatch.setattr("extproc.metering.ledger_writer._SAVED_AT_MOST", 2)
    world = World()
    held = [await world.admitted() for _ in range(4)]
    for reservation in held:
        world.service.close(reservation, usage(7))
    world.ledger.open.clear()
    async with world.running():
        await until(lambda: len(world.writer) == 4)
    alone = next(iter(world.writer._queue))
    alone.receipt = None
    later = world.clock.now() + timedelta(seconds=1)
    assert world.writer.unsaved(later) == [alone.closing.reservation]
    world.writer.saved([alone.entry.id])
    assert world.writer.unsaved(later) == []


async def test_entries_beyond_what_is_kept_in_memory_are_left_to_the_journal(monkeypatch):
    world = World(collect_interval_s=60)
    bounded(world.writer._queue, 2)
    world.ledger.open.clear()
    reservations = [await world.admitted() for _ in range(5)]
    async with world.running():
        for reservation in reservations:
            world.service.close(reservation, usage(7))
        await until(lambda: len(world.counters.server.journal) == 5)
        await until(lambda: not len(world.settler._ends))
        assert len(world.writer._queue) <= 3
        world.ledger.open.set()
        await until(lambda: not len(world.writer._queue))
        await world.sweeper.sweep(0.0)
    assert len(await world.entries()) == 5
    assert world.counted("queue_lost_total", queue="ledger") == 0


def test_a_receipt_says_where():
    assert MemoryServer().receipt(3) == Receipt(3, "1")


async def test_what_is_replayed_and_stands_in_no_ledger_is_not_charged_where_nobody_knows_of_it():
    """It may have been charged, and forgotten: of what has an entry the ledger tells."""
    world = World()
    world.limits.documents["acme"] = {"ratelimitIPPerMinute": 5}
    await world.service.hit(Hit(WHO, None, 1))
    (end,) = world.settler._ends
    await world.drained()
    counted = counts_of(world)
    world.counters.server.lives[HERE].known.clear()  # its end was long ago
    await world.metering.replay.replay([end.closing], [])
    assert counts_of(world) == counted


def counts_of(world):
    return dict(world.counters.server.lives[HERE].counts)


async def test_a_rebuild_sees_what_waits_in_the_journal_though_the_clock_was_put_back():
    cluster = Cluster()
    a, dead, _ = await cluster.started()
    dead.service.close(await dead.admitted(), usage(7))
    await dead.ended()
    cluster.clock.passes(-3600)
    assert await a.sweeper.sweep(0.0) == 1


async def test_hits_that_wait_take_no_room_of_what_is_to_be_recorded(monkeypatch):
    monkeypatch.setattr("extproc.metering.settler._UNRECORDED_AT_MOST", 3)
    world = World()
    world.limits.documents["acme"] = {"ratelimitIPPerMinute": 9}
    for _ in range(5):
        await world.service.hit(Hit(WHO, None, 1))
    assert len(world.settler._ends) == 3
    assert world.counted("queue_lost_total", queue="closings") == 2
    world.service.close(await world.admitted(), usage(7))
    await world.drained()
    assert await world.recorded() == [(Outcome.SETTLED, 7)]
    world.clock.passes(10_000)
    assert await world.expiry.expire_overdue() == 2, "they are counted all the same"
