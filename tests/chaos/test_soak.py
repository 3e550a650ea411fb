"""R10: a long run under random faults: the books agree whenever it is quiet, and nothing grows."""

import time

import pytest

from tests.changing import replace

from .books import never_too_little
from .faults import KINDS, forgetful, name_of
from .marks import CHAOS
from .plant import planted
from .sizes import MINUTES, seed
from .under_faults import UNDER_SIEGE, besiege

pytestmark = [*CHAOS[:-1], pytest.mark.timeout(MINUTES * 120 + 300)]

MORE_FDS = 30
MORE_BYTES = 64 << 20


async def test_books_agree_whenever_it_is_quiet_and_nothing_grows(rng, figure, tmp_path):
    """The first replica lives through all of it; what it has after the first round is what it may have at the end."""
    over = time.monotonic() + MINUTES * 60
    rounds, requests, faults_seen = 0, 0, []
    sizes = []
    keeps = rng.choice(["nothing", "aof"])
    async with planted(replace(UNDER_SIEGE, keeps=keeps), tmp_path) as plant:
        while time.monotonic() < over or rounds < 2:
            faults = [rng.choice(kind) for kind in rng.sample(KINDS, rng.choice([1, 2]))]
            if forgetful(faults, keeps):
                continue
            limit = rng.randrange(20_000, 200_000)
            crowd, balance = await besiege(plant, rng, faults, limit=limit, lasting_s=rng.uniform(0, 2))
            rounds, requests = rounds + 1, requests + crowd.decided
            faults_seen.append(name_of(*faults))
            drift = f"round {rounds}, {faults_seen[-1]}, seed {seed()}: {balance}"
            assert crowd.upstream.total <= limit, drift
            try:
                never_too_little(balance)
            except AssertionError as error:
                raise AssertionError(drift) from error
            sizes.append((plant.replicas[0].fds, plant.replicas[0].rss_bytes))
    (fds, rss), (fds_then, rss_then) = sizes[0], sizes[-1]
    figure(
        "R10",
        f"{MINUTES:g} minutes, {rounds} rounds of random faults, {requests:,} requests: drift 0 in each; a replica that "
        f"lived through all: {fds} -> {fds_then} descriptors, {rss >> 20} -> {rss_then >> 20} MiB",
    )
    assert fds_then <= fds + MORE_FDS
    assert rss_then <= rss + MORE_BYTES
