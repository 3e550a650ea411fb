"""Start the processes of all variants at once, each on its core, and stop all of them at the end."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import bson

from benchmarks import envoys
from benchmarks.counts import Counts, MeterCounts, SinkCounts, StoreCounts
from benchmarks.litellm_proxy import MASTER_KEY, SpendCounts, installed, start_litellm
from benchmarks.machine import Cores, pinned
from benchmarks.programs import Programs
from benchmarks.starting import Processor, start_envoy, start_listener, start_noop, start_tokenweir
from benchmarks.variants import STORE, Kind, Variant, tenant_documents
from extproc.local.errors import LocalError
from extproc.local.issuer import TokenIssuer
from extproc.local.parts import Part, start_mongo_store, start_valkey
from extproc.local.ports import free_ports
from extproc.local.process import Child

_TOKEN_TTL_S = 86_400


@dataclass(slots=True)
class Stack:
    """Hold the running processes of one stack by role: envoy, processor, redis, service, store."""

    gateway_port: int = 0
    admin_port: int | None = None
    roles: dict[str, Child] = field(default_factory=dict)
    redis_port: int | None = None
    token: str | None = None
    """Give what every caller shows; None: a JWT of its tenant."""
    counts: Counts | None = None
    """Tell what the ledger or the service recorded; None: nothing is recorded."""


@dataclass(slots=True)
class Fleet:
    """Hold what runs."""

    programs: Programs
    cores: Cores
    run_dir: Path
    upstream_port: int
    upstream: Child
    issuer: TokenIssuer
    stacks: dict[str, Stack] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Tell by name which variants of others did not start, and why."""

    def token(self, tenant: str) -> str:
        """Return a token of this tenant's service account."""
        return self.issuer.issue(f"bench@{tenant}.example.com", tenant=tenant, ttl_s=_TOKEN_TTL_S)


@asynccontextmanager
async def running(
    variants: Iterable[Variant],
    programs: Programs,
    cores: Cores,
    run_dir: Path,
    *,
    broken_upstream: bool = False,
    program: tuple[str, ...] = ("extproc",),
) -> AsyncIterator[Fleet]:
    """Start what the variants need, Tokenweir by the module `program`.

    Raise `LocalError` if a part is missing or does not start.
    """
    async with AsyncExitStack() as at_the_end:
        port = free_ports(1)[0]
        argv = (str(programs.upstream), str(port), *(["broken"] if broken_upstream else []))
        with pinned(cores.front):
            upstream = await start_listener("upstream", argv, run_dir, port)
        at_the_end.push_async_callback(upstream.stop)
        fleet = Fleet(programs, cores, run_dir, port, upstream, TokenIssuer())
        starter = _Starter(fleet, at_the_end, program)
        for variant in variants:
            if variant.stack not in fleet.stacks:
                fleet.stacks[variant.stack] = Stack()
                try:
                    await starter.start(variant)
                except LocalError as error:
                    if variant.kind is not Kind.LITELLM:
                        raise
                    fleet.failed[variant.name] = f"it did not start: {error}".splitlines()[0]
        yield fleet


