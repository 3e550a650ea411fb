"""Epochs: what every implementation of `ports.Epochs` must do when counters were lost."""

import asyncio
from datetime import timedelta

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Denied
from extproc.core.quota.settlement import Outcome
from extproc.core.request.endpoints import Endpoint
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.epochs import Used
from tests.changing import replace

from .ready import make_ready
from .reservations import NOW, counts, expired, outcomes, released, reservation, settled, who

ACME = partition_of("acme")


async def unready(call):
    """The call is refused, and may be made again."""
    with pytest.raises(UnreadyError) as caught:
        await call
    assert caught.value.transient


async def register_all(client, name="one"):
    """The client adopts the epochs that are current, ready or not."""
    epochs = await client.epochs()
    for epoch in epochs:
        await client.register(epoch, name)
    return epochs


def used_of(held, amount):
    """What the ledger makes of the reservation's first bucket."""
    return Used(held.identity.tenant, held.buckets[0].key, held.buckets[0].interval.end, amount)


# ---------------------------------------------------------------- which calls an epoch admits


async def test_every_partition_has_an_epoch_and_it_stays(replicas):
    one, two = replicas
    epochs = await one.epochs()
    assert [epoch.partition for epoch in epochs] == list(range(PARTITIONS))
    assert all(epoch.ready for epoch in epochs)
    assert len({epoch.id for epoch in epochs}) == PARTITIONS
    assert await two.epochs() == epochs


async def test_nothing_is_counted_before_a_replica_registered(backend):
    client = backend.client()
    held = reservation()
    for _ in range(2):
        await unready(client.reserve(held))
        await unready(client.renew([held]))
        await unready(client.close([settled(held, 1)]))
        await client.epochs()
    await client.aclose()


async def test_an_epoch_that_is_not_ready_renews_and_neither_reserves_nor_closes(backend):
    client = backend.client()
    held = reservation()
    (epoch,) = [e for e in await register_all(client) if e.partition == ACME]
    assert not epoch.ready
    await client.restore(epoch, [held])
    await unready(client.reserve(reservation()))
    await unready(client.close([settled(held, 1)]))
    await client.renew([replace(held, cost=Cost(10, 10), deadline=held.deadline + 5)])
    await client.complete(epoch)
    assert await counts(client, held) == [(0, 20)]
    assert await outcomes(client, [settled(held, 3)]) == [Outcome.SETTLED]
    await client.aclose()


@pytest.mark.parametrize("loss", ["lose", "restart"])
async def test_who_did_not_notice_a_loss_counts_in_nothing(backend, replicas, loss):
    one, two = replicas
    held = reservation()
    await one.reserve(held)
    await getattr(backend, loss)()
    for _ in range(2):
        await unready(one.reserve(reservation()))
        await unready(one.renew([held]))
        await unready(one.close([settled(held, 1)]))
        await make_ready(two)  # and not when another replica has long gone on
    assert await counts(two, held) == [(0, 0)]


@pytest.mark.parametrize("loss", ["lose", "restart"])
async def test_a_loss_begins_one_epoch_however_many_notice_it(backend, replicas, loss):
    before = await replicas[0].epochs()
    await getattr(backend, loss)()
    begun = await asyncio.gather(*(replica.epochs() for replica in replicas for _ in range(4)))
    assert all(epochs == begun[0] for epochs in begun)
    assert not any(epoch.ready for epoch in begun[0])
    assert not {epoch.id for epoch in begun[0]} & {epoch.id for epoch in before}


async def test_a_tenant_waits_for_its_own_partition_only(backend):
    client = backend.client()
    epochs = await register_all(client)
    await client.complete(epochs[ACME])
    other = next(f"t{n}" for n in range(99) if partition_of(f"t{n}") != ACME)
    assert isinstance(await client.reserve(reservation()), Admitted)
    await unready(client.reserve(reservation(identity=who(tenant=other))))
    await client.aclose()


