"""Each further fault by itself, and two at once: no limit exceeded, nothing lost, nothing double, books that agree."""

import pytest

from .books import never_too_little
from .faults import EACH, KINDS, MONGO, REDIS, forgetful, name_of, redis_flushed, replica_killed
from .marks import CHAOS
from .plants import on
from .sizes import FULL, draw, size
from .under_faults import KEEPS, besiege

pytestmark = [*CHAOS, on("besieged")]

LIMIT = 60_000
AT_ONCE = size("AT_ONCE", full=30, short=0)  # random pairs


def pairs():
    """Those that are hardest to get right, then drawn ones."""
    rng = draw("pairs")
    # The second may take a minute: a replica that dies in a transaction leaves it open for so long.
    chosen = [(redis_flushed, MONGO[0]), *([(replica_killed, REDIS[0])] if FULL else [])]
    for _ in range(AT_ONCE):
        one, other = rng.sample(KINDS, 2)
        chosen.append((rng.choice(one), rng.choice(other)))
        if forgetful(chosen[-1], KEEPS):
            chosen.pop()
    return chosen


def single():
    """All of them in the full form; in the short one some, others with each seed."""
    return EACH if FULL else draw("single").sample([fault for fault in EACH if fault is not replica_killed], 2)


def _id(faults):
    return name_of(*faults).replace(" + ", "-and-").replace(" ", "-")


@pytest.mark.parametrize("faults", [*((fault,) for fault in single()), *pairs()], ids=_id)
async def test_books_agree_after(plant, rng, figure, faults):
    crowd, balance = await besiege(plant, rng, faults, limit=LIMIT)
    told = {what: count for what, count in crowd.outcomes.items() if count}
    figure("faults", f"{name_of(*faults)}: {crowd.upstream.total:,} of {LIMIT:,} admitted {told}; {balance}")
    assert crowd.upstream.total <= LIMIT
    never_too_little(balance)
