"""The command as its own process, and the real stores that it writes to."""

import os
import uuid
from functools import partial

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from extproc.local.ports import free_ports

from .conftest_stores import client_of, run_mongo, run_s3
from .running import Dumper, dumper_in


@pytest.fixture
def dump(tmp_path):
    """Starts a dumper for as long as the context lasts."""
    return partial(dumper_in, tmp_path)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_dumper(tmp_path_factory):
    async with dumper_in(tmp_path_factory.mktemp("dumper")) as dumper:
        yield dumper


@pytest_asyncio.fixture
async def dump_once(shared_dumper):
    """One for all tests that look at single answers."""
    dumper = Dumper(shared_dumper.child, shared_dumper.url)
    yield dumper
    await dumper.http.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_little_dumper(tmp_path_factory):
    async with dumper_in(tmp_path_factory.mktemp("little"), print_bytes=5, max_body_bytes=2048) as dumper:
        yield dumper


@pytest_asyncio.fixture
async def dump_little(shared_little_dumper):
    """One that prints and takes little."""
    dumper = Dumper(shared_little_dumper.child, shared_little_dumper.url)
    yield dumper
    await dumper.http.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def s3_port(tmp_path_factory):
    pytest.importorskip("moto") if not os.environ.get("CI") else None
    (port,) = free_ports(1)
    async with run_s3(tmp_path_factory.mktemp("s3"), port):
        yield port


@pytest.fixture(scope="session")
def s3_client(s3_port):
    client = client_of(s3_port)
    yield client
    client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mongo_url(tmp_path_factory):
    (port,) = free_ports(1)
    async with run_mongo(tmp_path_factory.mktemp("mongo"), port) as part:
        yield part.url


@pytest_asyncio.fixture
async def messages(mongo_url):
    """The collection, in a database of its own."""
    client = AsyncMongoClient(mongo_url, tz_aware=True)
    yield client[f"test_{uuid.uuid4().hex[:8]}"]["messages"]
    await client.close()
