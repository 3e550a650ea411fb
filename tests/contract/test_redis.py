"""What only the Redis counters must do: keys, scripts, faults of the server, and a server that came back empty."""

import asyncio
import os
import random
import re
import signal
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from redis.crc import key_slot

from extproc.core.quota.costs import Cost, Weights
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.core.quota.reservation import Admitted, Denied
from extproc.core.quota.settlement import Estimates, Outcome, charges
from extproc.core.quota.usage import Usage
from extproc.local.ports import HOST, free_ports
from extproc.ports.base import StoreError, UnreadyError
from extproc.ports.counters import Closing, Receipt
from extproc.ports.epochs import Used
from extproc.stores.redis import RedisCounters, RedisOptions, server
from tests.changing import replace

from .ready import make_ready, patient
from .reservations import (
    HOSTILE,
    NOW,
    TTL_S,
    bucket,
    counts,
    entry,
    expired,
    outcomes,
    released,
    reservation,
    settled,
    strictly,
    who,
)
from .servers import not_connected, until

_TAG = re.compile(r"^tw:\{([^{}]+)\}:([0-9a-f]{16}):(b:|r:|open$)")
ACME = partition_of("acme")
OPERATORS = Path(__file__).parents[2] / "docs" / "operators.md"
DAY_S = 86_400


@pytest.fixture
async def second(redis_part):
    """Another replica."""
    adapter = patient(redis_part.url)
    await make_ready(adapter)
    yield adapter
    await adapter.aclose()


async def buckets_of(redis):
    """The keys of all buckets that there are."""
    return sorted(key for key in await redis.keys("tw:*") if ":b:" in key)


# ---------------------------------------------------------------- keys


async def keys_of(redis):
    """All keys of the epochs but for who registered."""
    return sorted(key for key in await redis.keys("tw:{*") if _TAG.match(key))


async def epoch_of(redis, partition=ACME):
    return await redis.hget(f"tw:{{{partition}}}:epoch", "id")


async def key_of(redis, held):
    return f"tw:{{{ACME}}}:{await epoch_of(redis)}:r:{held.id}"


async def open_key(redis):
    return f"tw:{{{ACME}}}:{await epoch_of(redis)}:open"


async def test_all_keys_of_a_tenant_are_in_its_partition(redis_counters, redis):
    for names in HOSTILE:
        held = reservation(1, limit=1000, ip_limit=1000, identity=who(*names))
        before = set(await redis.keys("tw:*"))
        await redis_counters.reserve(held)
        new = set(await redis.keys("tw:*")) - before
        assert {_TAG.match(key)[1] for key in new} == {str(partition_of(names[0]))}
        assert len({key_slot(key.encode()) for key in new}) == 1


async def test_two_reservations_never_share_a_key_whatever_their_ids_are(redis_counters, redis):
    ids = ["a", "a:b", "a%3Ab", "a b", "{3}", "ü", "../x", "*"]
    for each in ids:
        assert isinstance(await redis_counters.reserve(reservation(1, id=each)), Admitted)
    keys = [key for key in await keys_of(redis) if ":r:" in key]
    assert len(keys) == len(ids)
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert {r.id for r in await redis_counters.overdue(NOW + timedelta(days=1), 100)} == set(ids)


async def test_every_key_is_forgotten_in_time(redis_counters, redis):
    held, ended = reservation(10, ip_limit=100), reservation(10, ip_limit=100)
    await redis_counters.reserve(held)
    await redis_counters.reserve(ended)
    await redis_counters.close([settled(ended, 5), released(reservation(1))])
    await redis_counters.seen("r")
    await redis_counters.seen("r", ACME)
    lasting = re.compile(r"tw:\{\d+\}:(epoch|ledger|aside)")  # what was lost, and what must not be
    ttls = {key: await redis.ttl(key) for key in await redis.keys("tw:*") if not lasting.fullmatch(key)}
    # Two buckets, three reservations, what is open, who registered, and who is here.
    assert len(ttls) == 6 + PARTITIONS + 2
    for key, ttl in ttls.items():
        if ":b:" in key:
            assert DAY_S <= ttl <= 2 * DAY_S
        elif key.endswith(":seen"):
            assert 0 < ttl <= DAY_S
        elif key.endswith(f":{held.id}"):
            assert TTL_S < ttl <= TTL_S + DAY_S
        elif key.endswith((":open", ":replicas")):
            assert 7 * DAY_S < ttl <= 8 * DAY_S
        else:
            assert 0 < ttl <= 600
    await redis_counters.close([released(held)])
    assert not [key for key in await redis.keys("tw:*") if key.endswith(":open")]


