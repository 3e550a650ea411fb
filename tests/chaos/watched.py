"""Run a Redis with a replica and a Sentinel, which makes the replica the master on a test's demand."""

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field

import redis.asyncio

from extproc.local import parts
from extproc.local.ports import HOST
from extproc.local.process import Command, start
from tests.system.waiting import until

from .processes import RedisServer, Server

_NAME = "mymaster"
# Sentinel takes no master for dead by itself: a test decides when.
_NEVER_MS = 3_600_000


@dataclass
class SentinelServer(Server):
    """Run one Sentinel. It begins without knowledge at each start."""

    master_port: int = 0

    @property
    def url(self):
        return f"redis+sentinel://{HOST}:{self.port}/{_NAME}/0"

    async def ask(self, *command):
        async with redis.asyncio.Redis(
            host=HOST, port=self.port, decode_responses=True, socket_timeout=10
        ) as client:
            return await client.execute_command("SENTINEL", *command)

    async def names(self, port):
        """Tell whether it names the server on this port as the master. Raise `OSError` if it does not answer."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(f"SENTINEL GET-MASTER-ADDR-BY-NAME {_NAME}\r\n".encode())
            lines = [await reader.readline() for _ in range(5)]
        finally:
            writer.transport.abort()
        return lines[-1].strip() == str(port).encode()

    async def knows_a_replica(self):
        found = await self.ask("REPLICAS", _NAME)
        return len(found) == 1 and "slave" in str(found)

    async def _start(self, name):
        self.run_dir.mkdir(parents=True, exist_ok=True)
        config = self.run_dir / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {_NAME} {HOST} {self.master_port} 1\n"
            f"sentinel down-after-milliseconds {_NAME} {_NEVER_MS}\nsentinel failover-timeout {_NAME} 2000\n"
        )
        argv = (str(parts.valkey_binary()), str(config), "--sentinel", "--bind", HOST, "--port", str(self.port))
        return await start(Command(name, argv, self.run_dir), self._answers)

    async def _answers(self):
        try:
            return await self.ask("MASTERS")
        except redis.exceptions.RedisError as error:
            raise OSError(str(error)) from error


@dataclass
class WatchedRedis(RedisServer):
    """Run a master and its replica, `standby`. The two change places in a failover."""

    standby: RedisServer = field(default=None)
    sentinel: SentinelServer = field(default=None)

    @property
    def all_servers(self):
        return (self, self.standby, self.sentinel)

    @property
    def replicas_url(self):
        return self.sentinel.url

    async def is_found(self):
        return await self.sentinel.names(self.port)

    async def start(self):
        await super().start()
        if self.standby.child is None:
            await self._start_the_others()

    async def anew(self, *, flavour, keeps):
        """Replace all three servers by empty ones."""
        for server in self.all_servers:
            await server.kill()
        for server in (self, self.standby):
            shutil.rmtree(server.run_dir / "data")
            server.flavour, server.keeps = flavour, keeps
        await super().start()
        await self._start_the_others()

    async def fail_over(self, down_s):
        """Kill the master; its replica takes its place `down_s` seconds later. Return when Sentinel names it."""
        await self.kill()
        self._change_places()
        await asyncio.sleep(down_s)
        await until(self._asked_to, "the Sentinel begins a failover", poll_s=0.02)
        await until(self._is_master, "the Sentinel names another master", poll_s=0.02)

    async def take_back(self):
        """Start the former master, as the replica of the present one."""
        self.standby.master = self
        await self.standby.start()

    async def _start_the_others(self):
        self.standby.master, self.sentinel.master_port = self, self.port
        await asyncio.gather(self.standby.start(), self.sentinel.start())
        await until(self._replicates, "the replica has what its master has")
        await until(self.sentinel.knows_a_replica, "the Sentinel knows the replica")

    async def _replicates(self):
        return b"master_link_status:up" in await self._said(self.standby, "INFO", "replication")

    async def _asked_to(self):
        with contextlib.suppress(redis.exceptions.ResponseError):  # no good replica yet, or in progress
            return await self.sentinel.ask("FAILOVER", _NAME)
        return await self._is_master()

    async def _is_master(self):
        return b"role:master" in await self._said(self, "INFO", "replication") and await self.is_found()

    async def _said(self, server, *command):
        """Return the raw answer of a server; empty if it does not answer."""
        try:
            async with redis.asyncio.Redis.from_url(server.url, socket_timeout=1) as client:
                client.response_callbacks.clear()
                return await client.execute_command(*command)
        except redis.exceptions.RedisError:
            return b""

    def _change_places(self):
        for what in ("name", "run_dir", "port", "child", "starts"):
            mine, others = getattr(self, what), getattr(self.standby, what)
            setattr(self, what, others)
            setattr(self.standby, what, mine)
