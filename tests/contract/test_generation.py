"""What every store must do so that a ledger that went back is noticed and corrected."""

import asyncio
from datetime import timedelta

import pytest

from extproc.ports.base import UnreadyError
from extproc.ports.epochs import Used
from extproc.ports.generation import Generation
from tests.changing import replace

from .ready import make_ready
from .reservations import HOSTILE, NOW, entry, reservation, settled, who
from .test_records import LATER, OVER, charged, used


def by_bucket(found):
    return {(each.tenant, each.key): (each.until, each.amount) for each in found}


# ---------------------------------------------------------------- counters


async def test_the_highest_generation_that_was_noted_is_known_to_all(replicas):
    one, two = replicas
    assert await one.note_generation(0) == 0
    assert await one.note_generation(7) == 7
    assert await two.note_generation(3) == 7
    assert await two.note_generation(2**40) == 2**40
    assert await one.note_generation(0) == 2**40


async def test_a_generation_outlives_epochs_and_not_its_server(backend, replicas):
    one, _ = replicas
    await one.note_generation(7)
    await backend.restart()
    assert await one.note_generation(0) == 7
    await backend.lose()
    assert await one.note_generation(0) == 0


async def test_what_is_used_of_all_buckets_is_counted_and_what_is_held_is_not(replicas):
    one, two = replicas
    made = [reservation(10, identity=who(*names)) for names in HOSTILE]
    for each in made:
        await one.reserve(each)
    await one.reserve(reservation(10, identity=who("held alone")))
    for amount, each in enumerate(made, start=1):
        await one.close([settled(each, amount)])
    expected = {}
    for amount, each in enumerate(made, start=1):
        for bucket in each.buckets:
            key = (each.identity.tenant, bucket.key)
            expected[key] = (bucket.interval.end, expected.get(key, (0, 0))[1] + amount)
    assert by_bucket(await two.counted(await two.epochs())) == expected
    (epoch,) = [each for each in await two.epochs() if each.counts("acme")]
    assert by_bucket(await two.counted([epoch])) == {k: v for k, v in expected.items() if epoch.counts(k[0])}


async def test_hundreds_of_buckets_are_counted(replicas):
    one, two = replicas
    made = [reservation(5, identity=who(f"t{n}")) for n in range(700)]
    await asyncio.gather(*map(one.reserve, made))
    await one.close([settled(each, 5) for each in made])
    found = await two.counted(await two.epochs())
    assert len(found) == sum(len(each.buckets) for each in made)
    assert {each.amount for each in found} == {5}


async def test_an_epoch_that_is_over_or_not_ready_is_not_counted(backend, replicas):
    one, two = replicas
    held = reservation(10)
    await one.reserve(held)
    await one.close([settled(held, 4)])
    over = await one.epochs()
    await backend.restart()
    with pytest.raises(UnreadyError):
        await one.counted(over)
    young = await one.epochs()
    with pytest.raises(UnreadyError):
        await one.counted(young)
    assert {each.amount for each in await two.counted_before(young)} == {4}
    with pytest.raises(UnreadyError):
        await two.counted_before(over)


async def test_what_the_epoch_before_had_counted_is_known_until_the_new_one_is_ready(backend, replicas):
    one, two = replicas
    held = reservation(10)
    await one.reserve(held)
    await one.close([settled(held, 4)])
    for _ in range(2):  # the first of both is never ready
        await backend.restart()
        young = await one.epochs()
    expected = {(held.identity.tenant, bucket.key): (bucket.interval.end, 4) for bucket in held.buckets}
    assert by_bucket(await two.counted_before(young)) == expected
    ready = await make_ready(one, two)
    assert await two.counted_before(ready) == []


# ---------------------------------------------------------------- records


async def test_the_generation_is_raised_beyond_what_was_noted(records):
    assert await records.advance(0) == Generation(1, 0)
    assert await records.advance(1) == Generation(2, 0)
    assert await records.advance(0) == Generation(2, 0)
    assert await records.advance(2) == Generation(3, 0)


async def test_a_generation_that_the_ledger_never_had_shows_that_it_went_back(records):
    assert await records.advance(5) is None, "an empty ledger"
    await records.advance(0)
    for _ in range(2):
        assert await records.advance(5) is None
    assert await records.advance(1) == Generation(2, 0)


async def test_a_correction_raises_the_generation_beyond_what_was_noted(records):
    for _ in range(2):
        await records.corrected(5)
        assert await records.advance(5) == Generation(6, 6)
    await records.corrected(9)
    assert await records.advance(8) == Generation(10, 10)


async def test_replicas_that_advance_at_once_all_get_a_generation(records):
    found = await asyncio.gather(*(records.advance(0) for _ in range(8)))
    assert set(found) == {Generation(1, 0)}


async def test_corrections_are_used_beside_the_ledgers_entries(ledger, records):
    await ledger.append([charged(("a", LATER, 5))])
    await records.correct([Used("acme", "a", LATER, 7), Used("other", "b", LATER, 1)])
    await ledger.append([charged(("a", LATER, 20))])
    assert await used(records) == {("acme", "a"): (LATER, 32), ("other", "b"): (LATER, 1)}
    assert by_bucket(await records.corrections(NOW)) == {
        ("acme", "a"): (LATER, 7),
        ("other", "b"): (LATER, 1),
    }


async def test_the_sums_of_single_buckets_are_those_of_all(ledger, records):
    await ledger.append([charged(("a", LATER, 5), ("b", LATER, 6), ("over", OVER, 7))])
    await records.correct([Used("acme", "a", LATER, 7), Used("other", "a", LATER, 1)])
    asked = [("acme", "a"), ("acme", "b"), ("other", "a"), ("acme", "over"), ("acme", "none"), ("+acme", "a")]
    found = await records.used_of(asked, NOW)
    if found is None:  # a standalone server
        assert await used(records) == {
            ("acme", "a"): (LATER, 12),
            ("acme", "b"): (LATER, 6),
            ("other", "a"): (LATER, 1),
        }
    else:
        assert found == [12, 6, 1, 0, 0, 0]


async def test_of_several_corrections_the_largest_counts(records):
    for amount in (7, 9, 8, 9):
        await records.correct([Used("acme", "a", LATER, amount)])
    assert by_bucket(await records.corrections(NOW)) == await used(records) == {("acme", "a"): (LATER, 9)}


async def test_corrections_of_windows_that_are_over_are_used_no_more(records):
    await records.correct([Used("acme", "a", OVER, 7)])
    assert await records.corrections(NOW) == []
    assert await used(records) == {}
    assert by_bucket(await records.corrections(NOW - timedelta(seconds=1))) == {("acme", "a"): (OVER, 7)}


async def test_a_correction_is_no_entry_and_shares_no_name_with_a_sum(ledger, records):
    made = [charged(("k", LATER, 1), identity=who(tenant)) for tenant, *_ in HOSTILE]
    tenants = dict.fromkeys(each.identity.tenant for each in made)
    await ledger.append(made)
    before = await used(records)
    await records.correct([Used(tenant, "k", LATER, 100) for tenant in tenants])
    assert await used(records) == {bucket: (until, n + 100) for bucket, (until, n) in before.items()}
    assert await records.outcomes([f"+{tenant}:k" for tenant in tenants]) == {}
    plain = replace(entry(1), id="x")
    await ledger.append([plain])
    assert await records.outcomes(["x"]) == {"x": plain.outcome}
