"""Stores and replicas, all real processes, and what a test does with all of them at once."""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pymongo

from extproc.local.ports import HOST, free_ports
from extproc.settings.load import field_names
from tests.missing import needing_parts
from tests.system.waiting import until

from .books import Books
from .clients import Caller, Door, chat
from .former import unpacked
from .processes import VALKEY, MongoServer, RedisServer, Replica
from .proxy import Proxy
from .sizes import REPLICAS, draw
from .watched import SentinelServer, WatchedRedis

_LIMITS_READ = re.compile(r"^tokenweir_limits_loaded_timestamp_seconds (\S+)", re.MULTILINE)
_TENANTS = re.compile(r"^tokenweir_limits_tenants (\S+)", re.MULTILINE)
# A request costs what it says: nothing is learned, and a prompt's bound is no more than its bytes.
_COSTS = {"TOKENWEIR_COST__LEARN": "false", "TOKENWEIR_COST__TEMPLATE_BOUND_TOKENS": "0"}


@dataclass(frozen=True)
class PlantOptions:
    """What differs between two plants.

    `proxied`: replicas reach their stores through proxies. `patient`: a decision may take as long as a busy machine
    needs (see tests/patient.py), for tests in which no store hangs. `former`: replicas start as version 0.1.
    `watched`: Redis has a replica and a Sentinel.
    """

    flavour: str = VALKEY
    keeps: str = "nothing"
    replicas: int = REPLICAS
    proxied: bool = False
    patient: bool = False
    former: bool = False
    watched: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Plant:
    """A plant that runs."""

    redis: RedisServer
    mongo: MongoServer
    replicas: list[Replica]
    doors: list[Door]
    database: object
    books: Books
    redis_wire: Proxy | None = None
    mongo_wire: Proxy | None = None
    former: Path | None = None
    """The code of version 0.1, where its replicas take part."""

    async def tenant(self, amount, *, mode="reserve", account=None, **fields):
        """A caller of a new tenant whose service accounts have so many tokens a month each. Every replica knows."""
        caller = Caller(f"tenant-{secrets.token_hex(4)}", account or f"robot-{secrets.token_hex(4)}")
        await self.limit(caller, amount, mode=mode, **fields)
        return caller

    async def tenants(self, *limits, **bound):
        """Create tenants with such limits (amount, mode), bound to a model if one is given. Return their callers.

        When it returns, every replica knows all of them.
        """
        callers = [Caller(f"tenant-{secrets.token_hex(4)}", f"robot-{secrets.token_hex(4)}") for _ in limits]
        written = time.time()
        await self.database["tenantLimitation"].insert_many(
            [_document(caller, *limit, **bound) for caller, limit in zip(callers, limits, strict=True)]
        )
        await self._known(written)
        return callers

    async def limit(self, caller, amount, *, mode="reserve", **fields):
        """Writes the tenant's document anew."""
        written = time.time()
        document = _document(caller, amount, mode) | fields
        await self.database["tenantLimitation"].replace_one({"tenant_id": caller.tenant}, document, upsert=True)
        await self._known(written)

    async def _known(self, written):
        count = await self.database["tenantLimitation"].count_documents({})
        await until(lambda: self._know(count, written), "every replica knows the limits", poll_s=0.05)

    async def _know(self, count, written):
        pages = await asyncio.gather(*(replica.metrics() for replica in self.replicas))
        read = [(float(_TENANTS.search(page)[1]), float(_LIMITS_READ.search(page)[1])) for page in pages]
        return all(tenants == count and at > written for tenants, at in read)

    async def prompt_cost(self, caller):
        """What the prompt of `chat` costs this caller: read from what an exchange holds."""
        exchange = await self.doors[0].admitted(caller, chat(50))

        async def told():
            return await self.doors[0].quota(caller)  # None where the machine is too busy to decide in time

        (row,) = await until(told, "the caller's quota")
        await exchange.head(status=500)
        await exchange.pieces([b"{}"])
        await self.books.nothing_held(caller)
        return row["held"] - 50

    async def serving(self, caller, *, within_s=90.0):
        """Returns once every replica decides again, and says after how many seconds the last one did."""
        started = time.monotonic()

        async def decides(door):
            async def told():
                return await door.quota(caller) is not None

            await until(told, "a replica serves again", within_s=within_s, poll_s=0.02)

        await asyncio.gather(*(decides(door) for door in self.doors))
        return time.monotonic() - started


