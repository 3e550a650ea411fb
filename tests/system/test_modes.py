"""Soft limits and shadows, each beside what it is not: what is admitted, and what is only counted."""

import asyncio

import pytest

from .callers import total
from .marks import SYSTEM
from .test_denied import error_of
from .upstreams import ANSWER, answer_plainly
from .waiting import NEVER_S

pytestmark = SYSTEM

USED = ANSWER["usage"]["total_tokens"]


class Gate:
    """An upstream that answers nobody until it is opened."""

    def __init__(self):
        self.arrived = asyncio.Semaphore(0)
        self.opened = asyncio.Event()

    async def script(self, received, reply):
        self.arrived.release()
        await self.opened.wait()
        await answer_plainly(received, reply)


async def test_soft_admits_while_something_is_left_and_overshoots_by_what_was_in_flight(scripted_caller, upstream):
    await scripted_caller.bind(mode="soft", sa_limit=10)
    upstream.script = (gate := Gate()).script
    # Each would need far more than there is.
    asked = [asyncio.create_task(scripted_caller.post(max_tokens=5000)) for _ in range(5)]
    async with asyncio.timeout(NEVER_S):
        for _ in asked:
            await gate.arrived.acquire()
    row = await scripted_caller.row()
    assert (row["mode"], row["used"], row["remaining"]) == ("soft", 0, 0)
    assert row["held"] > 5 * 5000
    gate.opened.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert await scripted_caller.settled() == 5 * USED > 10
    error = error_of(await scripted_caller.post(max_tokens=1), 429)
    assert f"Limit 10 tokens per day: {5 * USED} used" in error["message"]
    assert len(upstream.received) == 5


async def test_soft_denies_nobody_before_the_limit_and_everybody_after_it(scripted_caller, upstream):
    await scripted_caller.bind(mode="soft", sa_limit=2 * USED)
    statuses = []
    for _ in range(4):
        statuses.append((await scripted_caller.post(max_tokens=900)).status_code)
        await scripted_caller.settled()
    assert statuses == [200, 200, 429, 429]
    assert await scripted_caller.settled() == 2 * USED
    assert len(upstream.received) == 2


async def test_modes_may_differ_from_limit_to_limit(scripted_caller):
    hour = {"scope": "service_account", "window": "hour", "amount": 10, "mode": "soft"}
    await scripted_caller.bind(hour, sa_limit=500)
    assert (await scripted_caller.post(max_tokens=300)).status_code == 200
    error = error_of(await scripted_caller.post(max_tokens=600), 429)
    assert "Limit 500 tokens per day" in error["message"]


async def shadow_denied(stack):
    return await total(stack, "tokenweir_shadow_denied_total")


@pytest.mark.parametrize("shadows", ["soft", "reserve", "strict"])
async def test_a_shadow_denies_nobody_and_counts_whom_it_would_have_denied(scripted_caller, upstream, shadows):
    before = await shadow_denied(scripted_caller.stack)
    await scripted_caller.bind(mode="shadow", shadows=shadows, sa_limit=1)
    statuses = []
    for _ in range(3):
        answer = await scripted_caller.post(max_tokens=30)
        statuses.append(answer.status_code)
        used = await scripted_caller.settled()
    assert statuses == [200] * 3
    assert used == 3 * USED
    # A soft one lets the first pass: nothing was used yet.
    denied = 2 if shadows == "soft" else 3
    assert await shadow_denied(scripted_caller.stack) - before == denied
    entries = await scripted_caller.entries(3)
    marked = [entry["shadow"] for entry in entries if "shadow" in entry]
    assert marked == [["service_account:day~shadow"]] * denied
    assert {entry["state"] for entry in entries} == {"settled"}
    # It is the operator's business: no client is told, and nothing is written into requests.
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert (await scripted_caller.quota())["limits"] == []
    assert {received.json["max_tokens"] for received in upstream.received} == {30}


async def test_a_shadow_beside_a_limit_leaves_it_as_it_is(scripted_caller, upstream):
    before = await shadow_denied(scripted_caller.stack)
    tried = {"scope": "service_account", "window": "day", "amount": 60, "mode": "shadow"}
    await scripted_caller.bind(tried, sa_limit=90)
    statuses = [(await scripted_caller.post(max_tokens=bound)).status_code for bound in (10, 50, 900)]
    assert statuses == [200, 200, 429]
    assert await shadow_denied(scripted_caller.stack) - before == 1
    within, beyond, denied = await scripted_caller.entries(3)
    assert "shadow" not in within
    assert beyond["shadow"] == ["service_account:day~shadow"]
    assert denied["state"] == "denied"
    (row,) = (await scripted_caller.quota())["limits"]
    assert (row["limit"], row["used"]) == (90, 2 * USED)
