"""The whole stack on loopback ports: stores, model server, processor and Envoy, as child processes.

Started in the order in which they need each other, stopped in the reverse one. Every part but the processor can
be replaced by a real one that runs already.
"""

import asyncio
import http.client
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from extproc.local import parts
from extproc.local.envoy_config import EnvoyOptions
from extproc.local.issuer import TokenIssuer
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Child, Command, Probe, start

_LIMITS_READ: Final = re.compile(rb"^tokenweir_limits_loaded_timestamp_seconds (\S+)", re.MULTILINE)
SAMPLE_MODEL: Final = "tokenweir-sample"
_STOP_ENVOY_FIRST_S: Final = 12.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What differs between two stacks. None: an embedded part is started.

    `settings` are environment variables for the processor, such as `TOKENWEIR_DENIED__STYLE`; `model_arguments`
    go to the sample model server; `envoy` takes further `EnvoyOptions`; `envoy_binary` is another Envoy than the
    installed one.
    """

    upstream: str | None = None
    redis: str | None = None
    mongo: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    model_arguments: Sequence[str] = ()
    envoy: Mapping[str, Any] = field(default_factory=dict)
    envoy_binary: Path | None = None
    processors: int = 1
    gateway_port: int | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that runs."""

    run_dir: Path
    gateway: str
    upstream: str
    redis: str
    mongo: str
    metrics: tuple[str, ...]
    issuer: TokenIssuer
    embedded_model: bool
    processors: tuple[Child, ...]
    children: tuple[Child, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Settings with which the CLI works on this stack's stores."""
        return {"TOKENWEIR_REDIS__URL": self.redis, "TOKENWEIR_MONGO__URL": self.mongo}

    async def limits_read_at(self) -> float:
        """When the processor that is furthest behind last read the limits, in seconds since the epoch."""
        pages = await asyncio.gather(*(asyncio.to_thread(_get, url) for url in self.metrics))
        return min(float(_LIMITS_READ.findall(page)[0]) for page in pages)

    async def served(self) -> dict[str, Any]:
        """What the sample model server itself has counted."""
        counted: dict[str, Any] = json.loads(await asyncio.to_thread(_get, f"{self.upstream}/admin/usage"))
        return counted


@asynccontextmanager
async def running(
    options: StackOptions, run_dir: Path, report: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Stack]:
    """Starts a stack, and ends all of it on the way out. Raises `LocalError`.

    `report` is told of each part as it is started.
    """
    async with AsyncExitStack() as stack:
        yield await _start(options, run_dir, report, stack)


async def _start(
    options: StackOptions, run_dir: Path, report: Callable[[str], None], exits: AsyncExitStack
) -> Stack:
    ports = iter(free_ports(5 + 2 * options.processors))
    children: list[Child] = []

    def keep(child: Child) -> Child:
        exits.push_async_callback(child.stop)
        children.append(child)
        return child

    async def redis() -> str:
        if options.redis is not None:
            return options.redis
        report("Valkey (Redis protocol)")
        part = await parts.start_valkey(run_dir, next(ports))
        keep(part.process)
        return part.url

    async def mongo() -> str:
        if options.mongo is not None:
            return options.mongo
        report("SecantusDB (MongoDB protocol)")
        part = await parts.start_mongo_store(run_dir, next(ports))
        keep(part.process)
        return part.url

    async def upstream() -> str:
        if options.upstream is not None:
            return options.upstream
        report("sample model server")
        return await _start_model(run_dir, next(ports), options.model_arguments, keep)

    redis_url, mongo_url, upstream_url = await asyncio.gather(redis(), mongo(), upstream())
    stores = {"TOKENWEIR_REDIS__URL": redis_url, "TOKENWEIR_MONGO__URL": mongo_url}
    report("Tokenweir")
    processors = [
        await _start_processor(f"tokenweir-{n}", run_dir, next(ports), next(ports), {**stores, **options.settings})
        for n in range(options.processors)
    ]
    for processor in processors:
        keep(processor.child)
    report("Envoy")
    issuer = TokenIssuer()
    envoy_options = EnvoyOptions(
        listener_port=options.gateway_port or next(ports),
        admin_port=next(ports),
        jwks_json=issuer.jwks_json(),
        issuer=issuer.issuer,
        audience=issuer.audience,
        processor_addresses=tuple(p.address for p in processors),
        upstream_url=upstream_url,
        **options.envoy,
    )
    envoy = await parts.start_envoy(run_dir, envoy_options, options.envoy_binary)
    keep(envoy.process)
    return Stack(
        run_dir=run_dir,
        gateway=envoy.url,
        upstream=upstream_url,
        redis=redis_url,
        mongo=mongo_url,
        metrics=tuple(p.metrics for p in processors),
        issuer=issuer,
        embedded_model=options.upstream is None,
        processors=tuple(p.child for p in processors),
        children=tuple(children),
    )


async def _start_model(run_dir: Path, port: int, arguments: Sequence[str], keep: Callable[[Child], Child]) -> str:
    argv = (sys.executable, "-m", "extproc.local.model", "--host", HOST, "--port", str(port), *arguments)
    url = f"http://{HOST}:{port}"
    keep(await start(Command("model", argv, run_dir), _answers(f"{url}/health", b"")))
    return url


@dataclass(frozen=True, slots=True)
class _Processor:
    child: Child
    address: str
    metrics: str


async def _start_processor(
    name: str, run_dir: Path, port: int, metrics_port: int, settings: Mapping[str, str]
) -> _Processor:
    address, metrics = f"{HOST}:{port}", f"{HOST}:{metrics_port}"
    own = {"TOKENWEIR_SERVER__ADDRESS": address, "TOKENWEIR_METRICS__ADDRESS": metrics}
    argv = (sys.executable, "-m", "extproc", "serve")
    ready = _answers(f"http://{metrics}/metrics", b"\ntokenweir_ready 1.0")
    command = Command(name, argv, run_dir, env={**settings, **own}, stop_grace_s=_STOP_ENVOY_FIRST_S)
    return _Processor(await start(command, ready), address, f"http://{metrics}/metrics")


def _answers(url: str, wanted: bytes) -> Probe:
    async def ready() -> bool:
        return wanted in await asyncio.to_thread(_get, url)

    return ready


def _get(url: str) -> bytes:
    """A GET without proxies or redirects; raises OSError unless the answer is 200."""
    authority, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(authority, timeout=5)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise OSError(f"{url} answered {response.status}")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    else:
        return body
    finally:
        connection.close()