async def test_a_bucket_whose_window_is_over_does_not_come_back(redis_counters, redis):
    held = reservation(10, ip_limit=100)
    await redis_counters.reserve(held)
    gone = await buckets_of(redis)
    await redis.delete(gone[0])
    assert await outcomes(redis_counters, [settled(held, 5)]) == [Outcome.SETTLED]
    assert not await redis.exists(gone[0])
    assert sorted(await counts(redis_counters, held)) == [(0, 0), (5, 0)]


async def test_a_bucket_that_was_evicted_and_came_back_never_holds_less_than_nothing(redis_counters, redis):
    held = reservation(10)
    await redis_counters.reserve(held)
    await redis.delete(*await buckets_of(redis))
    other = reservation(4)
    await redis_counters.reserve(other)
    assert (await redis_counters.reserve(held)).states[0].count.held == 10
    await redis_counters.close([settled(held, 7)])
    assert await counts(redis_counters, held) == [(7, 0)]
    await redis_counters.close([settled(other, 4)])
    assert await counts(redis_counters, held) == [(11, 0)]


async def test_a_bucket_whose_window_is_over_does_not_come_back_by_renewing(redis_counters, redis):
    held = reservation(Cost(4, 6), ip_limit=100)
    await redis_counters.reserve(held)
    gone = await buckets_of(redis)
    await redis.delete(gone[0])
    grown = replace(held, cost=Cost(4, 16))
    await redis_counters.renew([grown])
    assert await buckets_of(redis) == gone[1:]
    assert sorted(await counts(redis_counters, held)) == [(0, 0), (0, 20)]
    await redis_counters.close([settled(grown, 15)])
    assert sorted(await counts(redis_counters, held)) == [(0, 0), (15, 0)]


async def test_what_held_nothing_does_not_bring_back_a_bucket_whose_window_is_long_over(redis_counters, redis):
    days_ago = NOW - timedelta(days=3)
    for grown in (False, True):
        held = reservation(0, buckets=(bucket(who(), 100, now=days_ago),))
        await redis_counters.reserve(held)
        if grown:
            held = replace(held, cost=Cost(2, 3))
            await redis_counters.renew([held])
            assert await buckets_of(redis) == []
        await redis_counters.close([settled(held, 90)], (80,))
        assert await buckets_of(redis) == []


@pytest.mark.parametrize("end", [released, lambda held: settled(held, 0)])
async def test_a_bucket_in_which_nothing_stands_in_the_end_leaves_no_key_behind(redis_counters, redis, end):
    first, second = reservation(10, ip_limit=100), reservation(10, ip_limit=100)
    nothing = reservation(0, ip_limit=100)
    for held in (first, second, nothing):
        await redis_counters.reserve(held)
    for held in (first, nothing):
        await redis_counters.close([end(held)], (80,))
        assert len(await buckets_of(redis)) == 2
    await redis_counters.close([end(second)], (80,))
    assert await buckets_of(redis) == []


async def test_a_denied_request_leaves_no_key_behind(redis_counters, redis):
    await redis_counters.reserve(reservation(11, limit=10, ip_limit=100))
    assert await keys_of(redis) == []


async def test_a_bucket_is_forgotten_at_the_same_time_whoever_made_it(redis_counters, redis):
    end = (NOW.replace(hour=0, minute=0, second=0) + timedelta(days=2)).timestamp()
    nothing, other, grown = reservation(0), reservation(5, limit=100), reservation(0)
    for held in (nothing, other, grown):
        await redis_counters.reserve(held)
    assert await redis.expiretime((await buckets_of(redis))[0]) == end
    await redis_counters.close([released(other)])
    await redis_counters.close([settled(nothing, 5)])  # made by its end
    assert await redis.expiretime((await buckets_of(redis))[0]) == end
    await redis.delete(*await buckets_of(redis))
    await redis_counters.renew([replace(grown, cost=Cost(1, 1))])
    assert await redis.expiretime((await buckets_of(redis))[0]) == end


