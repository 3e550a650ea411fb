"""What every implementation of `ports.Records` must do: what counters are rebuilt from."""

import asyncio
from datetime import timedelta

import pytest

from extproc.core.quota.ledger import Charge
from extproc.core.quota.limits import Unit
from extproc.core.quota.settlement import Outcome
from extproc.ports.ledger import UsageFilter
from tests.changing import replace
from tests.sizes import sized

from .reservations import HOSTILE, NOW, bound_by, entry, reservation, strictly, who

ALL = UsageFilter()

LATER = int(NOW.timestamp()) + 3600
OVER = int(NOW.timestamp())
OLD = NOW - timedelta(days=30)


def charged(*charges, **further):
    """An entry with charges (key, until, amount)."""
    return entry(charges=tuple(Charge(*each) for each in charges), **further)


async def used(records, now=NOW):
    return {(each.tenant, each.key): (each.until, each.amount) for each in await records.used(now)}


def by_id(reservations):
    return sorted(reservations, key=lambda each: each.id)


# ---------------------------------------------------------------- what is used


async def test_what_is_used_is_the_sum_of_the_ledgers_charges_per_bucket(ledger, records):
    await ledger.append([charged(("a", LATER, 5), ("b", LATER + 60, 7)), charged(("a", LATER, 10))])
    await ledger.append([charged(("a", LATER, 100)), charged(("a", LATER, 1000), identity=who("other"))])
    assert await used(records) == {
        ("acme", "a"): (LATER, 115),
        ("acme", "b"): (LATER + 60, 7),
        ("other", "a"): (LATER, 1000),
    }


async def test_windows_that_are_over_are_not_used(ledger, records):
    await ledger.append([charged(("day", OVER, 5), ("month", LATER, 5)), charged(("minute", OVER - 60, 5))])
    assert await used(records) == {("acme", "month"): (LATER, 5)}
    assert await used(records, NOW - timedelta(seconds=1)) == {
        ("acme", "month"): (LATER, 5),
        ("acme", "day"): (OVER, 5),
    }


async def test_an_entry_without_charges_uses_nothing(ledger, records):
    await ledger.append([entry(10), entry(0, outcome=Outcome.DENIED)])
    assert await used(records) == {}


async def test_charges_come_back_with_their_entry(ledger):
    made = charged(("a", LATER, 5), ("b", OVER, 7))
    await ledger.append([made])
    assert [each async for each in ledger.replay(ALL)] == [made]


async def test_appending_twice_uses_once(ledger, records):
    made = [charged(("a", LATER, n)) for n in (1, 2, 4, 8)]
    await ledger.append(made[:2])
    await ledger.append(made[:3])
    await ledger.append([made[3], *made, made[0]])
    assert await used(records) == {("acme", "a"): (LATER, 15)}


async def test_a_second_end_of_a_reservation_uses_nothing_more(ledger, records):
    first = charged(("a", LATER, 5))
    await ledger.append([first])
    second = replace(first, outcome=Outcome.EXPIRED, charge=1000, charges=(Charge("a", LATER, 1000),))
    await ledger.append([second, charged(("a", LATER, 1))])
    assert await used(records) == {("acme", "a"): (LATER, 6)}
    assert await records.outcomes([first.id]) == {first.id: Outcome.SETTLED}


async def test_hostile_names_never_share_a_sum(ledger, records):
    made = [charged(("k", LATER, n), identity=who(tenant)) for n, (tenant, *_) in enumerate(HOSTILE, start=1)]
    made += [charged((key, LATER, 7), identity=who("t2")) for key in ("$inc", "a.b", "a\0b", "", "k:%3A:名前")]
    await ledger.append(made)
    expected = {}
    for each in made:
        bucket = (each.identity.tenant, each.charges[0].key)
        expected[bucket] = (LATER, expected.get(bucket, (0, 0))[1] + each.charges[0].amount)
    assert await used(records) == expected


# ---------------------------------------------------------------- outcomes


async def test_outcomes_are_those_of_the_ledger(ledger, records):
    outcomes = [Outcome.SETTLED, Outcome.ESTIMATED, Outcome.EXPIRED, Outcome.RELEASED]
    made = [entry(outcome=outcome) for outcome in outcomes]
    await ledger.append(made)
    asked = [*(each.id for each in made), "never", made[0].id]
    assert await records.outcomes(asked) == {each.id: each.outcome for each in made}
    assert await records.outcomes([]) == {}


async def test_outcomes_can_be_asked_of_many_at_once(ledger, records):
    made = [entry(1) for _ in range(3)]
    await ledger.append(made)
    asked = [*(f"other-{n}" for n in range(2500)), *(each.id for each in made)]
    assert await records.outcomes(asked) == {each.id: Outcome.SETTLED for each in made}


# ---------------------------------------------------------------- open reservations


