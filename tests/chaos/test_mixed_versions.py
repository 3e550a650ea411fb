"""Version 0.1 and this one run at once on the same stores, as in an update and on the way back."""

import asyncio
import contextlib
import re
from collections import Counter

import pytest

from tests.changing import replace
from tests.system.waiting import until

from .asking import client_errors, shorts, streams
from .books import LEFT_BEHIND_S, Books, Count, counted_exactly, holds_exactly, never_too_little
from .clients import chat
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .sizes import FULL, MIXED_REPLICAS, STREAM_S, size
from .upstream import Upstream
from .versions import (
    both_run,
    check_versions,
    hold_back_migration,
    is_shared,
    leave_one_of_each_day,
    let_migrate,
    run_on,
    served,
    start_as,
)

pytestmark = [*CHAOS, on("mixed")]

LONG = size("MIXED_STREAMS", full=40, short=4)  # open at any moment, of each tenant
SHORT = size("MIXED_CLIENTS", full=4, short=2)  # of each tenant, that ask again and again
FIT = size("MIXED_REQUESTS", full=1_000, short=60)  # in a strict limit that both versions use up
OPEN = 3  # streams at each replica that are open meanwhile
STANDING = size("MIXED_STANDING", full=30, short=6)  # streams open at a replica that is killed
ENDED = 40  # requests that it ends before
VERSIONS = ["0.1", "this"]
PROBES = 1  # `prompt_cost` asks once
PROMPT, OUTPUT, BOUND = 9, 40, 100  # of the tokens that are held, many are given back
COST = 100
# A replica that is gone is deregistered after 15 s, and the migration is looked at every 5 s.
MIGRATED_S = 60.0
REFUSED = re.compile(r"not ready.*(E11000|duplicate key)", re.IGNORECASE)


def rare(test):
    """Leave a test out of the short form, except where all tests are run."""
    return test if FULL else pytest.mark.thorough(test)


async def test_an_update_from_0_1_and_the_way_back_are_seen_by_no_client_and_lose_no_record(
    plant, gateway, rng, figure
):
    await run_on(plant, [plant.former] * MIXED_REPLICAS)
    await hold_back_migration(plant.database)
    callers = [replace(caller, address="127.0.0.1") for caller in await of_one_name(plant)]
    made = attribute(gateway, callers)
    seen, over, statuses, used_up = Counter(), asyncio.Event(), [], []
    async with contextlib.AsyncExitStack() as at_the_end, asyncio.TaskGroup() as clients:
        for caller in callers:
            client = await at_the_end.enter_async_context(gateway.client(caller))
            for _ in range(LONG):
                body = chat(BOUND, stream=True, model=caller.tenant)
                clients.create_task(streams(client, seen, over, rng, body))
            for _ in range(SHORT):
                clients.create_task(shorts(client, seen, over, rng, chat(BOUND, model=caller.tenant)))
        await until(lambda: len(gateway.upstream.generated) > LONG, "streams are open")
        for code in (None, plant.former):
            for replica in plant.replicas:
                statuses.append(await start_as(replica, code))
                await check_versions(plant)
                if both_run(plant):
                    used_up.append(await use_up_a_strict_limit(plant, rng))
                await served(replica, callers[0])
        over.set()
    balances = []
    for caller in callers:
        await plant.books.nothing_held(caller)
        balances.append(await plant.books.balance(caller, made[caller.tenant]))
    days = await plant.books.days(callers[0].account)
    errors = client_errors(seen)
    figure(
        "versions",
        f"{MIXED_REPLICAS} replicas updated from 0.1 and taken back one by one behind Envoy, {seen['stream']} streams "
        f"of {STREAM_S:g} s and {seen['short']} short requests: {errors} client errors {dict(seen) if errors else ''}; "
        f"strict limits used up by both at once: {' / '.join(map(str, used_up))}; "
        f"two tenants of one name: {' / '.join(map(str, balances))}",
    )
    assert not errors, seen
    assert statuses == [0] * (2 * MIXED_REPLICAS)
    assert seen["stream"] >= LONG
    assert len(used_up) == 2 * (MIXED_REPLICAS - 1)
    for balance in balances:
        counted_exactly(balance)
    # In version 0.1, tenants with one account name share a document.
    assert await is_shared(plant.database)
    assert sum(days.values()) == sum(balance.ledger for balance in balances)
    assert len(days) == 1


