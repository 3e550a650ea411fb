"""Few reports of a process are in the store at once: the ledger is written there too."""

import asyncio

import pytest

from extproc.ports.reports import SlowReportError
from extproc.stores.mongo.reports import MongoSums


async def test_further_reports_wait_for_their_turn():
    sums, now, most, done = MongoSums(None), 0, 0, 0

    async def report():
        nonlocal now, most, done
        async with sums._bounded():
            now += 1
            most = max(most, now)
            for _ in range(3):
                await asyncio.sleep(0)
            now -= 1
        done += 1

    await asyncio.gather(*(report() for _ in range(9)))
    assert (most, done) == (2, 9)


async def test_a_report_whose_turn_does_not_come_says_that_it_took_too_long_and_one_that_failed_frees_its_turn():
    sums = MongoSums(None, timeout_s=0.05)
    async with sums._bounded(), sums._bounded():
        with pytest.raises(SlowReportError):
            async with sums._bounded():
                pass
    for _ in range(3):
        with pytest.raises(ValueError, match="own"):
            async with sums._bounded():
                raise ValueError("own")
    async with sums._bounded(), sums._bounded():
        pass
