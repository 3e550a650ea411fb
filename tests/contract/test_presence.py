"""Presence: which replicas are here, whatever the counters' epochs are, and what one that is gone left open."""

import asyncio

import pytest

from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.settlement import Outcome
from extproc.ports.base import UnreadyError
from extproc.ports.presence import FORGOTTEN_S, SILENCE_S
from tests.changing import replace

from .ready import make_ready
from .reservations import HOSTILE, reservation, settled, who

ACME = partition_of("acme")
LONG_S = 60.0
MICRO_S = 1e-5  # how exact ages are


@pytest.fixture
async def pair(backend):
    """Two replicas that nobody registered, of counters without an epoch."""
    clients = backend.client(), backend.client()
    yield clients
    for client in clients:
        await client.aclose()


def of(tenant_of, replica, **further):
    return reservation(1, identity=who(tenant=tenant_of), replica=replica, **further)


# ---------------------------------------------------------------- who is here


async def test_replicas_see_each_other_while_no_epoch_has_begun_and_nobody_registered(pair):
    one, two = pair
    assert await one.seen("one") == {"one": 0.0}
    assert set(await two.seen("two")) == {"one", "two"}
    assert (await two.seen("two"))["two"] == 0.0


async def test_the_age_of_a_note_is_by_the_stores_clock_and_the_longest_unseen_come_first(backend, pair):
    one, two = pair
    now = await one.time()
    for name, ago_s in (("a", 2.0), ("b", 0.0), ("c", 1.0)):
        await backend.note(name, now - ago_s)
    seen = await two.seen("b")
    assert list(seen) == ["a", "c", "b"]
    assert 2.0 - MICRO_S <= seen["a"] <= 2.0 + SILENCE_S + MICRO_S
    assert seen["a"] - seen["c"] == pytest.approx(1.0, abs=MICRO_S)
    assert seen["b"] == 0.0


async def test_partitions_that_fail_apart_have_notes_of_their_own_and_all_together_one(pair):
    one, two = pair
    await one.seen("everywhere")
    await one.seen("third", 3)
    assert set(await two.seen("two")) == {"everywhere", "two"}
    assert set(await two.seen("two", 3)) == {"third", "two"}


@pytest.mark.parametrize("name", ["", "a:b", "{3}", "*", "名前-🦦", "a b\r\n\0", "+inf"])
async def test_any_name_is_noted_and_forgotten(pair, name):
    one, two = pair
    await one.seen(name)
    assert set(await two.seen("plain")) == {name, "plain"}
    assert await two.forget_replica(name, older_than_s=0)
    assert set(await two.seen("plain")) == {"plain"}


async def test_who_was_not_seen_for_an_hour_is_forgotten(backend, pair):
    one, _ = pair
    now = await one.time()
    for name, ago_s in (("over an hour", FORGOTTEN_S + 99), ("less", FORGOTTEN_S - 99), ("now", 0.0)):
        await backend.note(name, now - ago_s)
    assert list(await one.seen("one")) == ["less", "now", "one"]
    await backend.note("one", now - FORGOTTEN_S - 99)
    assert (await one.seen("one"))["one"] == 0.0


async def test_more_than_a_thousand_are_not_returned_and_the_one_that_asks_always_is(backend, pair):
    one, _ = pair
    now = await one.time()
    for n in range(1100):
        await backend.note(f"r{n}", now - n)
    seen = await one.seen("me")
    assert len(seen) == 1000
    assert next(iter(seen)) == "r1099"
    assert seen["me"] == 0.0


async def test_what_is_lost_with_the_store_is_noted_again_by_whoever_is_here(backend, pair):
    one, two = pair
    await one.seen("one")
    await two.seen("two")
    await backend.lose()
    assert set(await one.seen("one")) == {"one"}
    assert set(await two.seen("two")) == {"one", "two"}


async def test_notes_outlive_an_epoch(backend, replicas):
    one, two = replicas
    await one.seen("one")
    await backend.restart()
    assert set(await two.seen("two")) == {"one", "two"}
    await two.epochs()
    assert set(await two.seen("two")) == {"one", "two"}


# ---------------------------------------------------------------- the store was away, its clock was set


async def test_nobody_seems_gone_after_the_store_was_away(backend, pair):
    """No replica was noted meanwhile: half a second counts of it."""
    one, _ = pair
    last = await one.time() - LONG_S
    for name, before_s in (("dead", 5.0), ("two", 0.25), ("one", 0.0)):
        await backend.note(name, last - before_s)
    seen = await one.seen("one")
    assert seen["two"] == pytest.approx(0.25 + SILENCE_S, abs=MICRO_S)
    assert seen["dead"] == pytest.approx(5 + SILENCE_S, abs=MICRO_S)
    again = await one.seen("one")  # it stays so, and time goes on
    assert seen["dead"] - MICRO_S <= again["dead"] <= seen["dead"] + SILENCE_S + MICRO_S


async def test_who_is_gone_is_found_though_the_only_survivor_looks_seldom(backend, pair):
    """Of the time between two looks half a second counts, and never none."""
    one, _ = pair
    now = await one.time()
    for name in ("one", "dead"):
        await backend.note(name, now)
    for looks in range(1, 5):
        await backend.shift(-3.0)  # three seconds pass
        seen = await one.seen("one")
        assert seen["dead"] == pytest.approx(looks * SILENCE_S, abs=MICRO_S * looks)


