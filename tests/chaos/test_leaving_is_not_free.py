"""R4: a client that leaves in the middle is charged once, at once, for what it got and no more than was held."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from tests.changing import replace

from .books import derived_from_the_ledger
from .clients import chat
from .marks import CHAOS
from .plants import on
from .sizes import SLACK, STREAMS_LEFT
from .upstream import Upstream, events, split

pytestmark = [*CHAOS, on("sound")]

WAVE = 40  # streams that are open at once
WITHIN_S = 2.0


@dataclass
class Left:
    """One stream, and when its client left it."""

    delivered: bool
    at: float = 0.0


async def test_streams_that_are_left_at_random_bytes_have_one_record_each(plant, rng, figure):
    first = await plant.tenant(10**9)
    left, callers = {}, []
    slowest = 0.0
    for start in range(0, STREAMS_LEFT, WAVE):
        count = min(WAVE, STREAMS_LEFT - start)
        caller = replace(first, account=f"{first.account}-{start}")
        callers.append(caller)
        doors = [plant.doors[n % len(plant.doors)] for n in range(count)]
        wave = dict(await asyncio.gather(*(_leave(door, caller, rng) for door in doors)))
        left |= wave
        since = max(each.at for each in wave.values())
        missing = await plant.books.recorded(caller, wave, within_s=WITHIN_S * SLACK)
        assert not missing, missing[:5]
        slowest = max(slowest, time.time() - since)
    entries = []
    for caller in callers:
        await plant.books.nothing_held(caller)
        balance = await plant.books.balance(caller, Upstream())
        derived_from_the_ledger(balance)
        entries += await plant.books.entries(caller)
    records = Counter(entry["request_id"] for entry in entries)
    took = max(entry["ended_at"].timestamp() - left[entry["request_id"]].at for entry in entries)
    free = [e for e in entries if left[e["request_id"]].delivered and not e["charge"]]
    above = [e for e in entries if e["charge"] > e["held"]]
    delivered = sum(each.delivered for each in left.values())
    figure(
        "R4",
        f"{len(records):,} of {STREAMS_LEFT:,} streams left at random bytes have a record, "
        f"{sum(n > 1 for n in records.values())} more than one; {len(free)} of the {delivered:,} with content free, "
        f"{len(above)} above their hold; ended {took:.2f} s after leaving at the latest, in MongoDB {slowest:.2f} s",
    )
    assert set(records) == set(left)
    assert set(records.values()) == {1}
    assert not free, free[0]
    assert not above, above[0]
    assert delivered > STREAMS_LEFT // 4  # or it showed nothing


async def _leave(door, caller, rng):
    """One stream up to some byte of it."""
    usage = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
    asked = {"stream_options": {"include_usage": True}} if rng.random() < 0.5 else {}
    body = b"".join(events(30, usage))
    first = body.index(b"\n\n") + 2  # from here on there was content
    at = rng.randrange(len(body))
    exchange = await door.admitted(caller, chat(rng.randint(30, 200), stream=True, **asked))
    got = b""
    if rng.random() < 0.9:  # else before any answer
        await exchange.head(content_type="text/event-stream")
        for piece in split(rng, body[: at + 1], 4):
            got += await exchange.piece(piece)
    exchange.leave()
    return exchange.id, Left(len(got) >= first, time.time())
