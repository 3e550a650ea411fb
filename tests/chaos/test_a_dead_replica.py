"""R5: a replica that is killed loses nothing: what it held is charged, soon, and never below what was generated."""

import asyncio
import contextlib
import time

from tests.system.waiting import until

from .books import LEFT_BEHIND_S, derived_from_the_ledger
from .clients import BrokenError
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .sizes import IN_FLIGHT, SLACK, TTL_S

pytestmark = [*CHAOS, on("mended")]

BOUND_S = 30.0
OUTPUT = 60


async def test_what_a_killed_replica_had_in_flight_is_charged_once_and_in_time(plant, rng, figure):
    caller = await plant.tenant(10**9)
    crowd = Crowd(plant.doors[:1], caller, rng, await plant.prompt_cost(caller))
    # Half of what is in flight stands at some byte of its answer, the others come and go while it is killed.
    standing = await asyncio.gather(*(crowd.stand(crowd.doors[0], OUTPUT) for _ in range(IN_FLIGHT // 2)))
    coming = asyncio.create_task(_come_and_go(crowd))
    await until(lambda: crowd.outcomes["admitted"] > rng.randrange(20, 100), "they come and go")
    victim = plant.replicas[0]
    await victim.kill()
    killed_at = time.monotonic()
    held = await plant.doors[1].quota(caller)
    await coming
    survivors = type(plant.books)(plant.database, plant.doors[1:])
    await survivors.nothing_held(caller, within_s=(TTL_S + BOUND_S) * max(1.0, SLACK / 2))
    took = time.monotonic() - killed_at
    lost = await survivors.recorded(caller, crowd.upstream.generated, within_s=LEFT_BEHIND_S)
    await victim.start()
    balance = await plant.books.balance(caller, crowd.upstream, exact=False, within_s=1.0)
    figure(
        "R5",
        f"kill -9 with {len(standing)} streams open and {crowd.outcomes['admitted']} requests come and gone, "
        f"{held[0]['held']:,} tokens held: none held {took:.1f} s later (time to live {TTL_S:g} s, bound "
        f"{TTL_S + BOUND_S:g} s); charged {balance.ledger:,} >= generated {balance.upstream:,}; "
        f"{len(lost)} lost, {len(balance.double)} double, {len(balance.wrong)} charged too little",
    )
    assert held[0]["held"] > 0
    assert not lost, lost[:5]
    assert not balance.double
    assert not balance.wrong
    derived_from_the_ledger(balance)


async def test_a_replica_that_hangs_for_longer_than_its_holds_live_charges_once(plant, rng, figure):
    """A blocked event loop, or a machine that sleeps: the others end what it held, and it ends it again."""
    caller = await plant.tenant(10**9)
    crowd = Crowd(plant.doors[:1], caller, rng, await plant.prompt_cost(caller))
    standing = await asyncio.gather(*(crowd.stand(crowd.doors[0], OUTPUT) for _ in range(IN_FLIGHT // 2)))
    victim = plant.replicas[0]
    with victim.paused():
        survivors = type(plant.books)(plant.database, plant.doors[1:])
        await survivors.nothing_held(caller, within_s=(TTL_S + BOUND_S) * max(1.0, SLACK / 2))
    for exchange, rest in standing:
        with contextlib.suppress(BrokenError):
            await exchange.pieces(rest)
    balance = await plant.books.balance(caller, crowd.upstream, exact=False)
    figure(
        "R5",
        f"{len(standing)} streams on a replica that hung for longer than they live: charged {balance.ledger:,} >= "
        f"generated {balance.upstream:,}; {len(balance.lost)} lost, {len(balance.double)} double",
    )
    assert not balance.lost
    assert not balance.double
    assert not balance.wrong
    derived_from_the_ledger(balance)


async def _come_and_go(crowd, clients=8):
    """Requests one after the other until the replica is gone."""

    async def client():
        broken = crowd.outcomes["broken before a verdict"], crowd.outcomes["broken after a verdict"]
        while (crowd.outcomes["broken before a verdict"], crowd.outcomes["broken after a verdict"]) == broken:
            await crowd.one(crowd.doors[0], crowd.prompt + OUTPUT)

    await asyncio.gather(*(client() for _ in range(clients)))
