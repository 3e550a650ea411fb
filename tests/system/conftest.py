"""Two stacks for most tests, which live as long as the session: they start in about two seconds together.

`stack` has the sample model server behind it, `scripted` an upstream whose answers the test writes. They share
their stores, and each test has a tenant and service account of its own.
"""

import json

import pymongo
import pytest_asyncio

from extproc.admin.service import Admin
from extproc.app import SystemClock, build_stores, defaults
from extproc.local import stack as stacks
from extproc.local.parts import MissingPartError
from extproc.local.stack import StackOptions
from extproc.settings.load import load
from tests.missing import missing

from .callers import Caller, Records, total
from .upstreams import Upstream

# Two of these tests at a time share two cores with all the parts of their stacks: a decision may take longer than its
# 100 ms there. That it never does more than that otherwise is shown by tests/chaos and tests/accounting.
PATIENT = {"TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.4"}


def session_fixture(function):
    return pytest_asyncio.fixture(function, scope="session", loop_scope="session")


@session_fixture
async def stack(tmp_path_factory):
    try:
        async with stacks.running(StackOptions(settings=PATIENT), tmp_path_factory.mktemp("stack")) as started:
            yield started
            await check_health(started)
    except MissingPartError as error:
        missing(str(error))


@session_fixture
async def beside(stack, tmp_path_factory):
    """Starts another processor and Envoy on the stores of `stack`: `async with beside(...) as other`."""

    def running(**options):
        options = {"upstream": stack.upstream, "redis": stack.redis, "mongo": stack.mongo} | options
        options["settings"] = PATIENT | options.get("settings", {})
        return stacks.running(StackOptions(**options), tmp_path_factory.mktemp("beside"))

    return running


@session_fixture
async def script_server():
    async with Upstream().serving() as upstream:
        yield upstream


@session_fixture
async def scripted(beside, script_server):
    # What tests make up as usage teaches nothing: else the holds of one would depend on the ones before it.
    async with beside(upstream=script_server.url, settings={"TOKENWEIR_COST__LEARN": "false"}) as started:
        yield started
        await check_health(started)


@session_fixture
async def records(stack):
    async with records_of(stack) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(script_server, scripted):
    """The upstream behind `scripted`, as new."""
    del scripted
    script_server.reset()
    return script_server


@pytest_asyncio.fixture(loop_scope="session")
async def caller(stack, records):
    """A new service account at the stack with the sample model."""
    return Caller(stack, records)


@pytest_asyncio.fixture(loop_scope="session")
async def scripted_caller(scripted, records):
    """A new service account at the stack whose upstream is `upstream`."""
    return Caller(scripted, records)


class records_of:  # noqa: N801 - used like a function
    """The stores of any stack: `async with records_of(stack) as records`."""

    def __init__(self, stack):
        self._stack = stack

    async def __aenter__(self):
        settings = load(environment=self._stack.environment)
        self._stores = build_stores(settings)
        stores = self._stores
        self._client = pymongo.AsyncMongoClient(self._stack.mongo, tz_aware=True)
        admin = Admin(stores.tenants, stores.reports, stores.counters, defaults(settings), SystemClock().now)
        return Records(self._client["modelToken"], admin)

    async def __aexit__(self, *_error):
        await self._stores.aclose()
        await self._client.close()


async def check_health(stack):
    """Nothing that a test did may have led the processor into a fault, a lost record or an odd log line."""
    assert await total(stack, "tokenweir_stream_faults_total") == 0
    assert await total(stack, "tokenweir_queue_lost_total") == 0
    for processor in stack.processors:
        for line in processor.log_path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["level"] != "ERROR" or record["message"] == "limits can't be used", line
