import asyncio

from tests.virtual_loop import VirtualLoop


def pytest_asyncio_loop_factories(config, item):
    """Give the tests of a module with `VIRTUAL_TIME` a loop in virtual time, in which nothing waits for a clock."""
    virtual = getattr(item.module, "VIRTUAL_TIME", False)
    return {"loop": VirtualLoop if virtual else asyncio.new_event_loop}
