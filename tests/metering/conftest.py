"""Time in these tests is virtual: it passes when nothing is left to do, and then at once."""

import asyncio

from tests.virtual_loop import VirtualLoop


def pytest_asyncio_loop_factories(config, item):
    """Give each test a loop in virtual time, but for those with the marker `real_time`."""
    return {"loop": asyncio.new_event_loop if item.get_closest_marker("real_time") else VirtualLoop}
