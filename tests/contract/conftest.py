"""Real servers, started once per session, and every adapter of each port on them.

The servers live on the session's event loop, the adapters on the loop of the test that uses them.
"""

import os
import signal
import sys
import uuid
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from extproc.local import parts
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Command, start
from extproc.stores.memory.counters import MemoryCounters
from extproc.stores.memory.ledger import MemoryLedger
from extproc.stores.memory.sums import MemoryClosedMonths, MemorySums
from extproc.stores.memory.tenants import MemoryTenants
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.closed import MongoClosedMonths
from extproc.stores.mongo.ledger import MongoLedger
from extproc.stores.mongo.records import MongoRecords
from extproc.stores.mongo.reports import MongoSums
from extproc.stores.mongo.rollup_backfill import RollupBackfill
from extproc.stores.mongo.tenants import MongoTenants
from tests.missing import missing

from . import containers
from .ready import MemoryBackend, RedisBackend, make_ready, patient
from .topologies import nodes, sentinels  # noqa: F401 - fixtures

# Servers that run the same adapter as another one does. In the quick form, every third test runs on them too.
SECOND = {"redis_server": "valkey", "mongo_standalone": "mongo_replica_set"}
EVERY = 3


def pytest_collection_modifyitems(config, items):
    folder = Path(__file__).parent
    containers.choose(config, items, folder)
    if not containers.WANTED:
        _leave_second_servers_to_some([item for item in items if folder in item.path.parents])


def _leave_second_servers_to_some(items):
    """Mark tests on a second server as thorough, if the test runs on the first one too: but every third of a file."""
    servers = {(item.path, item.originalname): set() for item in items}
    for item in items:
        servers[item.path, item.originalname].update(_parameters(item))
    numbers = {}
    for item in items:
        test = item.path, item.originalname
        for server in _parameters(item) & SECOND.keys():
            order = numbers.setdefault((item.path, server), {})
            number = order.setdefault(item.originalname, len(order))
            if SECOND[server] in servers[test] and number % EVERY:
                item.add_marker(pytest.mark.thorough)


def _parameters(item):
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {each for each in given if isinstance(each, str)}


@pytest_asyncio.fixture
async def refusing_mongo():
    """A client of a server that is not there."""
    (port,) = free_ports(1)
    mongo = Mongo(MongoOptions(f"mongodb://{HOST}:{port}/?directConnection=true", timeout_s=0.1))
    yield mongo
    await mongo.aclose()


@asynccontextmanager
async def _running(child):
    """Killed at the end: what it would write at a proper end is thrown away."""
    try:
        yield
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
        await child.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey(tmp_path_factory):
    """The server as a `Part`: its url and its process."""
    try:
        part = await parts.start_valkey(tmp_path_factory.mktemp("valkey"), *free_ports(1))
    except parts.MissingPartError as error:
        missing(str(error))
    async with _running(part.process):
        yield part


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_server(tmp_path_factory):
    if containers.WANTED:
        async with containers.redis() as part:
            yield part
        return
    try:
        part = await parts.start_redis_server(tmp_path_factory.mktemp("redis"), *free_ports(1))
    except parts.MissingPartError as error:
        pytest.skip(f"not run on Redis 7.0: {error}")  # the one part that no wheel brings
    async with _running(part.process):
        yield part


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def small_redis(tmp_path_factory):
    """The server of the simulation, as a process."""
    if find_spec("lupa") is None:
        missing("the server of the simulation needs lupa")
    (port,) = free_ports(1)
    url = f"redis://{HOST}:{port}/0"
    argv = (sys.executable, "-m", "tests.small_redis", str(port))
    env = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = Command("small-redis", argv, tmp_path_factory.mktemp("small-redis"), env)
    child = await start(command, _pings(url))
    async with _running(child):
        yield SimpleNamespace(url=url)


def _pings(url):
    async def ready():
        client = Redis.from_url(url)
        try:
            return await client.ping()
        except RedisError:
            return False
        finally:
            await client.aclose()

    return ready


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mongo_replica_set(tmp_path_factory):
    if containers.WANTED:
        async with containers.mongo() as server:
            yield server.url
        return
    try:
        part = await parts.start_mongo_store(tmp_path_factory.mktemp("mongo"), *free_ports(1))
    except parts.MissingPartError as error:
        missing(str(error))
    async with _running(part.process):
        yield part.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mongo_standalone(tmp_path_factory, mongo_replica_set):
    (port,) = free_ports(1)
    url = f"mongodb://{HOST}:{port}/?directConnection=true"
    argv = (sys.executable, "-P", "-m", "secantus", "--host", HOST, "--port", str(port), "--storage-path", "data")
    argv += ("--cache-size", "256M", "--standalone")
    command = Command("mongo-standalone", argv, tmp_path_factory.mktemp("standalone"))
    child = await start(command, _answers(url))
    async with _running(child):
        yield url