async def test_a_renewed_reservation_is_kept_for_as_long_as_it_may_last(redis_counters, redis):
    held = reservation(10)
    await redis_counters.reserve(held)
    await redis_counters.renew([replace(held, deadline=held.deadline + 3 * DAY_S)])
    ttl = await redis.ttl(await key_of(redis, held))
    assert TTL_S + 3 * DAY_S < ttl <= TTL_S + 4 * DAY_S


async def test_of_a_reservation_that_ended_no_more_is_kept_than_how(redis_counters, redis):
    held = reservation(90)
    await redis_counters.reserve(held)
    await redis_counters.close([settled(held, 90)], (80, 95))
    assert await redis.hgetall(await key_of(redis, held)) == {"outcome": "settled", "crossed": "1 90 80"}


# ---------------------------------------------------------------- at once


async def test_two_hundred_strict_requests_at_once_never_exceed_the_limit_whatever_they_use(redis_part, redis):
    dice = random.Random(20260303)
    replicas = [patient(redis_part.url) for _ in range(4)]
    await make_ready(*replicas)
    made = []
    for _ in range(200):
        output, weights = dice.randint(10, 60), Weights(*(dice.randint(1, 3000) for _ in range(4)))
        sizes = {"prompt": dice.randint(0, 20), "output": output, "least": dice.randint(1, 10)}
        made.append(strictly(1000, **sizes, choices=dice.randint(1, 2), weights=weights))
    decisions = await asyncio.gather(*(dice.choice(replicas).reserve(held) for held in made))
    granted = [d.reservation for d in decisions if isinstance(d, Admitted)]
    denied = [d for d in decisions if isinstance(d, Denied)]
    ((used, held),) = await counts(replicas[0], made[0])
    assert (used, held) == (0, sum(r.hold(r.buckets[0].limit) for r in granted))
    assert held <= 1000
    assert len(granted) + len(denied) == 200
    assert all(1000 - d.state.count.used - d.state.count.held < d.need for d in denied)
    assert any(was.bound.output > r.bound.output for was in made for r in granted if was.id == r.id)

    more = Usage(10_000, 10_000, 0, 0, 20_000)
    ends = [(r, Estimates.of(r, 4).settle(more, complete=True)) for r in granted]
    await asyncio.gather(
        *(dice.choice(replicas).close([Closing(r, end.outcome, charges(r, end))]) for r, end in ends)
    )
    assert await counts(replicas[0], made[0]) == [(held, 0)]
    for replica in replicas:
        await replica.aclose()


# ---------------------------------------------------------------- scripts


async def test_scripts_that_the_server_forgot_are_sent_again(redis_counters, redis):
    held = reservation(10)
    await redis.script_flush()
    assert isinstance(await redis_counters.reserve(held), Admitted)
    await redis.script_flush()
    await redis_counters.renew([replace(held, cost=Cost(5, 6))])
    assert await counts(redis_counters, held) == [(0, 11)]
    await redis.script_flush()
    assert await outcomes(redis_counters, [settled(held, 4)]) == [Outcome.SETTLED]
    await redis.script_flush()
    assert isinstance(await redis_counters.reserve(reservation(10)), Admitted)
    assert await counts(redis_counters, held) == [(4, 10)]
    for _ in range(2):
        await redis.script_flush()
        assert await redis_counters.seen("r") == {"r": 0.0}
        await redis.script_flush()
        assert len(await redis_counters.opened_by("")) == 1
        await redis.script_flush()
        assert await redis_counters.forget_replica("r", older_than_s=0)


async def test_a_reservation_of_no_tokens_can_be_ended(redis_counters):
    held = reservation(0)
    await redis_counters.reserve(held)
    assert await outcomes(redis_counters, [settled(held, 0)]) == [Outcome.SETTLED]


async def test_however_many_calls_find_the_scripts_gone_they_are_loaded_once(redis_counters, redis):
    await redis.script_flush()
    await redis.config_resetstat()
    await asyncio.gather(*(redis_counters.reserve(reservation(1, limit=1000)) for _ in range(30)))
    assert (await redis.info("commandstats"))["cmdstat_script|load"]["calls"] == len(server._SCRIPTS)


async def test_counts_that_are_being_rebuilt_are_not_shown(redis_counters, redis):
    held = reservation(10)
    await redis_counters.reserve(held)
    assert await counts(redis_counters, held) == [(0, 10)]
    await redis.hset(f"tw:{{{ACME}}}:epoch", "run", "before")
    epoch = (await redis_counters.epochs())[ACME]
    assert isinstance(await _fault(redis_counters.read("acme", held.buckets)), UnreadyError)
    await redis_counters.complete(epoch)
    assert await counts(redis_counters, held) == [(0, 0)]
    await redis.flushall()
    assert isinstance(await _fault(redis_counters.read("acme", held.buckets)), UnreadyError)