async def test_what_is_kept_comes_back_as_it_was(records):
    made = [
        reservation(10, ip_limit=50),
        strictly(100, choices=3, prompt=7),
        bound_by((5, {"unit": Unit.REQUESTS}), requests=3, extra_output=9, local=True),
        *(reservation(identity=who(*names)) for names in HOSTILE),
    ]
    await records.save(made)
    assert by_id(await records.saved()) == by_id(made)


async def test_a_later_state_replaces_an_earlier_one(records):
    first = reservation(10)
    grown = replace(first, extra_output=50)
    renewed = replace(grown, deadline=first.deadline + 60)
    for state in (first, grown, renewed, renewed):
        await records.save([state])
        assert await records.saved() == [state]


async def test_a_state_that_was_overtaken_changes_nothing(records):
    first = reservation(10)
    renewed = replace(first, deadline=first.deadline + 60, extra_output=50)
    other = reservation(10)
    await records.save([renewed])
    await records.save([first, other])
    assert by_id(await records.saved()) == by_id([renewed, other])


async def test_what_is_dropped_is_kept_no_more(records):
    made = [reservation() for _ in range(4)]
    await records.save(made)
    for _ in range(2):
        await records.drop([made[0].id, made[2].id, "never"])
    assert by_id(await records.saved()) == by_id([made[1], made[3]])


async def test_keeping_and_dropping_nothing_changes_nothing(records):
    await records.save([])
    await records.drop([])
    assert await records.saved() == []


async def test_hundreds_are_kept_and_dropped_at_once(records):
    made = [reservation() for _ in range(sized(600, 2300))]
    await records.save(made)
    assert {each.id for each in await records.saved()} == {each.id for each in made}
    await records.drop([each.id for each in made[1:]])
    assert await records.saved() == made[:1]


async def test_of_a_list_those_that_are_kept_are_told(records):
    made = [reservation() for _ in range(3)]
    await records.save(made)
    await records.drop([made[1].id])
    asked = [*(f"other-{n}" for n in range(600)), *(each.id for each in made), made[0].id, "$where"]
    assert await records.which_saved(asked) == {made[0].id, made[2].id}
    assert await records.which_saved([]) == set()


# ---------------------------------------------------------------- up to when everything is saved


async def test_the_mark_of_each_replica_is_known_to_all_and_the_latest_call_counts(records):
    assert await records.saved_until() == {}
    for until in (NOW, NOW + timedelta(seconds=5), NOW + timedelta(seconds=2)):  # the clock was set back
        await records.note_saved_until("a", until)
        await records.note_saved_until("b", NOW)
        assert await records.saved_until() == {"a": until, "b": NOW}


async def test_a_mark_outlives_its_replica(records):
    await records.heartbeat("a")
    await records.note_saved_until("a", NOW)
    await records.deregister("a")
    assert set(await records.heartbeat("b")) == {"b"}
    assert await records.saved_until() == {"a": NOW}


async def test_a_mark_is_rounded_down_so_that_it_promises_no_more(records):
    until = NOW + timedelta(microseconds=4999)
    await records.note_saved_until("a", until)
    (stored,) = (await records.saved_until()).values()
    assert stored == NOW + timedelta(milliseconds=4)
    assert stored.tzinfo is not None


@pytest.mark.parametrize("name", ["$where", "a.b", '{"$ne": ""}', "名前", "a\0b"])
async def test_any_name_of_a_replica_has_a_mark_of_its_own(records, name):
    await records.note_saved_until("plain", NOW)
    await records.note_saved_until(name, OLD)
    assert await records.saved_until() == {"plain": NOW, name: OLD}


async def test_marks_of_many_replicas_at_once_are_all_known(records):
    await asyncio.gather(*(records.note_saved_until(name, NOW) for name in "aabbcc"))
    assert await records.saved_until() == dict.fromkeys("abc", NOW)


# ---------------------------------------------------------------- replicas


async def test_beats_grow_and_are_seen_by_all(records):
    assert set(await records.heartbeat("a")) == {"a"}
    first = await records.heartbeat("b")
    second = await records.heartbeat("b")
    assert set(first) == set(second) == {"a", "b"}
    assert second["b"] > first["b"]
    assert second["a"] == first["a"]


async def test_who_left_beats_no_more_until_it_comes_back(records):
    await records.heartbeat("a")
    await records.heartbeat("b")
    for _ in range(2):
        await records.deregister("a")
    assert set(await records.heartbeat("b")) == {"b"}
    assert set(await records.heartbeat("a")) == {"a", "b"}


@pytest.mark.parametrize("name", ["$where", "a.b", '{"$ne": ""}', "名前", "a\0b"])
async def test_any_name_of_a_replica_can_beat_and_leave(records, name):
    await records.heartbeat("plain")
    assert set(await records.heartbeat(name)) == {"plain", name}
    await records.deregister(name)
    assert set(await records.heartbeat("plain")) == {"plain"}


async def test_replicas_that_beat_for_the_first_time_at_once_are_all_known(records):
    await asyncio.gather(*(records.heartbeat(name) for name in "aabbcc"))
    assert set(await records.heartbeat("a")) == {"a", "b", "c"}
