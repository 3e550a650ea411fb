"""The stacks of the system tests: what is tried here is tried on the real thing where it can be."""

import pytest

from tests.system.conftest import (  # noqa: F401 - fixtures
    beside,
    caller,
    records,
    script_server,
    scripted,
    scripted_caller,
    session_fixture,
    stack,
    upstream,
)


@session_fixture
async def trusted(beside, script_server):  # noqa: F811 - pytest's way
    """A gateway that has one proxy in front of it whose X-Forwarded-For counts."""
    async with beside(upstream=script_server.url, envoy={"trusted_hops": 1}) as started:
        yield started


@pytest.fixture(autouse=True)
def _answers_plainly(request):
    """What one test made the upstream say is not said to the next."""
    if "scripted_caller" in request.fixturenames or "trusted" in request.fixturenames:
        request.getfixturevalue("script_server").reset()
