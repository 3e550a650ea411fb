"""Draw the pictures of docs/dashboards anew, from a live run: the local stack, the admin API, and a real Prometheus.

    python -m tests.charts.draw_dashboards --minutes 5
    python -m tests.charts.draw_dashboards --minutes 1 --keep tests/charts/answers --into pictures

Some tenants ask two models for so long. One of them uses up its limit, one is denied now and then. The second form
keeps the answers that the tests draw.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from pymongo import AsyncMongoClient

from extproc.local import stack as stacks
from extproc.local.ports import HOST, free_ports
from extproc.local.stack import Stack, StackOptions

from . import prometheus

ROOT = Path(__file__).parents[2]
RENDER = ROOT / "deploy/grafana/render.py"
MODELS = ("qwen-large", "llama-small")
SETTINGS = {
    "TOKENWEIR_METRICS__LIMITS_INTERVAL_S": "2",
    "TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5",
    "TOKENWEIR_COST__TYPICAL_OUTPUT_TOKENS": "64",
    "TOKENWEIR_MODELS": (
        '[{"match": "*large", "prices": {"input": 250, "cached_input": 25, "output": 1000}},'
        ' {"match": "*small", "prices": {"input": 50, "cached_input": 5, "output": 200}}]'
    ),
}
SCRAPE_S = 2


@dataclass(frozen=True)
class Tenant:
    """One that asks `rate` times a second in the mean, by some service accounts, and grows by `growth` a minute."""

    name: str
    rate: float
    limits: tuple[dict[str, object], ...]
    growth: float = 0.0
    accounts: int = 3


TENANTS = (
    Tenant("support", 3.0, ({"scope": "tenant", "window": "day", "amount": 400_000},)),
    Tenant("search", 2.0, ({"scope": "tenant", "window": "day", "amount": 90_000},), growth=0.2),
    Tenant(
        "research",
        1.0,
        (
            {"scope": "tenant", "window": "month", "amount": 500_000},
            {"scope": "service_account", "window": "hour", "amount": 30_000},
        ),
    ),
    Tenant("batch", 2.0, ({"scope": "tenant", "window": "day", "amount": 12_000},), accounts=1),
    Tenant("trial", 0.7, ({"scope": "service_account", "window": "minute", "amount": 600},)),
)


async def main(minutes: float, into: Path, keep: Path | None = None) -> int:
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="tokenweir-pictures-"))
    served = [f"--model={name}" for name in MODELS]
    async with stacks.running(StackOptions(settings=SETTINGS, model_arguments=served), folder) as stack:
        await _give_limits(stack)
        labels = {"namespace": "tokenweir", "pod": "tokenweir-0"}
        targets = [{"targets": [url.split("/")[2]], "labels": labels} for url in stack.metrics]
        jobs = [{"job_name": "tokenweir", "static_configs": targets}]
        config = {"global": {"scrape_interval": f"{SCRAPE_S}s"}, "scrape_configs": jobs}
        with admin_api(stack, folder) as (address, token), prometheus.running(folder, config) as watching:
            await _traffic(stack, minutes * 60)
            await asyncio.sleep(3 * SCRAPE_S)
            command = [sys.executable, str(RENDER), "--prometheus", watching.url, "--admin-api", address]
            command += ["--seconds", f"{minutes * 60:.0f}", "--rate", "30", "--into", str(into)]
            if keep is not None:
                command += ["--keep", str(keep), "--points", "12"]
            environment = os.environ | {"TOKENWEIR_ADMIN_TOKEN": token}
            of_all = ["tokenweir", "tokenweir-tenants", "tokenweir-models", "tokenweir-finance"]
            for more in (of_all, ["tokenweir-accounts", "--tenant", "research"]):
                await asyncio.to_thread(subprocess.run, [*command, *more], check=True, env=environment)
    return 0


async def _give_limits(stack: Stack) -> None:
    async with AsyncMongoClient(stack.mongo) as client:
        limits = client["modelToken"]["tenantLimitation"]
        await limits.insert_many([{"tenant_id": each.name, "limits": list(each.limits)} for each in TENANTS])
    await asyncio.sleep(3)  # the processor polls


@contextlib.contextmanager
def admin_api(stack: Stack, folder: Path) -> Iterator[tuple[str, str]]:
    """Start it beside the stack. Yield its address and a token."""
    (port,) = free_ports(1)
    environment = os.environ | stack.environment | {"TOKENWEIR_ADMIN__ADDRESS": f"{HOST}:{port}"}
    command = [sys.executable, "-m", "extproc", "admin"]
    issue = [*command, "token", "issue", "--name", "pictures", "--role", "viewer", "--expires", "1d", "--json"]
    issued = subprocess.run(issue, check=True, env=environment, stdout=subprocess.PIPE)
    with (folder / "admin.log").open("wb") as log:
        process = subprocess.Popen([*command, "serve"], env=environment, stdout=log, stderr=log)
        try:
            yield f"http://{HOST}:{port}", json.loads(issued.stdout)["token"]
        finally:
            process.terminate()
            process.wait(20)


async def _traffic(stack: Stack, seconds: float) -> None:
    rng, end = random.Random(17), time.monotonic() + seconds
    bounds = httpx.Limits(max_connections=50)
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60, limits=bounds) as client,
        asyncio.TaskGroup() as group,
    ):
        for tenant in TENANTS:
            group.create_task(_ask(client, stack, tenant, rng, end))


async def _ask(client: httpx.AsyncClient, stack: Stack, tenant: Tenant, rng: random.Random, end: float) -> None:
    names = [f"{tenant.name}-{number + 1}" for number in range(tenant.accounts)]
    tokens = [stack.issuer.issue(name, tenant=tenant.name) for name in names]
    begin = time.monotonic()
    while (now := time.monotonic()) < end:
        wave = 1 + 0.4 * math.sin((now - begin) / 40)
        await asyncio.sleep(rng.expovariate((tenant.rate + tenant.growth * (now - begin) / 60) * wave))
        text = "word " * rng.randint(10, 400)
        body = {"model": rng.choice(MODELS), "messages": [{"role": "user", "content": text}], "max_tokens": 100}
        token = rng.choices(tokens, range(len(tokens), 0, -1))[0]
        answer = await client.post(
            f"{stack.gateway}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code in {200, 429}, answer.text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--into", type=Path, default=ROOT / "docs/dashboards")
    parser.add_argument("--keep", type=Path, help="keeps the answers too, with few points: for the tests")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.into, given.keep)))
