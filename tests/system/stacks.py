"""The stacks of the tests: each is started once in a worker, and shared by all tests that do not end its parts.

- `stack` has the sample model server behind it, `scripted` an upstream whose answers the test writes, `pair` two
  processors before that upstream, with settings that few tests need (see there).
- They share their stores, and each test has a tenant and service account of its own.
- `before` starts another Envoy before the processors of one of them, `beside` also other processors.

This is a plugin of pytest (see tests/conftest.py): suites of other folders get the same stacks, not others like them.
"""

import base64
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest_asyncio

from tests.missing import needing_parts

# A decision may take longer on a busy machine than its settings allow: see tests/patient.py. That it takes no longer
# otherwise is shown by tests/chaos and tests/metering.
PATIENT = Path(__file__).parents[1] / "patient.py"
MESSAGE_S = 60.0
SETTINGS = {"TOKENWEIR_MONGO__TIMEOUT_S": "60"}
DATABASE = "modelToken"
SPARE_MODEL = "spare"  # of the sample model server; for a test that must be the only one that asks it
SECRET = "whsec_" + base64.b64encode(b"a secret of the receiver's").decode()
# Of `pair`: a stream outlives its reservation's time to live within seconds.
TTL_S = 2.0
PAIR = {
    "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
    "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.2",
    "TOKENWEIR_ALERTS__WEBHOOK_SECRET": SECRET,
    "TOKENWEIR_ALERTS__WEBHOOK_TIMEOUT_S": "60",
}
DEFAULTS = {
    "TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "700",
    "TOKENWEIR_LIMITS__DEFAULT__LIMITS": '[{"scope": "tenant", "window": "month", "amount": 3, "unit": "requests"}]',
    "TOKENWEIR_LIMITS__DEFAULT__TIMEZONE": "Asia/Tokyo",
}


def session_fixture(function):
    return pytest_asyncio.fixture(function, scope="session", loop_scope="session")


@contextlib.asynccontextmanager
async def running(run_dir, **options):
    """Run a stack with patient processors; `options` as of `StackOptions`, all of them optional."""
    from extproc.local import stack as stacks

    given = {"serve": (sys.executable, "-P", str(PATIENT), "serve")} | options
    given["settings"] = SETTINGS | options.get("settings", {})
    given["envoy"] = {"message_timeout_s": MESSAGE_S} | options.get("envoy", {})
    with needing_parts():
        async with stacks.running(stacks.StackOptions(**given), run_dir) as started:
            yield started


def kill(stack):
    """End all children of a stack at once: nobody needs what they would write at a proper end."""
    for child in stack.children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def _healthy_to_the_end(started):
    async with started as stack:
        yield stack
        await check_health(stack)
        kill(stack)


@session_fixture
async def stack(tmp_path_factory):
    from extproc.local.stack import SAMPLE_MODEL

    models = ("--model", SAMPLE_MODEL, "--model", SPARE_MODEL)
    folder = tmp_path_factory.mktemp("stack")
    async with _healthy_to_the_end(running(folder, model_arguments=models)) as started:
        yield started


@session_fixture
async def beside(stack, tmp_path_factory):
    """Starts another processor and Envoy on the stores of `stack`: `async with beside(...) as other`."""

    def started(**options):
        given = {"upstream": stack.upstream, "redis": stack.redis, "mongo": stack.mongo} | options
        return running(tmp_path_factory.mktemp("beside"), **given)

    return started


@session_fixture
async def before(tmp_path_factory):
    """Starts another Envoy before the processors of a stack: `async with before(stack, ...) as other`."""
    from . import envoys

    def started(stack, **options):
        return envoys.before(stack, tmp_path_factory.mktemp("before"), **options)

    return started


@session_fixture
async def script_server():
    from .upstreams import Upstream

    async with Upstream().serving() as upstream:
        yield upstream


@session_fixture
async def scripted(beside, script_server):
    # What tests make up as usage teaches nothing: else the holds of one would depend on the ones before it.
    settings = {"TOKENWEIR_COST__LEARN": "false"}
    async with _healthy_to_the_end(beside(upstream=script_server.url, settings=settings)) as started:
        yield started


@session_fixture
async def receiver():
    """The receiver of the alerts of `pair`."""
    from .upstreams import Upstream

    async with Upstream().serving() as started:
        yield started


@session_fixture
async def pair(beside, script_server, receiver):
    """Two processors: what one does is effective at the other. They have a webhook, and a short time to live."""
    settings = PAIR | {"TOKENWEIR_ALERTS__WEBHOOK_URL": f"{receiver.url}/hooks/in?team=7"}
    options = {"upstream": script_server.url, "settings": settings, "processors": 2}
    async with _healthy_to_the_end(beside(**options)) as started:
        yield started


@session_fixture
async def loud(beside, script_server):
    """A processor that logs all it can, denies in the style of the talk, and has default limits of its own.

    It may have faults: limits of a route that can't be read are one.
    """
    settings = DEFAULTS | {"TOKENWEIR_LOG__LEVEL": "DEBUG", "TOKENWEIR_DENIED__STYLE": "talk"}
    async with beside(upstream=script_server.url, settings=settings) as started:
        yield started
        kill(started)


@session_fixture
async def records(stack):
    async with records_of(stack) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(script_server):
    """The upstream behind `scripted` and `pair`, as new."""
    script_server.reset()
    return script_server


@pytest_asyncio.fixture(loop_scope="session")
async def caller(stack, records):
    """A new service account at the stack with the sample model."""
    from .callers import Caller

    return Caller(stack, records)


@pytest_asyncio.fixture(loop_scope="session")
async def scripted_caller(scripted, records, upstream):
    """A new service account at the stack whose upstream is `upstream`."""
    from .callers import Caller

    return Caller(scripted, records)


@pytest_asyncio.fixture(loop_scope="session")
async def pair_caller(pair, records, upstream):
    """A new service account at the gateway with two processors."""
    from .callers import Caller

    return Caller(pair, records)


@contextlib.asynccontextmanager
async def records_of(stack, database=DATABASE):
    """Open the stores of any stack; `database` is the name of MongoDB's."""
    import pymongo

    from extproc.admin.service import Admin
    from extproc.app import SystemClock, build_stores, defaults
    from extproc.settings.load import load
    from extproc.stores.redis import RedisCounters, RedisOptions

    from .callers import Records

    settings = load(environment=stack.environment | SETTINGS | {"TOKENWEIR_MONGO__DATABASE": database})
    stores = build_stores(settings)
    counters = RedisCounters(RedisOptions(stack.redis, command_timeout_s=60, batch_timeout_s=60))
    client = pymongo.AsyncMongoClient(stack.mongo, tz_aware=True)
    try:
        admin = Admin(
            stores.tenants, stores.reports, counters, defaults(settings), SystemClock().now, audit=stores.audit
        )
        yield Records(client[database], admin)
    finally:
        await counters.aclose()
        await stores.aclose()
        await client.close()


async def check_health(stack):
    """Nothing that a test did may have led the processor into a fault, a lost record or an odd log line."""
    import json

    from .callers import total

    assert await total(stack, "tokenweir_stream_faults_total") == 0
    assert await total(stack, "tokenweir_queue_lost_total") == 0
    for processor in stack.processors:
        for line in processor.log_path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["level"] != "ERROR" or record["message"].startswith(
                "limits: fields of a document can't be used"
            ), line
