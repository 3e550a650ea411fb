"""Many clients at once: a limit is never overshot, and is used up."""

import asyncio

import pytest

from tests.sizes import sampled

from .callers import CHAT, chat
from .marks import SYSTEM

pytestmark = SYSTEM

CLIENTS = 64
MOST_ANSWERS = 200  # of one client; by then any limit here must have been hit
REQUEST = {"max_tokens": 16}
LIMIT = 2000
LIMITS = [{"sa_limit": 9000, "ip_limit": LIMIT}, {"sa_limit": LIMIT}]


async def ask_until_denied(caller, clients):
    """Each client asks until it is denied; returns how often each was answered."""

    async def one(client):
        answered = 0
        while answered < MOST_ANSWERS:
            answer = await client.post(CHAT, json=chat(**REQUEST, stream=bool(answered % 2)))
            if answer.status_code != 200:
                assert answer.status_code == 429
                return answered
            answered += 1
        raise AssertionError("the limit was not hit")

    async with caller.http() as client:
        return await asyncio.gather(*(one(client) for _ in range(clients)))


async def used_up(caller):
    """Use up the limit by many clients, and check the books of it."""
    answered = await ask_until_denied(caller, CLIENTS)
    await caller.settled()
    # With nothing in flight any more, the rest is used up to less than one request's cost.
    answered += await ask_until_denied(caller, 1)
    used = await caller.settled()
    entries = await caller.entries(sum(answered) + CLIENTS + 1)
    admitted = [entry for entry in entries if entry["state"] != "denied"]
    assert len(admitted) == sum(answered)
    assert {entry["state"] for entry in admitted} == {"settled"}
    assert sum(entry["charge"] for entry in admitted) == used
    assert LIMIT - max(entry["held"] for entry in admitted) < used <= LIMIT


@pytest.mark.parametrize("limits", sampled(LIMITS, 1))
async def test_concurrent_clients_use_up_their_limit_and_never_overshoot_it(caller, limits):
    await caller.limit(**limits)
    await used_up(caller)


async def test_concurrent_clients_of_two_processors_share_one_limit(pair_caller):
    await pair_caller.bind(sa_limit=LIMIT)
    await used_up(pair_caller)
