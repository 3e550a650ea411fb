"""The real processes, each of which can be killed, stopped for a while, and started again where it was."""

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis.asyncio

from extproc.local import parts
from extproc.local.ports import HOST
from extproc.local.process import Child, Command, start
from tests.missing import missing
from tests.plaintext import plaintext_client
from tests.system.stacks import PATIENT

from . import former

VALKEY, REDIS = "valkey", "redis"  # flavours
KEPT = {
    "nothing": ("--appendonly", "no"),
    "aof": ("--appendonly", "yes", "--appendfsync", "always"),
    "aof everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    # A snapshot is taken when a test says so: what came after it is lost.
    "snapshot": ("--appendonly", "no", "--dbfilename", "dump.rdb"),
}


@dataclass
class Server:
    """A process with a port and a folder of its own, which outlive it."""

    name: str
    run_dir: Path
    port: int
    child: Child | None = None
    starts: int = 0

    @property
    def pid(self):
        return self.child.pid

    @property
    def logs(self):
        """What all its lives have written."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.run_dir.glob(f"{self.name}*.log")))

    async def start(self):
        self.starts += 1
        self.child = await self._start(f"{self.name}-{self.starts}")

    async def kill(self):
        """kill -9; returns when it is dead. One that is dead, or was never started, stays so."""
        if self.child is not None:
            if self.child.returncode is None:
                os.kill(self.pid, signal.SIGKILL)
            await self.child.wait()

    async def stop(self):
        """SIGTERM, and its exit status."""
        return await self.child.stop() if self.child is not None else 0

    async def restart(self):
        await self.kill()
        await self.start()

    @contextmanager
    def paused(self):
        """SIGSTOP, and SIGCONT on the way out."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.child.returncode is None:
                os.kill(self.pid, signal.SIGCONT)


@dataclass
class RedisServer(Server):
    """Valkey, or Debian's redis-server where a test asks for it, and what it keeps when it is killed (see `KEPT`)."""

    flavour: str = VALKEY
    keeps: str = "nothing"
    master: "RedisServer | None" = None
    """Names the server that this one is a replica of."""

    @property
    def url(self):
        return f"redis://{HOST}:{self.port}/0"

    @property
    def replicas_url(self):
        """Return the URL for the settings of Tokenweir."""
        return self.url

    @property
    def all_servers(self):
        return (self,)

    async def is_found(self):
        """Tell whether clients that look for Redis are led to this server."""
        return True

    async def ask(self, *command):
        async with redis.asyncio.Redis.from_url(self.url, socket_timeout=10) as client:
            return await client.execute_command(*command)

    async def anew(self, *, flavour, keeps):
        """Another Redis in its place, that knows nothing."""
        await self.kill()
        shutil.rmtree(self.run_dir / "data")
        self.flavour, self.keeps = flavour, keeps
        await self.start()

    async def _start(self, name):
        binary = parts.valkey_binary() if self.flavour == VALKEY else shutil.which("redis-server")
        if binary is None:
            missing("redis-server is not on the PATH: apt-get install redis-server")
        (self.run_dir / "data").mkdir(parents=True, exist_ok=True)
        argv = (str(binary), "--bind", HOST, "--port", str(self.port), "--dir", "data", "--save", "")
        argv += ("--maxmemory-policy", "noeviction", *KEPT[self.keeps])
        if self.master is not None:
            argv += ("--replicaof", f"{HOST} {self.master.port}")
        return await start(Command(name, argv, self.run_dir), self._answers)

    async def _answers(self):
        # LOADING is no answer yet.
        try:
            return await self.ask("PING")
        except redis.exceptions.RedisError as error:
            raise OSError(str(error)) from error


@dataclass
class MongoServer(Server):
    """The MongoDB-compatible store; what it acknowledged survives its death."""

    @property
    def url(self):
        return f"mongodb://{HOST}:{self.port}/?directConnection=true"

    async def _start(self, _name):
        return (await parts.start_mongo_store(self.run_dir, self.port)).process


@dataclass
class Replica(Server):
    """One `tokenweir serve`."""

    metrics_port: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    patient: bool = False
    code: Path | None = None
    """Of version 0.1; None: this version. It may be changed between two lives."""

    @property
    def address(self):
        return f"{HOST}:{self.port}"

    async def metrics(self):
        """Its metrics page."""
        async with plaintext_client() as client:
            return (await client.get(f"http://{HOST}:{self.metrics_port}/metrics")).text

    @property
    def rss_bytes(self):
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def fds(self):
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    async def _start(self, name):
        own = {
            "TOKENWEIR_SERVER__ADDRESS": self.address,
            "TOKENWEIR_METRICS__ADDRESS": f"{HOST}:{self.metrics_port}",
        }
        run, further = (("-P", str(PATIENT)) if self.patient else ("-m", "extproc")), {}
        if self.code is not None:
            run, further = former.program(self.code)
        argv = (sys.executable, *run, "serve")
        grace_s = float(self.settings.get("TOKENWEIR_SERVER__DRAIN_S", "5")) + 10
        command = Command(name, argv, self.run_dir, env=self.settings | own | further, stop_grace_s=grace_s)
        return await start(command, self._ready, deadline_s=120)

    async def _ready(self):
        try:
            return "\ntokenweir_ready 1.0" in await self.metrics()
        except httpx.HTTPError as error:
            raise OSError(str(error)) from error