async def test_counters_that_are_lost_are_rebuilt_by_both_versions(plant, rng, figure):
    await run_on(plant, [plant.former] + [None] * (MIXED_REPLICAS - 1))
    limit = FIT * COST
    caller = await plant.tenant(limit, mode="strict")
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller), think_s=0.02)
    standing = [await crowd.stand(door, COST - crowd.prompt) for door in plant.doors for _ in range(OPEN)]
    held = await held_for(plant, caller)
    await crowd.ask(FIT // 2, lambda _: COST, clients=2)
    await plant.books.recorded(caller, set(crowd.upstream.generated) - {exchange.id for exchange, _ in standing})
    await plant.redis.kill()
    await plant.redis.start()  # it has kept nothing
    back = await plant.serving(caller)
    rebuilt = set(await plant.books.towards(caller, held))
    for exchange, rest in standing:
        await exchange.pieces(rest)
    await plant.books.nothing_held(caller)
    await crowd.until_denied(COST)
    await plant.books.nothing_held(caller)
    balance = await plant.books.balance(caller, crowd.upstream)
    figure(
        "versions",
        f"Redis lost under both versions: rebuilt {_told(rebuilt)} after {back:.1f} s; {crowd.upstream.total:,} of "
        f"{limit:,} tokens admitted (strict); {balance}",
    )
    assert rebuilt == {Count(FIT // 2 * COST, held)}
    assert limit - COST < crowd.upstream.total <= limit
    holds_exactly(balance)


@rare
@pytest.mark.parametrize("leaves", VERSIONS)
async def test_the_spool_that_one_version_leaves_is_replayed_by_the_other(plant, rng, figure, leaves):
    """It admits without Redis and stops before Redis is back; the other version starts in its place."""
    its, others = (plant.former, None) if leaves == "0.1" else (None, plant.former)
    await run_on(plant, [its] + [others] * (MIXED_REPLICAS - 1))
    caller = await plant.tenant(10**6, on_store_failure="allow")
    crowd = Crowd(plant.doors[:1], caller, rng, await plant.prompt_cost(caller))
    await plant.redis.kill()
    await crowd.ask(STANDING, lambda _: COST, clients=2)
    leaving = plant.replicas[0]
    status = await leaving.stop()
    leaving.code = others
    starts = asyncio.create_task(leaving.start())  # it is ready when Redis is
    await plant.redis.start()
    await starts
    await check_versions(plant)
    await plant.serving(caller)
    balance = await plant.books.balance(caller, crowd.upstream)
    figure(
        "versions",
        f"{crowd.outcomes['admitted']} requests admitted without Redis by {_name(leaves)}, spooled, and replayed "
        f"by the other: {balance}",
    )
    assert status == 0
    assert len(await plant.books.entries(caller)) == STANDING + PROBES
    await plant.books.nothing_held(caller)
    holds_exactly(await plant.books.balance(caller, crowd.upstream))


@rare
async def test_after_the_migration_version_0_1_starts_once_no_day_has_two_tenants(plant, rng, figure):
    await run_on(plant, [None] * MIXED_REPLICAS)
    callers = await of_one_name(plant)
    crowds = [Crowd(plant.doors[1:], caller, rng, await plant.prompt_cost(caller)) for caller in callers]
    for crowd in crowds:
        await crowd.ask(20, lambda _: COST, clients=2)
    await let_migrate(plant.database)
    await until(lambda: _is_migrated(plant), "daily usage is kept by tenant", within_s=MIGRATED_S)
    split = await _days(plant, crowds)
    returning = plant.replicas[0]
    assert await returning.stop() == 0
    returning.code = plant.former
    async with asyncio.TaskGroup() as run:
        for crowd in crowds:
            run.create_task(crowd.ask(10**9, lambda _: COST, clients=1))
        starts = run.create_task(returning.start())
        await until(lambda: REFUSED.search(returning.logs), "version 0.1 refuses two documents of one day")
        await hold_back_migration(plant.database)
        await leave_one_of_each_day(plant.database)
        await starts
        await check_versions(plant)
        for crowd in crowds * 5:
            assert await crowd.one(plant.doors[0], COST)
        for crowd in crowds:
            crowd.over = True
    shared = await is_shared(plant.database)
    await run_on(plant, [None] * MIXED_REPLICAS)
    await let_migrate(plant.database)
    await until(lambda: _is_migrated(plant), "daily usage is kept by tenant again", within_s=MIGRATED_S)
    balances = []
    for crowd in crowds:
        await plant.books.nothing_held(crowd.caller)
        balances.append(await plant.books.balance(crowd.caller, crowd.upstream))
    figure(
        "versions",
        f"back to 0.1 after the migration, with two tenants of one name: {' / '.join(map(str, balances))}; "
        f"{sum(crowd.outcomes['unavailable'] for crowd in crowds)} not served",
    )
    await hold_back_migration(plant.database)  # so that version 0.1 can start in other tests
    await leave_one_of_each_day(plant.database)
    assert split
    assert shared
    for crowd, balance in zip(crowds, balances, strict=True):
        assert set(crowd.outcomes) <= {"admitted"}
        holds_exactly(balance)


@rare
@pytest.mark.parametrize("dies", VERSIONS if FULL else VERSIONS[:1])
async def test_what_a_killed_replica_of_one_version_left_is_booked_once_by_the_other(plant, rng, figure, dies):
    """It is killed while MongoDB is away: what it has ended is in the journal only, and what it holds in Redis."""
    its, others = (plant.former, None) if dies == "0.1" else (None, plant.former)
    await run_on(plant, [its] + [others] * (MIXED_REPLICAS - 1))
    caller = await plant.tenant(10**9)
    prompt = await plant.prompt_cost(caller)
    victims, living = (
        Crowd(doors, caller, rng, prompt, think_s=0.05) for doors in (plant.doors[:1], plant.doors[1:])
    )
    standing = [await victims.stand(plant.doors[0], COST) for _ in range(STANDING)]
    continued = [await living.stand(plant.doors[1], COST) for _ in range(STANDING)]
    held = {exchange.id for exchange, _ in standing}
    await plant.database.client.admin.command("fsync")  # see `planted`
    await plant.mongo.kill()
    async with asyncio.TaskGroup() as run:
        for crowd in (victims, living):
            run.create_task(crowd.ask(10**9, lambda _: COST, clients=3))
        await until(lambda: victims.decided > STANDING + ENDED, "requests end without MongoDB")
        await plant.replicas[0].kill()
        victims.over = living.over = True
    for exchange, rest in continued:
        await exchange.pieces(rest)
    await plant.mongo.start()
    survivors = Books(plant.database, plant.doors[1:])
    await survivors.nothing_held(caller, within_s=LEFT_BEHIND_S)
    made = Upstream(victims.upstream.generated + living.upstream.generated)
    await survivors.recorded(caller, made.generated, within_s=LEFT_BEHIND_S)
    await plant.replicas[0].start()
    balance = await plant.books.balance(caller, made, exact=False, within_s=1.0)
    entries = {entry["request_id"]: entry for entry in await plant.books.entries(caller)}
    ends = {
        of: Counter(entries[i]["state"] for i in ids if i in entries) for of, ids in _kinds(victims, held).items()
    }
    inexact = [
        i for i, n in made.generated.items() if i not in held and i in entries and entries[i]["charge"] != n
    ]
    figure(
        "versions",
        f"kill -9 of a replica of {_name(dies)}: {len(held)} streams that it "
        f"held {dict(ends['held'])} by the other version, and of the requests that it ended while MongoDB was away "
        f"{dict(ends['ended'])}; {balance}",
    )
    assert ends["held"] == {"expired": STANDING}
    assert ends["ended"]["settled"] > 0
    assert not inexact, inexact[:5]
    never_too_little(balance)


async def of_one_name(plant):
    """Two tenants, each with a service account of the same name."""
    first = await plant.tenant(10**9)
    return first, await plant.tenant(10**9, account=first.account)


def attribute(gateway, callers):
    """Have the upstream count apart what it generates for each tenant: the model is the tenant's name."""
    made = {caller.tenant: Upstream() for caller in callers}
    gateway.upstream.generated.clear()
    gateway.generates(prompt=PROMPT, output=OUTPUT, stream_s=STREAM_S)
    answers = gateway.behind.script

    async def script(received, reply):
        (request_id,) = received.header("x-request-id")
        made[received.json["model"]].generated[request_id] += PROMPT + OUTPUT
        await answers(received, reply)

    gateway.behind.script = script
    return made


async def use_up_a_strict_limit(plant, rng):
    """Have replicas of both versions admit on one strict limit until it is used up; say how.

    Some streams stay open at each replica meanwhile. What these give back is used up afterwards.
    """
    limit = FIT * COST
    caller = await plant.tenant(limit, mode="strict")
    prompt = await plant.prompt_cost(caller)
    made = Upstream()
    crowds = [
        Crowd([door], caller, rng, prompt, made, kinds=("json", "sse"), think_s=0.02) for door in plant.doors
    ]
    standing = [await crowd.stand(crowd.doors[0], COST - prompt) for crowd in crowds for _ in range(OPEN)]
    held = await held_for(plant, caller)
    await asyncio.gather(*(crowd.ask(FIT, lambda _: COST, clients=4) for crowd in crowds))
    full = set(await plant.books.towards(caller, held))
    for exchange, rest in standing:
        await exchange.pieces(rest)
    await plant.books.nothing_held(caller)
    for crowd in crowds:
        await crowd.until_denied(COST)
    await plant.books.nothing_held(caller)
    balance = await plant.books.balance(caller, made)
    admitted = [crowd.outcomes["admitted"] for crowd in crowds]
    assert len(full) == 1, full
    (count,) = full
    assert limit - COST < count.used + held <= limit
    assert limit - COST < made.total <= limit
    assert all(each > OPEN for each in admitted), admitted
    assert all(set(crowd.outcomes) <= {"admitted", "denied"} for crowd in crowds), crowds
    holds_exactly(balance)
    return f"{made.total:,} of {limit:,} tokens, {' + '.join(map(str, admitted))} requests admitted"


async def held_for(plant, caller):
    """Return the tokens that are held for a caller, whose requests are all open."""
    (row,) = await plant.doors[0].quota(caller)
    return row["held"]


async def _is_migrated(plant):
    state = await plant.database["token_migrations"].find_one({})
    return bool(state and state.get("done")) and not await is_shared(plant.database)


async def _days(plant, crowds):
    """Whether each tenant's daily usage is what was generated for it."""
    return await plant.books.days(crowds[0].caller.account) == {
        crowd.caller.tenant: crowd.upstream.total for crowd in crowds
    }


def _name(version):
    return "version 0.1" if version == "0.1" else "this version"


def _kinds(crowd, held):
    return {"held": held, "ended": set(crowd.upstream.generated) - held}


def _told(counts):
    return " / ".join(f"{count.used:,} used + {count.held:,} held" if count else "nothing" for count in counts)
