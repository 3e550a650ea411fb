"""A real Redis Cluster, and a master with its Sentinel, for tests to break."""

from contextlib import AsyncExitStack

import pytest_asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError

from extproc.local.ports import HOST, free_ports
from tests.changing import replace

from .servers import Restartable, program, running, until

CLUSTER = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0")
CLUSTER += ("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0")
RANGES = [(0, 5460), (5461, 10922), (10923, 16383)]


@pytest_asyncio.fixture
async def nodes(tmp_path):
    """Three nodes of a Cluster, each with a third of the slots, and the fourth a replica of the first."""
    ports = free_ports(8)
    made = [
        Restartable("valkey", tmp_path / f"n{n}", port, *CLUSTER, "--cluster-port", str(ports[n + 4]))
        for n, port in enumerate(ports[:4])
    ]
    async with running(*made), AsyncExitStack() as stack:
        plain = [await stack.enter_async_context(node.plain()) for node in made]
        for one, (first, last) in zip(plain, RANGES, strict=False):
            await one.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for n in range(1, 4):
            await plain[n].execute_command("CLUSTER", "MEET", HOST, ports[0], ports[4])
        await until(lambda: _knows(plain, 4))
        await plain[3].execute_command("CLUSTER", "REPLICATE", await plain[0].execute_command("CLUSTER", "MYID"))
        await until(lambda: _replicates(plain[3]))
        yield made


async def _knows(plain, count):
    infos = [await one.execute_command("CLUSTER", "INFO") for one in plain]
    texts = [info if isinstance(info, str) else "\n".join(f"{k}:{v}" for k, v in info.items()) for info in infos]
    return all("cluster_state:ok" in text and f"cluster_known_nodes:{count}" in text for text in texts)


async def _replicates(plain):
    info = await plain.info("replication")
    return info["role"] == "slave" and info["master_link_status"] == "up"


def cluster_url(nodes):
    return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in nodes[:2])


def on_node(partition):
    slot = key_slot(f"{{{partition}}}".encode())
    return next(n for n, (first, last) in enumerate(RANGES) if first <= slot <= last)


async def caught_up(master, replica):
    async with master.plain() as one, replica.plain() as two:
        return await one.dbsize() == await two.dbsize()


async def is_master(plain):
    try:
        return (await plain.info("replication"))["role"] == "master"
    except RedisError:  # a Sentinel drops the connections of whom it promotes
        return False


@pytest_asyncio.fixture
async def sentinels(tmp_path):
    """A master, its replica, and the Sentinel that watches them: its url too."""
    ports = free_ports(3)
    quick = ("--repl-diskless-sync-delay", "0")
    master = Restartable("valkey", tmp_path / "m", ports[0], *quick)
    replica = Restartable("valkey", tmp_path / "r", ports[1], *quick, "--replicaof", f"{HOST} {ports[0]}")
    config = tmp_path / "s" / "sentinel.conf"
    config.parent.mkdir()
    config.write_text(
        f"sentinel monitor mymaster {HOST} {ports[0]} 1\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
    )
    sentinel = Restartable("valkey", config.parent, ports[2])
    argv = (program("valkey"), str(config), "--sentinel", "--bind", HOST, "--port", str(ports[2]))
    sentinel._command = replace(sentinel._command, argv=argv)
    async with running(master, replica, sentinel):
        async with replica.plain() as plain:
            await until(lambda: _replicates(plain))
        async with sentinel.plain() as plain:
            await until(lambda: _sees_replica(plain))
        yield master, replica, f"redis+sentinel://{HOST}:{ports[2]}/mymaster/0"


async def _sees_replica(plain):
    found = await plain.execute_command("SENTINEL", "REPLICAS", "mymaster")
    return len(found) == 1 and "slave" in str(found)
