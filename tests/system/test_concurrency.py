"""Many clients at once: a limit is never overshot, and is used up."""

import asyncio

import pytest

from .callers import CHAT, chat
from .marks import SYSTEM

pytestmark = SYSTEM

CLIENTS = 64
MOST_ANSWERS = 200  # of one client; by then any limit here must have been hit
REQUEST = {"max_tokens": 16}


async def ask_until_denied(callers):
    """Each client asks until it is denied; returns how often each was answered."""

    async def one(caller):
        answered = 0
        async with caller.http(timeout=30) as client:
            while answered < MOST_ANSWERS:
                answer = await client.post(CHAT, json=chat(**REQUEST, stream=bool(answered % 2)))
                if answer.status_code != 200:
                    assert answer.status_code == 429
                    return answered
                answered += 1
        raise AssertionError("the limit was not hit")

    return await asyncio.gather(*(one(caller) for caller in callers))


@pytest.mark.parametrize("limits", [{"sa_limit": 3000}, {"sa_limit": 9000, "ip_limit": 3000}])
async def test_concurrent_clients_use_up_their_limit_and_never_overshoot_it(caller, limits):
    await caller.limit(**limits)
    answered = await ask_until_denied([caller] * CLIENTS)
    await caller.settled()
    # With nothing in flight any more, the rest is used up to less than one request's cost.
    answered += await ask_until_denied([caller])
    used = await caller.settled()
    entries = await caller.entries(sum(answered) + CLIENTS + 1)
    admitted = [entry for entry in entries if entry["state"] != "denied"]
    assert len(admitted) == sum(answered)
    assert {entry["state"] for entry in admitted} == {"settled"}
    assert sum(entry["charge"] for entry in admitted) == used
    assert 3000 - max(entry["held"] for entry in admitted) < used <= 3000


async def test_concurrent_clients_of_two_processors_share_one_limit(beside, caller):
    async with beside(processors=2) as other:
        here, there = caller, caller.on(other)
        await here.limit(sa_limit=2000)
        await there.limit(sa_limit=2000)
        answered = await ask_until_denied([here] * 16 + [there] * 32)
        await here.settled()
        answered += await ask_until_denied([there])
        used = await here.settled()
        entries = await here.entries(sum(answered) + 49)
    assert sum(entry["charge"] for entry in entries) == used <= 2000
    assert used > 2000 - max(entry["held"] for entry in entries)