# ---------------------------------------------------------------- expiry


async def test_any_replica_finds_what_another_one_left_open(redis_counters, second):
    held = reservation(10, ttl_s=1)
    await redis_counters.reserve(held)
    (overdue,) = await second.overdue(NOW + timedelta(seconds=2), 10)
    assert overdue == held
    assert await outcomes(second, [expired(overdue)]) == [Outcome.EXPIRED]
    assert await outcomes(redis_counters, [settled(held, 3)]) == [Outcome.EXPIRED]
    assert await counts(redis_counters, held) == [(10, 0)]


async def test_what_can_not_be_read_is_set_aside_and_the_others_expire(redis_counters, redis, caplog):
    broken, held = reservation(10, ttl_s=1), reservation(10, ttl_s=2)
    for each in (broken, held):
        await redis_counters.reserve(each)
    await redis.hset(await key_of(redis, broken), "body", '{"id": 7}')
    now = NOW + timedelta(seconds=3)
    assert await redis_counters.overdue(now, 10) == [held]
    assert "can't be read" in caplog.text
    assert await redis_counters.overdue(now, 1) == [held]  # the broken one is not in the way
    assert await counts(redis_counters, held) == [(0, 20)]


async def test_a_reservation_that_is_forgotten_leaves_the_list_of_open_ones(redis_counters, redis):
    held = reservation(10, ttl_s=1)
    await redis_counters.reserve(held)
    await redis.delete(await key_of(redis, held))
    assert await redis_counters.overdue(NOW + timedelta(seconds=2), 10) == []
    assert await redis.keys("tw:*:open") == []


async def test_a_request_costs_one_round_trip(redis_counters, redis):
    before = await _commands(redis)
    for _ in range(10):
        await redis_counters.reserve(reservation(1))
    after = await _commands(redis)
    new = {name: n - before.get(name, 0) for name, n in after.items() if name in OF_CLIENTS}
    assert {name: n for name, n in new.items() if n} == {"evalsha": 10, "info": 1}  # the test's own


async def test_to_be_seen_costs_one_round_trip_and_few_commands(redis_counters, redis):
    for n in range(100):
        await redis_counters.seen(f"r{n}")
    before = await _commands(redis)
    for _ in range(10):
        assert len(await redis_counters.seen("r1")) == 100
    after = await _commands(redis)
    new = {name: n - before.get(name, 0) for name, n in after.items()}
    assert new.pop("zadd") >= 10  # more where half a second passed in between
    calls = {"evalsha": 10, "zrangebyscore": 10, "expire": 10, "time": 10}
    assert {name: n for name, n in new.items() if n} == calls | {"info": 1}  # the test's own


async def test_what_one_left_open_is_found_in_small_steps_and_only_its_own_travels(redis_counters, redis):
    made = [reservation(1, limit=10**6, replica="one" if n == 700 else f"r{n}") for n in range(1500)]
    await asyncio.gather(*map(redis_counters.reserve, made))
    await redis.config_resetstat()
    assert await redis_counters.opened_by("one") == [made[700]]
    stats = await redis.info("commandstats")
    assert stats["cmdstat_zscan"]["calls"] < 3 * PARTITIONS
    assert 15 <= stats["cmdstat_evalsha"]["calls"] < 4 * PARTITIONS
    sent = (await redis.info("stats"))["total_net_output_bytes"]
    assert sent < 1500 * 200  # ids and deadlines; a body has more than that


# What a script does is counted as well: these it does not call.
OF_CLIENTS = ("evalsha", "eval", "script|load", "info", "hmset", "get", "ping", "multi", "exec", "time")


async def _commands(redis):
    stats = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


# ---------------------------------------------------------------- faults


async def _fault(call):
    with pytest.raises(StoreError) as caught:
        await call
    return caught.value


def _adopting(url):
    """A client that registered before its server went away."""
    counters = RedisCounters(RedisOptions(url))
    counters._adopted = dict.fromkeys(range(PARTITIONS), "e")
    return counters