def _document(caller, amount, mode, **bound):
    """Return a tenant's document. By month: a run that goes over midnight stays in one window."""
    limit = {"scope": "service_account", "window": "month", "amount": amount, "mode": mode, **bound}
    return {"tenant_id": caller.tenant, "limits": [limit], "updated_at": datetime.now(UTC)}


@contextlib.asynccontextmanager
async def planted(options, run_dir):
    """Starts a plant, and ends all of it on the way out."""
    async with contextlib.AsyncExitStack() as at_the_end:
        with needing_parts():
            yield await _start(options, run_dir, at_the_end)


async def _start(options, run_dir, at_the_end):
    former = unpacked(run_dir / "former") if options.former else None
    ports = iter(free_ports(4 + 2 * options.replicas))
    redis = _redis(options, run_dir, ports)
    mongo = MongoServer("mongo-store", run_dir / "mongo", next(ports))
    for server in (*redis.all_servers, mongo):
        at_the_end.push_async_callback(server.kill)  # nobody needs what they would write at their end
    await asyncio.gather(redis.start(), mongo.start())
    wires = []
    if options.proxied:
        for server in (redis, mongo):
            wires.append(await Proxy(server.port, draw("wire", server.name)).start())
            at_the_end.push_async_callback(wires[-1].stop)
    stores = _stores(redis, mongo, wires)
    replicas = []
    for n in range(options.replicas):
        folder = run_dir / f"replica-{n}"
        settings = {**_COSTS, **stores, **_spool(folder), **options.settings}
        name, port, metrics_port = f"replica-{n}", next(ports), next(ports)
        replica = Replica(
            name,
            folder,
            port,
            metrics_port=metrics_port,
            settings=settings,
            patient=options.patient,
            code=former,
        )
        replicas.append(replica)
    for replica in replicas:
        at_the_end.push_async_callback(replica.kill)
    await asyncio.gather(*(replica.start() for replica in replicas))
    doors = [Door(replica.address) for replica in replicas]
    for door in doors:
        at_the_end.push_async_callback(door.close)
    client = pymongo.AsyncMongoClient(mongo.url, tz_aware=True)
    at_the_end.push_async_callback(client.close)
    database = client["modelToken"]
    await _checkpointed(client, database)
    return Plant(redis, mongo, replicas, doors, database, Books(database, doors), *wires, former=former)


async def _checkpointed(client, database):
    """All tables are made, and in a checkpoint.

    SecantusDB sometimes can't be started again when it is killed before that, which says nothing of the product.
    """
    for name in ("tenantLimitation", *await database.list_collection_names()):
        await database[name].insert_one({"_id": "warm-up"})
        await database[name].delete_one({"_id": "warm-up"})
    await client.admin.command("fsync")


def _redis(options, run_dir, ports):
    kept = {"flavour": options.flavour, "keeps": options.keeps}
    if not options.watched:
        return RedisServer("redis", run_dir / "redis", next(ports), **kept)
    standby = RedisServer("standby", run_dir / "standby", next(ports), **kept)
    sentinel = SentinelServer("sentinel", run_dir / "sentinel", next(ports))
    return WatchedRedis("redis", run_dir / "redis", next(ports), **kept, standby=standby, sentinel=sentinel)


def _stores(redis, mongo, wires):
    redis_url, mongo_port = redis.replicas_url, mongo.port
    if wires:
        redis_url, mongo_port = f"redis://{HOST}:{wires[0].port}/0", wires[1].port
    return {
        "TOKENWEIR_REDIS__URL": redis_url,
        "TOKENWEIR_MONGO__URL": f"mongodb://{HOST}:{mongo_port}/?directConnection=true",
    }


def _spool(folder):
    """A spool of its own for each replica, as a volume of its own would be."""
    spool = {"TOKENWEIR_SPOOL__DIRECTORY": str(folder / "spool")}
    return spool if "spool.directory" in field_names() else {}