async def test_a_clock_that_is_set_back_keeps_nobody_here_and_makes_nobody_gone(backend, pair):
    one, two = pair
    later = await one.time() + 3600
    await backend.note("dead", later - 2)
    await backend.note("two", later)
    seen = await one.seen("one")
    assert seen["dead"] == pytest.approx(2.0, abs=MICRO_S)
    assert seen["two"] == pytest.approx(0.0, abs=MICRO_S)
    assert not await one.forget_replica("two", older_than_s=30)
    assert (await two.seen("two"))["one"] < 30


# ---------------------------------------------------------------- forgotten, unless it is back


async def test_who_is_gone_is_forgotten_and_nobody_else(backend, pair):
    one, two = pair
    await two.seen("two")
    await backend.note("dead", await one.time() - 3)
    for _ in range(2):
        assert await one.forget_replica("dead")
    assert set(await one.seen("one")) == {"one", "two"}


async def test_a_replica_that_came_back_meanwhile_stays(backend, pair):
    one, two = pair
    await backend.note("two", await one.time() - 3)
    await one.seen("one")
    await two.seen("two")  # after `one` saw that it was gone
    assert not await one.forget_replica("two", older_than_s=LONG_S)
    assert set(await one.seen("one")) == {"one", "two"}


async def test_however_a_removal_and_a_return_race_who_came_back_last_is_there(backend, pair):
    one, two = pair
    forgotten = set()
    for n in range(60):
        await one.seen("one")
        await backend.note("two", await one.time() - LONG_S)
        race = [one.forget_replica("two", older_than_s=30), two.seen("two")]
        done = await asyncio.gather(*(race if n % 2 else race[::-1]))
        forgotten.update(each for each in done if isinstance(each, bool))
        assert await one.forget_replica("nobody", older_than_s=30)
        assert not await one.forget_replica("two", older_than_s=30)
        assert "two" in await one.seen("one")
    assert True in forgotten  # removed before it came back; else not at all


# ---------------------------------------------------------------- what one left open


async def test_what_a_replica_left_open_is_found_in_all_partitions_as_granted(replicas):
    one, two = replicas
    mine = [of(tenant, "one") for tenant in ("acme", "t1", "t2", "t3", "t4")]
    others = [of(tenant, name) for tenant in ("acme", "t1") for name in ("two", "", "on", "one1")]
    ended = of("acme", "one")
    for each in (*mine, *others, ended):
        await one.reserve(each)
    await one.close([settled(ended, 1)])
    renewed = replace(mine[0], deadline=mine[0].deadline + 60, extra_output=9)
    await one.renew([renewed])
    expected = {each.id: each for each in (renewed, *mine[1:])}
    assert {each.id: each for each in await two.opened_by("one")} == expected
    assert [each.id for each in await two.opened_by("two", ACME)] == [others[0].id]
    assert await two.opened_by("nobody") == []


async def test_a_name_that_stands_elsewhere_in_a_reservation_is_not_taken_for_its_replica(replicas):
    one, _ = replicas
    for names in HOSTILE:
        await one.reserve(reservation(1, identity=who(*names), replica="r"))
    await one.reserve(reservation(1, identity=who("t", "sa", "one"), model="one", request_id="one", replica="r"))
    await one.reserve(reservation(1, identity=who(account='","replica":"one'), replica="r"))
    mine = reservation(1, replica="one")
    await one.reserve(mine)
    assert await one.opened_by("one") == [mine]


@pytest.mark.parametrize("name", ["", 'a"b', "名前-🦦", "%d[a-z]+.*", "a\\nb"])
async def test_any_name_finds_its_own(replicas, name):
    one, _ = replicas
    mine, other = reservation(1, replica=name), reservation(1, replica="other")
    for each in (mine, other):
        await one.reserve(each)
    assert await one.opened_by(name) == [mine]


async def test_it_is_found_in_an_epoch_that_is_not_ready_by_a_process_that_did_not_register(backend):
    one, two = backend.client(), backend.client()
    mine = reservation(1, replica="one")
    assert await two.opened_by("one") == []
    epoch = (await one.epochs())[ACME]
    await one.restore(epoch, [mine])
    assert await two.opened_by("one") == [mine]
    await one.forget(epoch, [(mine, Outcome.SETTLED)])
    assert await two.opened_by("one") == []
    for each in (one, two):
        await each.aclose()


async def test_a_few_among_thousands_are_found(replicas):
    one, two = replicas
    count = 2000
    made = [of(f"t{n % 40}", "one" if n % 500 == 0 else f"other{n % 3}") for n in range(count)]
    await asyncio.gather(*map(one.reserve, made))
    mine = {each.id for each in made if each.replica == "one"}
    assert {each.id for each in await two.opened_by("one")} == mine
    found = [each.id for p in range(PARTITIONS) for each in await two.opened_by("other1", p)]
    assert sorted(found) == sorted(each.id for each in made if each.replica == "other1")


async def test_what_was_open_in_an_epoch_that_is_over_is_no_answer(backend, replicas):
    one, two = replicas
    await one.reserve(reservation(1, replica="one"))
    await backend.restart()
    try:
        found = await two.opened_by("one")
    except UnreadyError:
        await two.epochs()
        found = await two.opened_by("one")
    assert found == []
    await make_ready(one, two)
    assert await two.opened_by("one") == []
