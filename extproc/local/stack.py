"""Run the whole stack on loopback ports: stores, model server, processor and Envoy, as child processes.

The parts start in the order of their dependencies and stop in the reverse order. Every part but the processor can
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
    """Configure a stack. None: an embedded part is started.

    `settings` are environment variables for the processor, such as `TOKENWEIR_DENIED__STYLE`. `model_arguments` go
    to the sample model server. `envoy` has further `EnvoyOptions`. `envoy_binary` replaces the installed Envoy.
    `serve` is the command that starts a processor. `admin_api` starts the admin API too.
    """

    upstream: str | None = None
    redis: str | None = None
    mongo: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    model_arguments: Sequence[str] = ()
    envoy: Mapping[str, Any] = field(default_factory=dict)
    envoy_binary: Path | None = None
    serve: Sequence[str] = (sys.executable, "-m", "extproc", "serve")
    processors: int = 1
    gateway_port: int | None = None
    admin_api: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Hold a running stack."""

    run_dir: Path
    gateway: str
    admin_port: int
    upstream: str
    redis: str
    mongo: str
    metrics: tuple[str, ...]
    issuer: TokenIssuer
    embedded_model: bool
    processors: tuple[Child, ...]
    children: tuple[Child, ...]
    admin_api: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Return settings for the CLI, to use this stack's stores."""
        return {"TOKENWEIR_REDIS__URL": self.redis, "TOKENWEIR_MONGO__URL": self.mongo}

    async def limits_read_at(self) -> float:
        """Return the oldest of the processors' last reads of the limits, in seconds since the epoch."""
        pages = await asyncio.gather(*(asyncio.to_thread(_get, url) for url in self.metrics))
        return min(float(_LIMITS_READ.findall(page)[0]) for page in pages)

    async def served(self) -> dict[str, Any]:
        """Return the counts of the sample model server itself."""
        counted: dict[str, Any] = json.loads(await asyncio.to_thread(_get, f"{self.upstream}/admin/usage"))
        return counted


@asynccontextmanager
async def running(
    options: StackOptions, run_dir: Path, report: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Stack]:
    """Start a stack, and stop all of it at the end. Raise `LocalError`.

    `report` is called with the name of each part that starts.
    """
    async with AsyncExitStack() as at_the_end:
        starter = _Starter(options, run_dir, report, at_the_end)
        yield await starter.start()


class _Starter:
    """Start one part after the other. From its start on, each is stopped at the end."""

    def __init__(
        self, options: StackOptions, run_dir: Path, report: Callable[[str], None], at_the_end: AsyncExitStack
    ) -> None:
        self._options = options
        self._run_dir = run_dir
        self._report = report
        self._at_the_end = at_the_end
        self._ports = iter(free_ports(6 + 2 * options.processors))
        self._children: list[Child] = []

    async def start(self) -> Stack:
        redis, mongo, upstream = await asyncio.gather(self._redis(), self._mongo(), self._upstream())
        stores = {"TOKENWEIR_REDIS__URL": redis, "TOKENWEIR_MONGO__URL": mongo}
        self._report("Tokenweir")
        settings = {**stores, **self._options.settings}
        processors = [await self._processor(number, settings) for number in range(self._options.processors)]
        issuer, admin_port = TokenIssuer(), next(self._ports)
        gateway = await self._envoy(issuer, upstream, tuple(p.address for p in processors), admin_port)
        admin_api = await self._admin_api(settings) if self._options.admin_api else None
        return Stack(
            run_dir=self._run_dir,
            gateway=gateway,
            admin_port=admin_port,
            upstream=upstream,
            redis=redis,
            mongo=mongo,
            metrics=tuple(p.metrics for p in processors),
            issuer=issuer,
            embedded_model=self._options.upstream is None,
            processors=tuple(p.child for p in processors),
            children=tuple(self._children),
            admin_api=admin_api,
        )

    def _keep(self, child: Child) -> None:
        self._at_the_end.push_async_callback(child.stop)
        self._children.append(child)

    async def _redis(self) -> str:
        if self._options.redis is not None:
            return self._options.redis
        self._report("Valkey (Redis protocol)")
        part = await parts.start_valkey(self._run_dir, next(self._ports))
        self._keep(part.process)
        return part.url

    async def _mongo(self) -> str:
        if self._options.mongo is not None:
            return self._options.mongo
        self._report("SecantusDB (MongoDB protocol)")
        part = await parts.start_mongo_store(self._run_dir, next(self._ports))
        self._keep(part.process)
        return part.url

    async def _upstream(self) -> str:
        if self._options.upstream is not None:
            return self._options.upstream
        self._report("sample model server")
        url = f"http://{HOST}:{next(self._ports)}"
        argv = (sys.executable, "-m", "extproc.local.model", "--host", HOST, "--port", url.rpartition(":")[2])
        command = Command("model", (*argv, *self._options.model_arguments), self._run_dir)
        self._keep(await start(command, _answers(f"{url}/health", b"")))
        return url

    async def _processor(self, number: int, settings: Mapping[str, str]) -> "_Processor":
        processor = await _start_processor(
            self._options.serve,
            f"tokenweir-{number}",
            self._run_dir,
            port=next(self._ports),
            metrics_port=next(self._ports),
            settings=settings,
        )
        self._keep(processor.child)
        return processor

    async def _admin_api(self, settings: Mapping[str, str]) -> str:
        self._report("admin API")
        url = f"http://{HOST}:{next(self._ports)}"
        own = {"TOKENWEIR_ADMIN__ADDRESS": url.removeprefix("http://")}
        argv = (sys.executable, "-m", "extproc", "admin", "serve")
        command = Command("admin-api", argv, self._run_dir, env={**settings, **own})
        self._keep(await start(command, _answers(f"{url}/readyz", b"")))
        return url

    async def _envoy(
        self, issuer: TokenIssuer, upstream: str, processors: tuple[str, ...], admin_port: int
    ) -> str:
        self._report("Envoy")
        options = EnvoyOptions(
            listener_port=self._options.gateway_port or next(self._ports),
            admin_port=admin_port,
            jwks_json=issuer.jwks_json(),
            issuer=issuer.issuer,
            audience=issuer.audience,
            processor_addresses=processors,
            upstream_url=upstream,
            **self._options.envoy,
        )
        envoy = await parts.start_envoy(self._run_dir, options, self._options.envoy_binary)
        self._keep(envoy.process)
        return envoy.url


@dataclass(frozen=True, slots=True)
class _Processor:
    child: Child
    address: str
    metrics: str


async def _start_processor(
    serve: Sequence[str], name: str, run_dir: Path, *, port: int, metrics_port: int, settings: Mapping[str, str]
) -> _Processor:
    address, metrics = f"{HOST}:{port}", f"{HOST}:{metrics_port}"
    own = {"TOKENWEIR_SERVER__ADDRESS": address, "TOKENWEIR_METRICS__ADDRESS": metrics}
    ready = _answers(f"http://{metrics}/metrics", b"\ntokenweir_ready 1.0")
    command = Command(name, tuple(serve), run_dir, env={**settings, **own}, stop_grace_s=_STOP_ENVOY_FIRST_S)
    return _Processor(await start(command, ready), address, f"http://{metrics}/metrics")


def _answers(url: str, wanted: bytes) -> Probe:
    async def ready() -> bool:
        return wanted in await asyncio.to_thread(_get, url)

    return ready


def _get(url: str) -> bytes:
    """Send a GET without proxies or redirects. Raise OSError unless the answer is 200."""
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