async def test_a_server_that_is_not_there_is_a_transient_fault_and_a_fast_one():
    (port,) = free_ports(1)
    counters = _adopting(f"redis://{HOST}:{port}/0")
    held = reservation()
    start = time.monotonic()
    for call in (
        counters.reserve(held),
        counters.renew([held]),
        counters.close([settled(held, 1)]),
        counters.overdue(NOW, 10),
        counters.read("acme", held.buckets),
        counters.epochs(),
        counters.waiting(0, 1),
        counters.backlog(),
        counters.written([Receipt(ACME, "1-1/r")]),
        counters.ping(),
    ):
        assert (await _fault(call)).transient
    assert time.monotonic() - start < 8  # each would take a second where it waited
    await counters.aclose()


async def test_a_wrong_type_is_no_transient_fault_however_the_call_is_sent(redis_counters, redis):
    held = reservation()
    await redis_counters.reserve(held)
    await redis.delete(await open_key(redis))
    await redis.set(await open_key(redis), "x")
    assert not (await _fault(redis_counters.reserve(reservation()))).transient
    assert not (await _fault(redis_counters.renew([held]))).transient
    assert not (await _fault(redis_counters.close([settled(held, 1)]))).transient
    assert not (await _fault(redis_counters.overdue(NOW, 10))).transient


async def test_a_bad_argument_is_no_transient_fault(redis_counters):
    held = reservation()
    await redis_counters.reserve(held)
    fault = await _fault(redis_counters.close([settled(held, "many")]))
    assert not fault.transient
    assert "tw:{" not in str(fault)  # no key: it holds names
    assert await counts(redis_counters, held) == [(0, 10)]


async def test_a_server_out_of_memory_takes_nothing_new_and_ends_what_there_is(redis_counters, redis):
    held, other = reservation(), reservation(5)
    for each in (held, other):
        await redis_counters.reserve(each)
    closings = [replace(settled(each, 1), entry=replace(entry(1), id=each.id)) for each in (held, other)]
    try:
        await redis.config_set("maxmemory", 1)
        fault = await _fault(redis_counters.reserve(reservation()))
        assert fault.transient
        assert not isinstance(fault, UnreadyError)
        await redis_counters.renew([replace(other, cost=Cost(10, 10))])
        assert await counts(redis_counters, held) == [(0, 30)]
        receipts = [closed.receipt for closed in await redis_counters.close(closings)]
        assert await counts(redis_counters, held) == [(2, 0)]
        assert [each.receipt for each in await redis_counters.waiting(0, 10)] == receipts
        assert set(await redis_counters.seen("r")) == {"r"}
        assert await redis_counters.forget_replica("r", older_than_s=0)
        assert await redis_counters.opened_by("") == []
        await redis_counters.written(receipts[:1])
        await redis_counters.set_aside(None, receipts[1], "no")
        assert await redis_counters.waiting(0, 10) == []
        assert (await redis_counters.backlog()).aside == 1
    finally:
        await redis.config_set("maxmemory", 0)
    assert isinstance(await redis_counters.reserve(reservation()), Admitted)


async def test_a_server_out_of_memory_can_be_rebuilt(redis_counters, redis):
    await redis_counters.reserve(reservation())
    held = reservation()
    await redis.hset(f"tw:{{{ACME}}}:epoch", "run", "another")
    try:
        await redis.config_set("maxmemory", 1)
        epoch = (await redis_counters.epochs())[ACME]
        await redis_counters.restore(epoch, [held])
        await redis_counters.register(epoch, "r")
        await redis_counters.install(epoch, [Used("acme", held.buckets[0].key, held.buckets[0].interval.end, 7)])
        await redis_counters.complete(epoch)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await counts(redis_counters, held) == [(7, 10)]


async def test_while_too_much_waits_for_the_ledger_nothing_new_is_held_and_what_is_held_can_end(redis_part, redis):
    counters = patient(redis_part.url, max_waiting=2)
    await make_ready(counters)
    made = [reservation(1) for _ in range(3)]
    for held in made:
        await counters.reserve(held)
    closed = await counters.close([replace(settled(held, 1), entry=entry(1)) for held in made[:2]])
    fault = await _fault(counters.reserve(reservation(1)))
    assert fault.transient
    assert not isinstance(fault, UnreadyError)
    assert "wait for the ledger" in str(fault)
    assert isinstance(await counters.reserve(made[2]), Admitted)  # it is held already
    closed += await counters.close([replace(settled(made[2], 1), entry=entry(1))])
    await counters.written([each.receipt for each in closed[:2]])
    assert isinstance(await counters.reserve(reservation(1)), Admitted)
    await counters.aclose()


