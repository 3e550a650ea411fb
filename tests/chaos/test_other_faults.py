"""Each further fault by itself, and two at once: no limit exceeded, nothing lost, nothing double, books that agree."""

import pytest
import pytest_asyncio

from .books import never_too_little
from .faults import EACH, KINDS, MONGO, REDIS, forgetful, name_of, redis_flushed, replica_killed
from .marks import CHAOS
from .sizes import FULL, draw, size
from .under_faults import besiege, besieged

pytestmark = CHAOS

LIMIT = 60_000
# A replica and a Redis that keeps nothing, killed together, lose what was only there.
KEEPS = "aof"
PAIRS = size("PAIRS", full=30, short=1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plant(tmp_path_factory):
    async with besieged(tmp_path_factory.mktemp("besieged"), keeps=KEEPS) as started:
        yield started


def pairs():
    """Those that are hardest to get right, then drawn ones."""
    rng = draw("pairs")
    chosen = [(redis_flushed, MONGO[0]), (replica_killed, REDIS[0])]
    for _ in range(PAIRS):
        one, other = rng.sample(KINDS, 2)
        chosen.append((rng.choice(one), rng.choice(other)))
        if forgetful(chosen[-1], KEEPS):
            chosen.pop()
    return chosen


def single():
    """All of them in the full form; in the short one some, others with each seed."""
    return EACH if FULL else draw("single").sample(EACH, 4)


def _id(faults):
    return name_of(*faults).replace(" + ", "-and-").replace(" ", "-")


@pytest.mark.parametrize("faults", [*((fault,) for fault in single()), *pairs()], ids=_id)
async def test_books_agree_after(plant, rng, figure, faults):
    crowd, balance = await besiege(plant, rng, faults, limit=LIMIT)
    told = {what: count for what, count in crowd.outcomes.items() if count}
    figure("faults", f"{name_of(*faults)}: {crowd.upstream.total:,} of {LIMIT:,} admitted {told}; {balance}")
    assert crowd.upstream.total <= LIMIT
    never_too_little(balance)
