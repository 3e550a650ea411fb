"""The journal: what every implementation of `ports.Journal` must do with entries between an end and the ledger."""

import asyncio

from extproc.core.quota.ledger import Charge, closed_entry
from extproc.core.quota.partitions import partition_of
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.ports.counters import Closed, Receipt
from extproc.ports.journal import Journalled
from tests.changing import replace

from .reservations import entry, released, reservation, settled, who

TENANTS = [f"t{n}" for n in range(40)]


def recorded(closing, **further):
    """The closing with an entry for the ledger."""
    held = closing.reservation
    line = replace(entry(7, identity=held.identity, outcome=closing.outcome, **further), id=held.id)
    return replace(closing, entry=line)


async def ended(counters, tenant="acme", limit=1000, **further):
    """A reservation that was made and settled: its entry and its receipt."""
    held = reservation(7, limit=limit, identity=who(tenant=tenant))
    await counters.reserve(held)
    closing = recorded(settled(held, 7), **further)
    (closed,) = await counters.close([closing])
    return closing.entry, closed.receipt


async def entries(counters, at_most=1000, partition=None):
    return [each.entry for each in await counters.waiting(0, at_most, partition)]


async def test_an_entry_waits_from_the_end_of_its_reservation_until_it_is_written(counters):
    charges = (Charge("b:1:ünï", 1_800_000_000, 7), Charge("c", 1, 2**52))
    line, receipt = await ended(counters, charges=charges, shadow=("x",), price=2**60)
    (waiting,) = await counters.waiting(0, 10)
    assert waiting.entry == line
    assert waiting.receipt == receipt
    assert receipt.partition == partition_of("acme")
    await counters.written([receipt])
    assert await counters.waiting(0, 10) == []
    await counters.written([receipt, Receipt(3, receipt.id)])  # gone already


async def test_an_end_without_an_entry_leaves_nothing_waiting(counters):
    held = reservation()
    await counters.reserve(held)
    assert await counters.close([settled(held, 1)]) == [Closed(settled(held, 1).outcome)]
    assert await counters.waiting(0, 10) == []


async def test_a_repeated_end_returns_the_same_receipt_and_journals_nothing_more(counters):
    held = reservation()
    await counters.reserve(held)
    closing = recorded(settled(held, 5))
    first, again = [(await counters.close([closing]))[0] for _ in range(2)]
    assert first == again
    assert first.receipt is not None
    assert await entries(counters) == [closing.entry]


async def test_an_end_that_another_one_overtook_journals_nothing(counters):
    held = reservation()
    await counters.reserve(held)
    first = recorded(settled(held, 5))
    await counters.close([first])
    (closed,) = await counters.close([recorded(released(held))])
    assert closed == Closed(first.outcome)
    assert await entries(counters) == [first.entry]


async def test_many_ends_of_one_reservation_at_once_journal_one_entry(counters):
    held = reservation()
    await counters.reserve(held)
    closing = recorded(settled(held, 5))
    closed = await asyncio.gather(*(counters.close([closing]) for _ in range(16)))
    assert len({each.receipt for (each,) in closed}) == 1
    assert await entries(counters) == [closing.entry]


async def test_the_end_of_an_unknown_reservation_journals_nothing(counters):
    (closed,) = await counters.close([recorded(settled(reservation(), 5))])
    assert closed.receipt is None
    assert await entries(counters) == []


async def test_the_end_of_an_unknown_local_reservation_is_charged_and_journalled_once(counters):
    held = reservation(10, ip_limit=100, local=True)
    closing = recorded(settled(held, 6))
    first, again = [(await counters.close([closing]))[0] for _ in range(2)]
    assert first == again
    assert first.receipt is not None
    assert [(c.used, c.held) for c in await counters.read("acme", held.buckets)] == [(6, 0), (6, 0)]
    assert await entries(counters) == [closing.entry]


async def test_entries_wait_in_the_order_of_their_ends_of_all_partitions_or_of_one(counters):
    made = [await ended(counters, tenant) for tenant in TENANTS]
    waiting = await counters.waiting(0, 1000)
    # Ends within one millisecond have no order across partitions.
    assert {each.receipt for each in waiting} == {receipt for _, receipt in made}
    for partition in range(16):
        of_it = [line for line, receipt in made if receipt.partition == partition]
        assert [each.entry for each in waiting if each.receipt.partition == partition] == of_it
        assert await entries(counters, partition=partition) == of_it
        assert await entries(counters, 1, partition) == of_it[:1]