async def test_one_partition_that_is_not_ready_keeps_no_end_of_another_one_back(backend):
    client = backend.client()
    epochs = await register_all(client)
    await client.complete(epochs[ACME])
    other = next(f"t{n}" for n in range(99) if partition_of(f"t{n}") != ACME)
    held, waiting = reservation(), reservation(identity=who(tenant=other))
    await client.reserve(held)
    await unready(client.close([settled(held, 4), settled(waiting, 1)]))
    assert await counts(client, held) == [(4, 0)]
    await client.aclose()


async def test_an_epoch_that_is_over_takes_nothing_any_more(backend, replicas):
    one, two = replicas
    (over,) = [epoch for epoch in await one.epochs() if epoch.partition == ACME]
    held = reservation()
    await backend.restart()
    await make_ready(two)
    for call in (
        one.restore(over, [held]),
        one.register(over, "one"),
        one.registered(over),
        one.left_open(over),
        one.still_open(over),
        one.forget(over, [(held, Outcome.SETTLED)]),
        one.install(over, [used_of(held, 5)]),
        one.complete(over),
    ):
        await unready(call)
    assert await counts(two, held) == [(0, 0)]


# ---------------------------------------------------------------- rebuilding


async def test_what_is_rebuilt_counts_as_it_did_before(backend, replicas):
    one, two = replicas
    done, mine, others = reservation(40), reservation(30), reservation(20)
    for held in (done, mine, others):
        await one.reserve(held)
    await one.close([settled(done, 33)])
    await backend.lose()
    epoch = (await one.epochs())[ACME]
    await one.restore(epoch, [mine])
    await one.register(epoch, "one")
    await two.restore(epoch, [others])
    await two.register(epoch, "two")
    assert await one.registered(epoch) == {"one", "two"}
    await one.install(epoch, [used_of(done, 33)])
    await one.complete(epoch)
    assert (await two.epochs())[ACME] == replace(epoch, ready=True)
    assert await counts(one, mine) == [(33, 50)]
    assert isinstance(await one.reserve(reservation(18)), Denied)
    assert isinstance(await one.reserve(reservation(17)), Admitted)
    assert await outcomes(two, [settled(others, 5), expired(mine)]) == [Outcome.SETTLED, Outcome.EXPIRED]
    assert await counts(one, mine) == [(68, 17)]
    assert await two.overdue(NOW.replace(year=NOW.year + 1), 10) != []


async def test_what_is_restored_is_held_whatever_the_limit_says_and_once(backend):
    client = backend.client()
    epoch = (await register_all(client))[ACME]
    held = [reservation(60, limit=100) for _ in range(3)]
    for _ in range(2):
        await client.restore(epoch, held)
    await client.complete(epoch)
    await client.restore(epoch, held)
    assert await counts(client, held[0]) == [(0, 180)]
    assert sorted(r.id for r in await client.still_open(epoch)) == sorted(r.id for r in held)
    await client.close([released(r) for r in held])
    assert await counts(client, held[0]) == [(0, 0)]
    await client.aclose()


async def test_what_ended_in_an_epoch_is_not_restored_in_it(replicas):
    one, _ = replicas
    held = reservation()
    await one.reserve(held)
    await one.close([settled(held, 5)])
    await one.restore((await one.epochs())[ACME], [held])
    assert await counts(one, held) == [(5, 0)]


async def test_restoring_leaves_what_was_renewed_meanwhile(replicas):
    one, _ = replicas
    held = reservation(10)
    await one.reserve(held)
    grown = replace(held, cost=Cost(10, 20))
    await one.renew([grown])
    epoch = (await one.epochs())[ACME]
    await one.restore(epoch, [held])
    assert await one.still_open(epoch) == [grown]
    assert await counts(one, held) == [(0, 30)]


async def test_a_local_reservation_is_taken_up_by_renewing_it(replicas):
    one, two = replicas
    local, unknown = reservation(80, limit=50, local=True), reservation(5)
    await one.renew([local, unknown])
    await one.renew([local])
    assert await counts(two, local) == [(0, 80)]
    assert await two.still_open((await two.epochs())[ACME]) == [local]
    assert await outcomes(two, [settled(local, 7)]) == [Outcome.SETTLED]
    await one.renew([local])  # late
    assert await counts(two, local) == [(7, 0)]