class _Starter:
    def __init__(self, fleet: Fleet, at_the_end: AsyncExitStack, program: tuple[str, ...]) -> None:
        self._fleet = fleet
        self._program = program
        self._at_the_end = at_the_end

    async def start(self, variant: Variant) -> None:
        stack, run_dir = self._fleet.stacks[variant.stack], self._fleet.run_dir / variant.stack
        await asyncio.to_thread(run_dir.mkdir, parents=True, exist_ok=True)
        shape: envoys.Shape | None = None
        processor: Processor | None = None
        match variant.kind:
            case Kind.ALONE:
                shape = envoys.alone
            case Kind.JWT:
                shape = envoys.jwt_and_log
            case Kind.TALK:
                shape = envoys.talk(await self._meter(stack, run_dir, in_redis=variant.stack == "talk-redis"))
            case Kind.NOOP:
                with pinned(self._fleet.cores.back):
                    processor = await start_noop(run_dir, variant.transport)
                self._keep(stack, "processor", processor.child)
                shape = None if variant.messages is None else envoys.sending(variant.messages)
            case Kind.TOKENWEIR:
                processor = await self._tokenweir(variant, stack, run_dir)
            case Kind.LITELLM:
                await self._litellm(stack, run_dir)
                return
        await self._envoy(stack, run_dir, shape, processor)

    def _keep(self, stack: Stack, role: str, child: Child) -> None:
        self._at_the_end.push_async_callback(child.stop)
        stack.roles[role] = child

    async def _envoy(
        self, stack: Stack, run_dir: Path, shape: envoys.Shape | None, processor: Processor | None
    ) -> None:
        listener, admin = free_ports(2)
        named = {} if processor is None else {"processor": processor.address}
        options = envoys.options(
            listener=listener,
            admin=admin,
            issuer=self._fleet.issuer,
            upstream_port=self._fleet.upstream_port,
            **named,
        )
        with pinned(self._fleet.cores.front):
            child = await start_envoy(run_dir, envoys.configuration(options, shape), listener)
        self._keep(stack, "envoy", child)
        stack.gateway_port, stack.admin_port = listener, admin

    async def _valkey(self, stack: Stack, run_dir: Path) -> Part:
        stack.redis_port = free_ports(1)[0]
        with pinned(self._fleet.cores.back):
            part = await start_valkey(run_dir, stack.redis_port)
        self._keep(stack, "redis", part.process)
        return part

    async def _meter(self, stack: Stack, run_dir: Path, *, in_redis: bool) -> int:
        port = free_ports(1)[0]
        argv: tuple[str, ...] = (str(self._fleet.programs.meter), str(port))
        if in_redis:
            await self._valkey(stack, run_dir)
            argv = (*argv, str(stack.redis_port))
        with pinned(self._fleet.cores.back):
            self._keep(stack, "service", await start_listener("meter", argv, run_dir, port))
        stack.counts = MeterCounts(port)
        return port

    async def _litellm(self, stack: Stack, run_dir: Path) -> None:
        await self._valkey(stack, run_dir)
        assert stack.redis_port is not None
        stack.gateway_port, program = free_ports(1)[0], await asyncio.to_thread(installed)
        with pinned(self._fleet.cores.back):
            proxy = await start_litellm(
                program, run_dir, stack.gateway_port, self._fleet.upstream_port, stack.redis_port
            )
        self._keep(stack, "proxy", proxy)
        counts = SpendCounts(stack.redis_port)
        stack.counts, stack.token = counts, MASTER_KEY
        self._at_the_end.callback(counts.close)

    async def _tokenweir(self, variant: Variant, stack: Stack, run_dir: Path) -> Processor:
        redis = await self._valkey(stack, run_dir)
        mongo_url = await (self._store if variant.stack == STORE else self._sink)(stack, run_dir)
        with pinned(self._fleet.cores.back):
            processor = await start_tokenweir(run_dir, redis.url, mongo_url, variant.transport, self._program)
        self._keep(stack, "processor", processor.child)
        return processor

    async def _sink(self, stack: Stack, run_dir: Path) -> str:
        port, tenants = free_ports(1)[0], run_dir / "tenants.bson"
        await asyncio.to_thread(tenants.write_bytes, b"".join(map(bson.encode, tenant_documents())))
        argv = (str(self._fleet.programs.sink), str(port), str(tenants))
        with pinned(self._fleet.cores.back):
            self._keep(stack, "store", await start_listener("sink", argv, run_dir, port))
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        stack.counts = SinkCounts(url)
        self._at_the_end.callback(stack.counts.close)
        return url

    async def _store(self, stack: Stack, run_dir: Path) -> str:
        with pinned(self._fleet.cores.back):
            part = await start_mongo_store(run_dir, free_ports(1)[0])
        self._keep(stack, "store", part.process)
        counts = StoreCounts(part.url)
        stack.counts = counts
        self._at_the_end.callback(counts.close)
        await asyncio.to_thread(counts.write_tenants, tenant_documents())
        return part.url
