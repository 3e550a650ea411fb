"""A crowd that asks while faults happen, and the books when they are over."""

import asyncio

from .books import LEFT_BEHIND_S
from .crowd import Crowd
from .faults import at_once
from .plant import PlantOptions
from .sizes import size

COST = 100
# A replica and a Redis that keeps nothing, killed together, lose what was only there.
KEEPS = "aof"
# Short, so that what a dead replica held is over soon.
TTL_S = 4.0
THINK_S = size("THINK_S", full=0.05, short=0.2)  # of a client between two requests, at the most
# After the last fault: time to live, looks for overdue ones, a rebuild that waits for a dead replica.
QUIET_S = size("QUIET_S", full=45.0, short=90.0)
SETTINGS = {
    "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
    "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.5",
    "TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.3",
    "TOKENWEIR_MONGO__TIMEOUT_S": "2",
}


UNDER_SIEGE = PlantOptions(proxied=True, settings=SETTINGS, keeps=KEEPS)


async def besiege(plant, rng, faults, *, limit, clients=4, lasting_s=0.0):
    """The crowd asks until the faults are over; then all is let come to rest. The crowd, and its books."""
    caller = await plant.tenant(limit)
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller), think_s=THINK_S)
    async with asyncio.TaskGroup() as run:
        run.create_task(crowd.ask(10**9, lambda _: COST, clients=clients))
        await asyncio.sleep(rng.uniform(0.2, 0.6))
        await at_once(plant, rng, *faults)
        await asyncio.sleep(lasting_s)
        crowd.over = True
    await plant.serving(caller, within_s=QUIET_S)
    await plant.books.towards(caller, 0, within_s=QUIET_S)
    return crowd, await plant.books.balance(caller, crowd.upstream, exact=False, within_s=LEFT_BEHIND_S)
