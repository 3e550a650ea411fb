"""How long streams are waited for, by the loop's virtual clock."""

import asyncio

from extproc.envoy.patience import Patience, Waits
from tests.virtual_loop import run

WAITS = Waits(request_s=30.0, idle_s=100.0)


class Stream:
    def __init__(self, loop, *, asks=True):
        self.heard_at = 0.0
        self.awaits_request = asks
        self.lost_at = None
        self._loop = loop

    def lose(self):
        assert self.lost_at is None
        self.lost_at = self._loop.time()


def test_a_request_that_is_not_whole_in_time_is_lost():
    async def main(loop):
        patience = Patience(WAITS)
        first, second = Stream(loop), Stream(loop)
        patience.begin(first)
        await asyncio.sleep(10.0)
        patience.begin(second)
        second.awaits_request = False
        await asyncio.sleep(200.0)
        assert first.lost_at == 30.0
        assert second.lost_at is not None

    run(main)


def test_one_that_says_something_is_never_lost_and_one_that_is_silent_is():
    async def main(loop):
        patience = Patience(WAITS)
        speaks, silent = Stream(loop, asks=False), Stream(loop, asks=False)
        patience.begin(speaks)
        patience.begin(silent)
        for _ in range(50):
            await asyncio.sleep(20.0)
            speaks.heard_at = loop.time()
        assert speaks.lost_at is None
        assert WAITS.idle_s <= silent.lost_at <= WAITS.idle_s + WAITS.request_s

    run(main)


def test_a_new_request_is_looked_at_in_time_while_an_old_stream_waits_for_long():
    async def main(loop):
        patience = Patience(Waits(request_s=30.0, idle_s=3600.0))
        old, new = Stream(loop, asks=False), Stream(loop)
        patience.begin(old)
        await asyncio.sleep(40.0)  # the old one is looked at again in an hour
        patience.begin(new)
        await asyncio.sleep(31.0)
        assert (new.lost_at, old.lost_at) == (70.0, None)
        await asyncio.sleep(4000.0)
        assert 3600.0 <= old.lost_at <= 3700.0

    run(main)


def test_what_has_ended_is_not_looked_at_and_without_streams_no_timer_runs():
    async def main(loop):
        patience = Patience(WAITS)
        new, old = Stream(loop), Stream(loop, asks=False)
        patience.begin(old)
        await asyncio.sleep(31.0)
        patience.begin(new)
        patience.end(new)
        patience.end(old)
        patience.end(old)
        await asyncio.sleep(300.0)
        assert (new.lost_at, old.lost_at) == (None, None)
        assert patience._timer is None
        again = Stream(loop)
        patience.begin(again)
        await asyncio.sleep(31.0)
        assert again.lost_at == loop.time() - 1.0

    run(main)
