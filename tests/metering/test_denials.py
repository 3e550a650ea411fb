"""A flood of denied requests takes few entries, and each request is counted."""

import tracemalloc

from extproc.core.quota.limits import read_key
from extproc.core.quota.reservation import Denied
from extproc.core.quota.settlement import Outcome
from extproc.core.request.identity import Identity
from extproc.metering.denials import SEVERAL_MODELS, DenialOptions, Denials
from extproc.ports.ledger import UsageFilter
from extproc.stores.mongo.documents import document_entry, entry_document
from tests.changing import replace

from .waiting import until
from .world import WHO, World, ask

FLOOD = 2000


def caller(number):
    return Identity("acme", f"sa{number}", "10.0.0.1")


async def denied(world, times, identity=WHO, **facts):
    for _ in range(times):
        assert isinstance(await world.service.reserve(ask(10, identity, **facts)), Denied)


async def days(world):
    return {day.service_account: day.denied for day in await world.ledger.daily(UsageFilter(), 100_000)}


def sizes(entries):
    return [entry.count for entry in entries if entry.count > 1], sum(entry.count == 1 for entry in entries)


async def test_a_flood_of_denials_has_few_entries_and_an_exact_count():
    world = World(limit=9)
    await denied(world, FLOOD)
    await world.drained()
    entries = await world.entries()
    assert sizes(entries) == ([FLOOD - 10], 10)
    assert await days(world) == {WHO.service_account: FLOOD}
    assert world.counted("decisions_total", outcome="denied", reason="service_account") == FLOOD
    (summed,) = (entry for entry in entries if entry.count > 1)
    assert (summed.outcome, summed.reason, summed.identity) == (Outcome.DENIED, "service_account", WHO)
    assert (summed.cost.total, summed.charge, summed.held, summed.model) == ((FLOOD - 10) * 10, 0, 0, "m")
    assert len({entry.id for entry in entries}) == 11


async def test_each_entry_names_the_limit_that_denied_and_its_counts_and_a_sum_those_of_the_last_one():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=1))
    await denied(world, 1)
    world.clock.passes(1)
    for tokens in (10, 14, 12):
        await world.service.reserve(ask(tokens))
        world.clock.passes(1)
    await world.drained()
    single, summed = sorted(await world.entries(), key=lambda entry: entry.count)
    for entry, needed in ((single, 10), (summed, 12)):
        refusal = entry.refused_by
        assert (refusal.limit, refusal.used, refusal.held, refusal.needed) == (9, 0, 0, needed)
        name = read_key(refusal.key)
        assert (name.scope, name.window, name.parts) == ("service_account", "day", ("sa",))
    assert document_entry(entry_document(summed)) == summed


async def test_each_minute_has_first_ones_with_entries_of_their_own():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=2))
    for _ in range(3):
        await denied(world, 5)
        world.clock.passes(60)
    await world.drained()
    assert sizes(await world.entries()) == ([9], 6)
    assert await days(world) == {WHO.service_account: 15}


async def test_what_was_counted_is_written_while_it_goes_on():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=0, write_s=0.01))
    async with world.running():
        for known in (3, 6):
            await denied(world, 3)
            await until(lambda known=known: sum(each.count for each in world.ledger._entries.values()) == known)


async def test_names_of_models_make_no_further_entries():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=0))
    for number in range(50):
        await denied(world, 1, model=f"made-up-{number}")
    await world.drained()
    (entry,) = await world.entries()
    assert (entry.model, entry.count) == (SEVERAL_MODELS, 50)


async def test_a_suspended_caller_is_counted_too():
    world = World(limit=9)
    world.limits.documents[WHO.tenant] = {"suspended": "unpaid"}
    for _ in range(30):
        await world.reserve()
    await world.drained()
    assert sizes(await world.entries()) == ([20], 10)
    assert await days(world) == {WHO.service_account: 30}


async def test_a_flood_of_callers_takes_bounded_memory_and_is_counted_whole():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=1, buckets=20, callers=30))
    for number in range(200):
        await denied(world, 3, caller(number))
        assert len(world.denials._denials._firsts) <= 20
        assert len(world.denials._denials._sums) <= 30
    await world.drained()
    assert await days(world) == {f"sa{number}": 3 for number in range(200)}
    assert sizes(await world.entries())[1] == 20


async def test_in_an_outage_of_the_ledger_known_callers_are_still_counted(monkeypatch):
    monkeypatch.setattr("extproc.metering.build.DENIALS_AT_MOST", 20)
    world = World(limit=9, denials=DenialOptions(singly_per_minute=1, callers=5))
    for number in range(40):  # the queue is full of the first ones, the sums are those of 5 callers
        await denied(world, 2, caller(number % 30))
    lost = world.counted("queue_lost_total", queue="denied")
    for number in range(20, 23):
        await denied(world, 10, caller(number))
    await world.drained()
    assert sum((await days(world)).values()) == 80 + 30 - world.counted("queue_lost_total", queue="denied")
    assert lost


async def test_the_denials_of_12000_callers_take_some_megabytes():
    world = World(limit=9)
    made = replace(
        world.service._drafter.draft(ask(), world.limits.policy("acme"), world.clock.now(), "r").reservation
    )
    denials = Denials(lambda: "0" * 32)
    tracemalloc.start()
    for number in range(12_000):
        each = replace(made, identity=caller(f"-{number:0200}"))
        denials.is_single(each, f"{number:0300}")
        denials.add(each, "service_account")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(denials) == 10_000
    assert peak < 40 * 1024 * 1024


async def test_an_entry_of_several_is_stored_and_read_as_it_was():
    world = World(limit=9, denials=DenialOptions(singly_per_minute=0))
    await denied(world, 3)
    await world.drained()
    (entry,) = await world.entries()
    assert entry_document(entry)["count"] == 3
    assert document_entry(entry_document(entry)) == entry
    assert "count" not in entry_document(replace(entry, count=1))
