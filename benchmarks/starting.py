"""Start single processes of the benchmark."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.variants import NATIVE
from extproc.local.parts import envoy_binary
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Child, Command, Probe, start

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Processor:
    """Hold an external processor and its address."""

    child: Child
    address: str


async def start_listener(
    name: str, argv: tuple[str, ...], run_dir: Path, port: int, env: dict[str, str] | None = None
) -> Child:
    """Start a program, and return it once it listens on the port. Raise `ChildError`."""
    return await start(Command(name, argv, run_dir, env=env), _listens(port))


async def start_noop(run_dir: Path, transport: str) -> Processor:
    """Start the no-op processor of a transport. Raise `ChildError`."""
    port = free_ports(1)[0]
    module = "benchmarks.noop_native" if transport == NATIVE else "benchmarks.noop_grpc"
    child = await start_listener("noop", (sys.executable, "-m", module, str(port)), run_dir, port, _paths())
    return Processor(child, f"{HOST}:{port}")


async def start_tokenweir(
    run_dir: Path, redis_url: str, mongo_url: str, transport: str, program: tuple[str, ...] = ("extproc",)
) -> Processor:
    """Start Tokenweir by a module and its first arguments, and return it once it serves. Raise `ChildError`."""
    port, metrics = free_ports(2)
    env = {
        **_paths(),
        "TOKENWEIR_SERVER__ADDRESS": f"{HOST}:{port}",
        "TOKENWEIR_METRICS__ADDRESS": f"{HOST}:{metrics}",
        "TOKENWEIR_REDIS__URL": redis_url,
        "TOKENWEIR_MONGO__URL": mongo_url,
        "TOKENWEIR_SERVER__TRANSPORT": transport,
    }
    command = Command("tokenweir", (sys.executable, "-m", *program, "serve"), run_dir, env=env, stop_grace_s=12.0)
    return Processor(await start(command, _is_ready(metrics)), f"{HOST}:{port}")


async def start_envoy(run_dir: Path, configuration: str, listener: int) -> Child:
    """Start Envoy with one worker thread. Raise `ChildError`, `MissingPartError`."""
    path = run_dir / "envoy.yaml"
    await asyncio.to_thread(path.write_text, configuration, encoding="utf-8")
    argv = (str(envoy_binary()), "-c", str(path), "--concurrency", "1", "--log-level", "warning")
    command = Command("envoy", (*argv, "--drain-time-s", "1", "--disable-hot-restart"), run_dir)
    return await start(command, _listens(listener))


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)}


def _listens(port: int) -> Probe:
    async def ready() -> bool:
        _, writer = await asyncio.open_connection(HOST, port)
        writer.close()
        return True

    return ready


def _is_ready(metrics_port: int) -> Probe:
    async def ready() -> bool:
        reader, writer = await asyncio.open_connection(HOST, metrics_port)
        try:
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"\ntokenweir_ready 1.0" in await reader.read()
        finally:
            writer.close()

    return ready