def _answers(url):
    async def ready():
        client = AsyncMongoClient(url, serverSelectionTimeoutMS=1000)
        try:
            return (await client.admin.command("ping"))["ok"] == 1
        except PyMongoError:
            return False
        finally:
            await client.close()

    return ready


# ---------------------------------------------------------------- counters


@pytest.fixture(
    params=["memory", pytest.param("small_redis", marks=pytest.mark.thorough), "valkey", "redis_server"]
)
def counters_part(request):
    """None for the counters in memory, else the server."""
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture(params=["valkey", "redis_server"])
def redis_part(request):
    return request.getfixturevalue(request.param)


@pytest_asyncio.fixture
async def counters(counters_part):
    if counters_part is None:
        yield MemoryCounters()
        return
    async with redis_client(counters_part) as client:
        await client.flushall()
    adapter = patient(counters_part.url)
    await make_ready(adapter)
    yield adapter
    await adapter.aclose()


@pytest_asyncio.fixture
async def backend(counters_part):
    """What several replicas share: its clients, and its losses."""
    if counters_part is None:
        yield MemoryBackend()
        return
    async with redis_client(counters_part) as client:
        await client.flushall()
        yield RedisBackend(counters_part, client)


@pytest_asyncio.fixture
async def replicas(backend):
    """Two replicas that may count."""
    pair = backend.client(), backend.client()
    await make_ready(*pair)
    yield pair
    for replica in pair:
        await replica.aclose()


@pytest_asyncio.fixture
async def redis(redis_part):
    """A plain client of an empty server, to look at what the adapter wrote."""
    async with redis_client(redis_part) as client:
        await client.flushall()
        yield client


@pytest_asyncio.fixture
async def redis_counters(redis_part, redis):
    adapter = patient(redis_part.url)
    await make_ready(adapter)
    yield adapter
    await adapter.aclose()


@asynccontextmanager
async def redis_client(part):
    client = Redis.from_url(part.url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


# ---------------------------------------------------------------- ledger, tenants


@pytest.fixture(params=["mongo_replica_set", "mongo_standalone"])
def mongo_url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["memory", "mongo_replica_set", "mongo_standalone"])
def ledger_url(request):
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture(params=["memory", "mongo_replica_set"])
def tenants_url(request):
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@asynccontextmanager
async def new_database(url):
    """A client on a database of its own."""
    mongo = Mongo(MongoOptions(url, f"test_{uuid.uuid4().hex[:12]}", timeout_s=30.0))
    try:
        yield mongo
    finally:
        await mongo.aclose()


@pytest_asyncio.fixture
async def mongo(mongo_url):
    async with new_database(mongo_url) as mongo:
        yield mongo


@pytest_asyncio.fixture
async def replica_set(mongo_replica_set):
    async with new_database(mongo_replica_set) as mongo:
        yield mongo


@pytest_asyncio.fixture
async def ledger_and_records(ledger_url):
    """Both of one database."""
    if ledger_url is None:
        memory = MemoryLedger()
        yield memory, memory
        return
    async with new_database(ledger_url) as mongo:
        ledger, records = MongoLedger(mongo), MongoRecords(mongo)
        await ledger.create_indexes()
        await records.create_indexes()
        yield ledger, records


@pytest.fixture
def ledger(ledger_and_records):
    return ledger_and_records[0]


@pytest.fixture
def records(ledger_and_records):
    return ledger_and_records[1]


@pytest.fixture
def in_memory(ledger):
    return isinstance(ledger, MemoryLedger)


class Settled:
    """Reports that are asked when all entries are in the rollups: on a standalone server a job adds them."""

    def __init__(self, mongo):
        self._sums = MongoSums(mongo)
        self._backfill = RollupBackfill(mongo, "replica")

    def __getattr__(self, name):
        async def settled(*arguments):
            while not await self._backfill.step():
                pass
            return await getattr(self._sums, name)(*arguments)

        return settled


@pytest.fixture
def sums(ledger):
    return MemorySums(ledger.all_entries) if isinstance(ledger, MemoryLedger) else Settled(ledger._mongo)


@pytest.fixture
def months(ledger):
    return MemoryClosedMonths() if isinstance(ledger, MemoryLedger) else MongoClosedMonths(ledger._mongo)


@pytest_asyncio.fixture
async def tenants(tenants_url):
    if tenants_url is None:
        yield MemoryTenants()
        return
    async with new_database(tenants_url) as mongo:
        yield MongoTenants(mongo)