async def test_missing_rights_or_a_wrong_password_are_transient_faults_for_somebody_mends_them(redis, redis_part):
    await redis.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+ping")
    address = redis_part.url.removeprefix("redis://")
    for user in ("weak:pw", "weak:wrong"):
        counters = _adopting(f"redis://{user}@{address}")
        assert (await _fault(counters.reserve(reservation()))).transient
        assert (await _fault(counters.close([settled(reservation(), 1)]))).transient
        await counters.aclose()
    await redis.execute_command("ACL", "DELUSER", "weak")


@contextmanager
def _hung(part):
    if part.process is None:
        pytest.skip("a server by its URL can't be stopped")
    os.kill(part.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(part.process.pid, signal.SIGCONT)


async def test_calls_given_up_on_a_hung_server_take_no_connection_with_them(redis, redis_part):
    counters = RedisCounters(RedisOptions(redis_part.url))
    await make_ready(counters)
    made = [reservation(1, limit=1000) for _ in range(40)]
    await counters.reserve(made[0])

    async def within_100_ms(held):
        async with asyncio.timeout(0.1):
            await counters.reserve(held)

    for _ in range(8):  # all are cancelled at the same moment as connections become free
        with _hung(redis_part):
            start = time.monotonic()
            results = await asyncio.gather(*map(within_100_ms, made), return_exceptions=True)
            assert all(isinstance(r, TimeoutError | StoreError) for r in results)
            assert time.monotonic() - start < 8
    # Whatever arrived late is released, and what arrives later still is not opened.
    await counters.close([released(held) for held in made])
    assert await counts(counters, made[0]) == [(0, 0)]
    assert isinstance(await counters.reserve(reservation(1)), Admitted)
    assert [type(r) for r in await asyncio.gather(*(counters.reserve(reservation(1)) for _ in range(40)))] == (
        [Admitted] * 40
    )
    await counters.aclose()


async def test_a_hung_server_is_a_transient_fault_in_bounded_time(redis_part):
    counters = RedisCounters(RedisOptions(redis_part.url, command_timeout_s=0.1, batch_timeout_s=0.2))
    held = reservation()
    await make_ready(counters)
    with _hung(redis_part):
        start = time.monotonic()
        with pytest.raises(TimeoutError):  # whoever asks bounds it
            await asyncio.wait_for(counters.reserve(held), 0.1)
        assert (await _fault(counters.ping(3))).transient
        assert (await _fault(counters.renew([held]))).transient
        assert (await _fault(counters.close([released(held)]))).transient
        assert time.monotonic() - start < 30
    await counters.aclose()


async def test_connections_that_the_server_dropped_are_replaced(redis_counters, redis):
    held = reservation()
    await redis_counters.reserve(held)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not_connected(redis_counters))  # a reserve that is on its way then is not sent again
    assert isinstance(await redis_counters.reserve(reservation()), Admitted)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await outcomes(redis_counters, [settled(held, 1)]) == [Outcome.SETTLED]


# ---------------------------------------------------------------- configuration


async def test_a_server_that_may_evict_or_keeps_nothing_is_warned_of(redis_counters, redis):
    assert [text.split(":")[0] for text in await redis_counters.warnings()] == [
        "Redis writes no append-only file and has no replica"
    ]
    try:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.config_set("appendonly", "yes")
        (warning,) = await redis_counters.warnings()
        assert "allkeys-lru" in warning
        assert "noeviction" in warning
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("appendonly", "no")


