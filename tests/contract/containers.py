"""Redis and MongoDB themselves in the place of the local stack's servers: `make test-containers`.

With TESTS_STORES=containers the tests that run on `redis_server` or on `mongo_replica_set` run on the servers of
TESTS_REDIS_URL and TESTS_MONGO_URL, and all others are deselected. A URL that is not set is that of a container, which
needs Docker. Both servers are emptied: give no URL of a server that holds anything.
"""

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.missing import missing

WANTED = os.environ.get("TESTS_STORES") == "containers"
REDIS_IMAGE, MONGO_IMAGE = "redis:7.0", "mongo:8.0"
SERVERS = {"redis_server", "mongo_replica_set"}
ONE_MEMBER = {"_id": "rs0", "members": [{"_id": 0, "host": "localhost:27017"}]}
READY_S = 60.0


@dataclass(frozen=True)
class Server:
    """A server of somebody else: there is no process that a test could stop."""

    url: str
    process: None = None


def choose(config, items, folder):
    """Deselect the tests below `folder` that need neither server, if containers are wanted."""
    others = [item for item in items if folder in item.path.parents and not _needs_server(item)]
    if WANTED and others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def _needs_server(item):
    parameters = item.callspec.id if hasattr(item, "callspec") else ""
    return any(name in parameters or name in item.fixturenames for name in SERVERS)


@asynccontextmanager
async def redis():
    """Yield the server of TESTS_REDIS_URL, or one in a container."""
    with _url("TESTS_REDIS_URL", REDIS_IMAGE, 6379, "redis-server --save ''", "redis://{}/0") as url:
        await _until(_pings, url)
        yield Server(url)


@asynccontextmanager
async def mongo():
    """Yield the server of TESTS_MONGO_URL, or a replica set of one member in a container."""
    command = "--replSet rs0 --bind_ip_all"
    with _url("TESTS_MONGO_URL", MONGO_IMAGE, 27017, command, "mongodb://{}/?directConnection=true") as url:
        await _until(_is_primary, url)
        yield Server(url)


@contextmanager
def _url(variable, image, port, command, form):
    if url := os.environ.get(variable):
        if "PYTEST_XDIST_WORKER" in os.environ:
            raise pytest.UsageError(
                f"{variable}: tests of two processes would empty each other's server: leave out -n"
            )
        yield url
        return
    try:
        from docker.errors import DockerException
        from testcontainers.core.container import DockerContainer
    except ImportError:
        missing(f"{variable} is not set, and testcontainers is missing: pip install -e '.[containers]'")
    try:
        container = DockerContainer(image).with_exposed_ports(port).with_command(command).start()
    except DockerException as error:
        missing(f"{variable} is not set, and Docker does not run: {error}")
    try:
        yield form.format(f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}")
    finally:
        container.stop()


async def _until(condition, url):
    async with asyncio.timeout(READY_S):
        while not await condition(url):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def _pings(url):
    client = Redis.from_url(url)
    try:
        return await client.ping()
    except RedisError:
        return False
    finally:
        await client.aclose()


async def _is_primary(url):
    """A member that nobody initiated becomes a replica set of its own first."""
    client = AsyncMongoClient(url, serverSelectionTimeoutMS=1000)
    try:
        hello = await client.admin.command("hello")
        if not hello.get("isWritablePrimary") and "setName" not in hello:
            await client.admin.command(
                "replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": "localhost:27017"}]}
            )
    except PyMongoError:
        return False
    else:
        return hello.get("isWritablePrimary", False) and "setName" in hello
    finally:
        await client.close()