async def test_what_was_open_before_is_found_until_the_new_epoch_is_ready(backend, replicas):
    one, two = replicas
    held, ended = reservation(10), reservation(20)
    hit = reservation(1, endpoint=Endpoint.ROUTE)
    for each in (held, ended, hit):
        await one.reserve(each)
    await one.close([settled(ended, 20)])
    for _ in range(2):  # an epoch that never got ready had nothing of its own
        await backend.restart()
        epoch = (await two.epochs())[ACME]
        assert await two.left_open(epoch) == [held]
        assert await two.still_open(epoch) == []
        await two.restore(epoch, [reservation(3)])
    await two.complete(epoch)
    assert await two.left_open(epoch) == []


async def test_after_everything_is_gone_nothing_is_found_of_what_was_open(backend, replicas):
    one, _ = replicas
    await one.reserve(reservation())
    await backend.lose()
    assert await one.left_open((await one.epochs())[ACME]) == []


async def test_what_had_ended_before_is_given_back_and_not_opened_again(backend):
    client = backend.client()
    epoch = (await register_all(client))[ACME]
    ended, held, unknown = reservation(10, ip_limit=100), reservation(20, ip_limit=100), reservation(5)
    await client.restore(epoch, [ended, held])
    await client.install(epoch, [used_of(ended, 8)])
    for _ in range(2):
        await client.forget(epoch, [(ended, Outcome.ESTIMATED), (unknown, Outcome.SETTLED)])
    await client.restore(epoch, [ended])
    assert await client.still_open(epoch) == [held]
    await client.complete(epoch)
    assert await client.overdue(NOW + timedelta(days=1), 1) == [held]
    assert await counts(client, held) == [(8, 20), (0, 20)]
    assert await outcomes(client, [settled(ended, 10)]) == [Outcome.ESTIMATED]
    assert await counts(client, held) == [(8, 20), (0, 20)]
    with pytest.raises(StoreError):
        await client.reserve(ended)
    await client.aclose()


async def test_what_is_installed_is_set_and_not_added_and_only_while_rebuilding(backend):
    client = backend.client()
    epoch = (await register_all(client))[ACME]
    held, other = reservation(10), reservation(1, identity=who(account="other"))
    await client.restore(epoch, [held])
    for amount in (70, 60):
        await client.install(epoch, [used_of(held, amount), used_of(other, amount + 1)])
    await client.complete(epoch)
    await unready(client.install(epoch, [used_of(held, 50)]))
    assert await counts(client, held) == [(60, 10)]
    assert await counts(client, other) == [(61, 0)]
    await client.aclose()


async def test_a_thousand_buckets_and_reservations_are_rebuilt(backend):
    client = backend.client()
    epoch = (await register_all(client))[ACME]
    held = [reservation(2, identity=who(account=f"sa{n}")) for n in range(1100)]
    await client.restore(epoch, held)
    await client.install(epoch, [used_of(r, n + 1) for n, r in enumerate(held)])
    await client.forget(epoch, [(r, Outcome.RELEASED) for r in held[::2]])
    assert {r.id for r in await client.still_open(epoch)} == {r.id for r in held[1::2]}
    await client.complete(epoch)
    assert [await counts(client, r) for r in held[-4:]] == [[(n, 2 * (n % 2 == 0))] for n in range(1097, 1101)]
    await client.aclose()


async def test_completing_twice_and_registering_late_are_fine(backend, replicas):
    one, two = replicas
    await backend.lose()
    epoch = (await register_all(one))[ACME]
    await asyncio.gather(one.complete(epoch), one.complete(epoch))
    await two.register(epoch, "late")
    await two.complete(epoch)
    assert await one.registered(epoch) == {"one", "late"}
    assert isinstance(await two.reserve(reservation()), Admitted)