async def test_all_that_waits_in_a_partition_is_told_with_what_it_charges(counters):
    charges = [(Charge("b", 1_800_000_000, n + 1),) for n in range(600)]
    made = [await ended(counters, "acme", 10_000, charges=each) for each in charges]
    made += [await ended(counters, tenant) for tenant in TENANTS[:3]]
    await counters.written([made.pop(5)[1]])
    for partition in range(16):
        of_it = [line for line, receipt in made if receipt.partition == partition]
        assert await counters.journalled(partition) == [Journalled.of(line) for line in of_it]


async def test_no_more_entries_are_returned_than_asked_for_wherever_they_wait(counters):
    made = [await ended(counters, "acme") for _ in range(30)]
    made += [await ended(counters, tenant) for tenant in TENANTS[:3]]
    for at_most in (0, 1, 2, 17, 33, 500):
        found = await counters.waiting(0, at_most)
        assert len(found) == min(at_most, 33)
        ours = [each.entry for each in found if each.receipt.partition == partition_of("acme")]
        order = [line for line, receipt in made if receipt.partition == partition_of("acme")]
        assert ours == order[: len(ours)]
    while found := await counters.waiting(0, 7):
        await counters.written([each.receipt for each in found])
    assert (await counters.backlog()).waiting == 0


async def test_all_that_waits_is_looked_through_in_parts_and_says_who_admitted_it(counters):
    made = [await ended(counters, "acme", 10_000) for _ in range(300)]
    made += [await ended(counters, tenant) for tenant in TENANTS[:5]]
    held = reservation(7, identity=who(tenant="elsewhere"), replica="r1")
    await counters.reserve(held)
    settlement = Settlement(Outcome.SETTLED, Usage(3, 4, total=7), 7, "stop")
    closing = replace(settled(held, 7), entry=closed_entry(held, settlement, held.admitted_at))
    (closed,) = await counters.close([closing])
    made.append((closing.entry, closed.receipt))

    assert [each.replica for each in await counters.waiting(0, 999) if each.entry.id == held.id] == ["r1"]
    of_it = [(line, receipt) for line, receipt in made if receipt.partition == partition_of("acme")]
    found, last = [], None
    while part := await counters.waiting(0, 70, partition_of("acme"), last):
        assert len(part) <= 70
        found += part
        last = part[-1].receipt
        await counters.written([last])  # what is gone by now is still a place to go on from
    assert [(each.entry, each.receipt) for each in found] == of_it


async def test_what_has_not_waited_for_so_long_is_left_to_its_replica(counters):
    await ended(counters)
    assert await counters.waiting(60, 10) == []
    assert await counters.waiting(10**10, 10) == []
    assert len(await counters.waiting(0, 10)) == 1


async def test_what_is_set_aside_waits_no_more_and_is_kept_with_its_reason(counters):
    line, receipt = await ended(counters)
    denied = entry(0)
    await counters.set_aside(line, receipt, "too large")
    await counters.set_aside(denied, None, "so is this")
    assert await counters.waiting(0, 10) == []
    aside = await counters.aside(10)
    assert sorted(each.reason for each in aside) == ["so is this", "too large"]
    assert (
        sorted(f'"id":"{e.id}"' in each.text for each in aside for e in (line, denied)) == [False] * 2 + [True] * 2
    )
    assert len(await counters.aside(1)) == 1


async def test_setting_aside_what_was_not_read_keeps_the_journals_own_text_once(counters):
    line, receipt = await ended(counters)
    for _ in range(2):
        await counters.set_aside(None, receipt, "unreadable")
    await counters.set_aside(None, None, "nothing")
    (aside,) = await counters.aside(10)
    assert line.id in aside.text
    assert aside.reason == "unreadable"


async def test_the_backlog_says_how_much_waits_and_for_how_long(counters):
    empty = await counters.backlog()
    assert (empty.waiting, empty.oldest_s, empty.aside) == (0, 0.0, 0)
    made = [await ended(counters, tenant) for tenant in TENANTS]
    await counters.set_aside(None, made[0][1], "why not")
    backlog = await counters.backlog()
    assert (backlog.waiting, backlog.aside) == (39, 1)
    assert 0 <= backlog.oldest_s < 60


async def test_the_journal_outlives_epochs(backend, replicas):
    from .ready import make_ready

    one, two = replicas
    line, receipt = await ended(one)
    await backend.restart()
    assert await entries(two) == [line]  # before anybody has noticed
    await make_ready(two)
    assert await entries(two) == [line]
    await two.written([receipt])
    assert await entries(one) == []
