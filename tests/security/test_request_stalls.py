"""A body that a client sends, whatever it is, hardly delays the requests of others on the same event loop."""

import contextlib

import pytest

from extproc.app import DIRECT_BYTES
from extproc.core.phase import ExchangeRules
from extproc.core.quota.reservation import Suspended
from extproc.core.request import apart
from extproc.core.request.apart import Reading
from extproc.core.request.endpoints import Endpoint, Target
from extproc.core.request.identity import IdentityRules
from extproc.envoy.reading import FUNCTION, ReadApart
from extproc.workers.pool import Pool, PoolOptions
from tests.changing import replace

from .request_shapes import DEAR, ORDINARY
from .speed import slowness
from .stalls import attack_until

RULES = ExchangeRules(IdentityRules(), max_body_bytes=4 << 20, direct_bytes=DIRECT_BYTES)
# In processor time of the loop's thread: what another caller may have to wait longer.
DEAR_MS, ORDINARY_MS = 20.0, 10.0
FAR = PoolOptions(processes=1, timeout_s=120, start_s=120)


def reading(screen=lambda _: None):
    """A reader whose first process has started."""

    @contextlib.asynccontextmanager
    async def ready():
        pool = Pool(FUNCTION, FAR)
        pool.start()
        await pool.do("test", apart.packed(Reading(Target(Endpoint.CHAT_COMPLETIONS), "")), b"")
        try:
            yield ReadApart(pool, screen)
        finally:
            await pool.aclose()

    return ready


@pytest.mark.parametrize("name", DEAR)
def test_a_body_that_is_dear_to_read_delays_nobody(name):
    stall = attack_until(
        lambda stall: stall.rise < DEAR_MS * slowness(), DEAR[name], rules=RULES, reading=reading()
    )
    assert stall.rise < DEAR_MS * slowness(), stall
    assert stall.failed == 0
    assert all(replies for replies in stall.passed)


@pytest.mark.parametrize("name", ORDINARY)
def test_a_large_body_that_people_send_delays_nobody(name):
    shape = ORDINARY[name]
    stall = attack_until(lambda stall: stall.p99 < ORDINARY_MS * slowness(), shape, rules=RULES, reading=reading())
    assert stall.p99 < ORDINARY_MS * slowness(), stall
    assert stall.rise < DEAR_MS * slowness(), stall
    assert stall.failed == 0
    assert len(stall.ends) == shape.attackers * shape.times  # all were admitted


def test_the_body_of_a_caller_that_is_suspended_is_not_read():
    shape = replace(DEAR["empty strings, ten deep"], attackers=3, times=5)
    screened = []

    def suspended(caller):
        screened.append(caller)
        return Suspended("unpaid")

    stall = attack_until(
        lambda stall: stall.rise < DEAR_MS * slowness(), shape, rules=RULES, reading=reading(suspended)
    )
    assert stall.rise < DEAR_MS * slowness(), stall
    assert screened
    statuses = {reply[-1].immediate_response.status.code for reply in stall.passed}
    assert statuses == {403}