async def test_the_rights_that_the_documentation_names_are_enough(redis, redis_part):
    (rule,) = re.findall(r"ACL SETUSER tokenweir (.*?)```", OPERATORS.read_text(), re.DOTALL)
    await redis.execute_command("ACL", "SETUSER", "tokenweir", *rule.split())
    counters = patient(redis_part.url.replace("redis://", "redis://tokenweir:secret@"))
    try:
        await make_ready(counters)
        held, other, local = reservation(10), reservation(5), reservation(1, local=True)
        for each in (held, other):
            assert isinstance(await counters.reserve(each), Admitted)
        await counters.renew([held, local])
        closings = [
            replace(settled(each, 1), entry=replace(entry(1), id=each.id)) for each in (held, other, local)
        ]
        closed = await counters.close(closings, (80,))
        await counters.close([released(reservation())])
        assert len(await counters.waiting(0, 10)) == 3
        await counters.written([closed[0].receipt])
        await counters.set_aside(None, closed[1].receipt, "no")
        assert (await counters.backlog()).waiting == len(await counters.aside(9)) == 1
        assert await counts(counters, held) == [(3, 0)]
        await counters.reserve(reservation(3))
        await redis.hset(f"tw:{{{ACME}}}:epoch", "run", "before")
        epoch = (await counters.epochs())[ACME]
        assert len(await counters.left_open(epoch)) == 1
        await counters.restore(epoch, [held])
        await counters.forget(epoch, [(held, Outcome.SETTLED)])
        assert await counters.still_open(epoch) == []
        await counters.register(epoch, "r")
        assert await counters.registered(epoch) == {"r"}
        await counters.install(epoch, [Used("acme", held.buckets[0].key, held.buckets[0].interval.end, 1)])
        await counters.complete(epoch)
        await counters._sweeper._task
        assert len([key for key in await keys_of(redis) if f"{{{ACME}}}" in key and epoch.id not in key]) == 0
        assert await counters.overdue(NOW, 10) == []
        assert await counters.warnings()
        await counters.time()
        await counters.ping()
        mine = reservation(1, replica="me")
        await counters.reserve(mine)
        assert await counters.opened_by("me") == [mine]
        await redis.zadd("tw:{0}:seen", {"gone": 1, "me": 2})
        assert set(await counters.seen("me")) == {"gone", "me"}  # both were moved: the server was away
        await redis.zadd("tw:{0}:seen", {"gone": 1})
        assert set(await counters.seen("me")) == {"me"}
        assert await counters.forget_replica("me", older_than_s=0)
        assert await counters.note_generation(3) == 3
        assert await counters.counted([each for each in await counters.epochs() if each.ready])
    finally:
        await counters.aclose()
        await redis.execute_command("ACL", "DELUSER", "tokenweir")


# ---------------------------------------------------------------- the journal


async def waiting_entry(counters):
    held = reservation(1)
    await counters.reserve(held)
    closing = replace(settled(held, 1), entry=replace(entry(1), id=held.id))
    (closed,) = await counters.close([closing])
    return closing.entry, closed.receipt


async def test_an_entry_whose_id_was_given_again_is_not_taken_for_the_one_that_had_it_before(
    redis_counters, redis
):
    line, receipt = await waiting_entry(redis_counters)
    earlier = Receipt(receipt.partition, receipt.id.partition("/")[0] + "/another")
    await redis_counters.written([earlier])
    await redis_counters.set_aside(None, earlier, "no")
    assert [each.entry for each in await redis_counters.waiting(0, 10)] == [line]
    assert await redis_counters.aside(10) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x", "entry": "{"},
        {"id": "x", "entry": '{"id": 3}'},
        {"a": b"\xff\xfe"},
        {"id": "x", "entry": b"\xff"},
    ],
)
async def test_what_can_not_be_read_waits_as_such_until_it_is_set_aside(redis_counters, redis, fields):
    line, _ = await waiting_entry(redis_counters)
    await redis.xadd(f"tw:{{{ACME}}}:ledger", fields)
    first, broken = await redis_counters.waiting(0, 10)
    assert (first.entry, broken.entry) == (line, None)
    await redis_counters.set_aside(broken.entry, broken.receipt, "unreadable")
    assert [each.entry for each in await redis_counters.waiting(0, 10)] == [line]
    (aside,) = await redis_counters.aside(10)
    assert aside.reason == "unreadable"
    assert aside.text


async def test_the_age_of_an_entry_is_by_the_clock_of_its_server(redis_counters, redis):
    seconds, _ = await redis.time()
    await redis.xadd(f"tw:{{{ACME}}}:ledger", {"id": "x", "entry": "{"}, id=f"{(seconds - 100) * 1000}-0")
    assert len(await redis_counters.waiting(90, 10)) == 1
    assert await redis_counters.waiting(110, 10) == []
    assert 100 <= (await redis_counters.backlog()).oldest_s < 110


async def test_the_end_of_a_local_reservation_is_remembered_as_long_as_its_buckets(redis_counters, redis):
    held = reservation(5, local=True)
    await redis_counters.close([settled(held, 5)])
    assert await redis.expiretime(await key_of(redis, held)) == held.buckets[0].interval.end + DAY_S
