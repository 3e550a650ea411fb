"""Install LiteLLM's proxy in an environment of its own, and start it with a budget.

Budgets of keys, users and teams need PostgreSQL and Prisma's engine, which no Python package brings. The budget of
a provider needs neither: the proxy keeps that spend in Redis, compares it before each request, and adds after it.
So this row is LiteLLM with one shared budget, the master key instead of JWTs, and no database: less work than with
budgets of keys.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import redis
import yaml

from benchmarks.counts import Recorded
from benchmarks.errors import CannotRunError
from benchmarks.programs import CACHE
from extproc.local.ports import HOST
from extproc.local.process import Child, Command, start

# 1.107 was withdrawn, and the dependencies of 1.108 and 1.109 could not be resolved when this was written.
VERSION: Final = "1.106.12"
MASTER_KEY: Final = "sk-bench"
_COST: Final = 1e-6  # US dollars a token, so that spend gives the tokens
_READY_S: Final = 120.0


def installed(cache: Path = CACHE) -> Path:
    """Return the proxy's program, installed if it is missing; takes minutes. Raise `CannotRunError`."""
    folder = cache / f"litellm-{VERSION}"
    program = folder / "bin" / "litellm"
    if program.is_file():
        return program
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for argv in ((sys.executable, "-m", "venv", str(folder)), (*pip, f"litellm[proxy]=={VERSION}")):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotRunError(f"LiteLLM {VERSION} can't be installed: {last}")
    return program


async def start_litellm(program: Path, run_dir: Path, port: int, upstream_port: int, redis_port: int) -> Child:
    """Start the proxy with one worker. Raise `ChildError`."""
    path = run_dir / "litellm.yaml"
    await asyncio.to_thread(path.write_text, yaml.safe_dump(_configuration(upstream_port, redis_port)))
    # The program's first line names an interpreter by its path, which a moved or copied cache no longer has.
    argv = (
        str(program.parent / "python"),
        str(program),
        "--config",
        str(path),
        "--host",
        HOST,
        "--port",
        str(port),
        "--num_workers",
        "1",
    )
    env = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "PYTHONPATH": os.devnull,
    }
    return await start(Command("litellm", argv, run_dir, env=env), _ready(port), deadline_s=_READY_S)


class SpendCounts:
    """Ask Redis for the proxy's spend."""

    def __init__(self, redis_port: int) -> None:
        self._client = redis.Redis(host=HOST, port=redis_port)

    def read(self) -> Recorded:
        spent: Any = self._client.get("provider_spend:openai:1d")
        return Recorded(None, round(float(spent or 0) / _COST))

    def close(self) -> None:
        self._client.close()


def _configuration(upstream_port: int, redis_port: int) -> dict[str, Any]:
    model = {
        "model": "openai/bench",
        "api_base": f"http://{HOST}:{upstream_port}/v1",
        "api_key": "none",
        "input_cost_per_token": _COST,
        "output_cost_per_token": _COST,
    }
    return {
        "model_list": [{"model_name": "bench", "litellm_params": model}],
        "router_settings": {
            "provider_budget_config": {"openai": {"budget_limit": 1e9, "time_period": "1d"}},
            "redis_host": HOST,
            "redis_port": redis_port,
        },
        "general_settings": {"master_key": MASTER_KEY},
    }


def _ready(port: int) -> Callable[[], Any]:
    async def ready() -> bool:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(b"GET /health/readiness HTTP/1.0\r\n\r\n")
            return b" 200 " in (await reader.read()).split(b"\r\n", 1)[0]
        finally:
            writer.close()

    return ready
