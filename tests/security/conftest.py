"""What only the security tests need of stacks; the stacks themselves are those of tests/system/stacks.py."""

import pytest_asyncio

from tests.system.stacks import session_fixture


@session_fixture
async def trusting(scripted, before):
    """A gateway that has one proxy in front of it whose X-Forwarded-For counts."""

    def change(configuration):
        configuration.manager["xff_num_trusted_hops"] = 1

    async with before(scripted, change=change) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def trusted(trusting, upstream):
    del upstream
    return trusting
