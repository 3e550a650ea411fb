"""Passwords that rotate while the process runs: new connections log in with the new one, and nothing restarts."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from extproc.core.quota.reservation import Admitted
from extproc.local import parts
from extproc.local.ports import free_ports
from extproc.ports.tenants import TenantStore
from extproc.stores.mongo.client import Mongo, MongoOptions
from extproc.stores.mongo.tenants import MongoTenants
from extproc.stores.redis import RedisCounters, RedisOptions
from tests.missing import missing

from .ready import make_ready
from .reservations import reservation


async def started(start, folder):
    try:
        return await start(folder, *free_ports(1))
    except parts.MissingPartError as error:
        missing(str(error))


async def test_a_new_password_of_redis_is_used_by_the_next_connection(tmp_path):
    server = await started(parts.start_valkey, tmp_path)
    port = server.url.rpartition(":")[2].partition("/")[0]
    admin = Redis(port=int(port))
    now = {"password": "first"}

    def url():
        return f"redis://meter:{now['password']}@127.0.0.1:{port}/0"

    async def only(password):
        await admin.execute_command(
            "ACL", "SETUSER", "meter", "on", "resetpass", f">{password}", "~*", "&*", "+@all"
        )

    await only("first")
    counters = RedisCounters(RedisOptions(url(), current_url=url))
    try:
        await make_ready(counters)
        assert isinstance(await counters.reserve(reservation(1)), Admitted)
        await only("second")
        # What is connected stays logged in: nobody is refused until connections are new.
        assert isinstance(await counters.reserve(reservation(2)), Admitted)
        await admin.client_kill_filter(_type="normal", skipme=True)
        stale = Redis.from_url(url())
        with pytest.raises(AuthenticationError):
            await stale.ping()
        await stale.aclose()
        now["password"] = "second"
        assert isinstance(await counters.reserve(reservation(3)), Admitted)
    finally:
        await counters.aclose()
        await admin.aclose()
        await server.process.stop()


async def test_a_new_url_of_mongodb_is_used_by_the_next_operation(tmp_path):
    """Use two stores: the embedded one has no passwords. The next operation goes to the other store."""
    servers = [await started(parts.start_mongo_store, tmp_path / name) for name in ("before", "after")]
    now = {"url": servers[0].url}
    mongo = Mongo(MongoOptions(now["url"], timeout_s=0.5, current_url=lambda: now["url"]))
    tenants: TenantStore = MongoTenants(mongo)
    try:
        await tenants.update("a", {"sa_limit": 1})
        now["url"] = servers[1].url
        assert await tenants.documents() == []
        await tenants.update("b", {"sa_limit": 1})
        assert [document["tenant_id"] for document in await tenants.documents()] == ["b"]
        now["url"] = servers[0].url
        assert [document["tenant_id"] for document in await tenants.documents()] == ["a"]
    finally:
        await mongo.aclose()
        assert not [task for task in asyncio.all_tasks() if "_close_later" in repr(task) and not task.done()]
        for server in servers:
            await server.process.stop()
