"""R9: a limit that is changed is in force on every replica within 5 seconds, and the counters stay."""

import asyncio
import time
from datetime import UTC, datetime

from .books import holds_exactly
from .crowd import Crowd
from .marks import CHAOS
from .plants import on
from .sizes import REPLICAS, SLACK, size

pytestmark = [*CHAOS, on("sound")]

EDITS = size("EDITS", full=30, short=4)
WITHIN_S = 5.0


async def test_an_edited_limit_is_in_force_everywhere_within_5_s_and_keeps_its_counter(plant, rng, figure):
    amount = 50_000
    caller = await plant.tenant(amount)
    crowd = Crowd(plant.doors, caller, rng, await plant.prompt_cost(caller))
    negative = Watch(plant, caller)
    watching = asyncio.create_task(negative.run())
    took = []
    for _ in range(EDITS):
        async with asyncio.TaskGroup() as run:
            run.create_task(crowd.ask(60, lambda rng: rng.randint(60, 400), clients=4))
            await asyncio.sleep(rng.uniform(0, 0.3))
            # Raised or lowered, also below what is used by now.
            amount = rng.choice([crowd.upstream.total // 2 + 1, amount * 2, rng.randrange(1, 200_000)])
            took.append(await _edit(plant, caller, amount))
        used = await plant.books.nothing_held(caller)
        assert used == crowd.upstream.total
    watching.cancel()
    balance = await plant.books.balance(caller, crowd.upstream)
    figure(
        "R9",
        f"{EDITS} edits in force on {REPLICAS} replicas after {max(took):.2f} s at the latest; the least remaining "
        f"that {negative.answers:,} answers told: {negative.least}; counters kept: {balance}",
    )
    assert max(took) <= WITHIN_S * SLACK
    assert negative.answers
    assert negative.least >= 0
    holds_exactly(balance)


async def _edit(plant, caller, amount):
    """Writes the limit as an operator would, and returns how long the last replica took to apply it."""
    limit = {"scope": "service_account", "window": "month", "amount": amount, "mode": "reserve"}
    update = {"$set": {"limits": [limit], "updated_at": datetime.now(UTC)}}
    await plant.database["tenantLimitation"].update_one({"tenant_id": caller.tenant}, update)
    started = time.monotonic()

    async def in_force(door):
        while time.monotonic() - started < WITHIN_S * SLACK:
            (row,) = await door.quota(caller)
            if row["limit"] == amount:
                return time.monotonic() - started
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    return max(await asyncio.gather(*(in_force(door) for door in plant.doors)))


class Watch:
    """Asks all the while what is left."""

    def __init__(self, plant, caller):
        self._plant = plant
        self._caller = caller
        self.least = 10**12
        self.answers = 0

    async def run(self):
        while True:
            for door in self._plant.doors:
                (row,) = await door.quota(self._caller)
                self.least = min(self.least, row["remaining"])
                self.answers += 1
            await asyncio.sleep(0.02)
