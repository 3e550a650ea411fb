"""The processor, started as the chart's Deployment says, with the addresses of this machine."""

import sys
from contextlib import asynccontextmanager

import httpx
import yaml

from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from tests.charts.helm import pick

from .envoys import HOST
from .strict import fields

_ADDRESSES = {"TOKENWEIR_SERVER__ADDRESS": 0, "TOKENWEIR_METRICS__ADDRESS": 1}


def runtime_values(template):
    """What the pod's annotation sets in its sidecar's Envoy."""
    config = template["metadata"].get("annotations", {}).get("proxy.istio.io/config", "{}")
    with fields(yaml.safe_load(config), "proxy.istio.io/config") as found:
        for about_its_end in ("holdApplicationUntilProxyStarts", "terminationDrainDuration"):
            found.take(about_its_end, None)
        return {name: yaml.safe_load(value) for name, value in found.take("runtimeValues", {}).items()}


@asynccontextmanager
async def processor(documents, run_dir):
    """Yields its port."""
    ports = free_ports(2)
    (container,) = pick(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    run_dir.mkdir(parents=True, exist_ok=True)
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "config"]
    settings = run_dir / mount["subPath"]
    (config_map,) = [
        each for each in documents if each["kind"] == "ConfigMap" and mount["subPath"] in each.get("data", {})
    ]
    settings.write_text(config_map["data"][mount["subPath"]], encoding="utf-8")
    environment = {each["name"]: str(each["value"]) for each in container["env"]}
    environment |= {name: f"{HOST}:{ports[place]}" for name, place in _ADDRESSES.items()}
    environment = {name: value.replace(mount["mountPath"], str(settings)) for name, value in environment.items()}
    arguments = [each.replace(mount["mountPath"], str(settings)) for each in container["args"]]
    command = Command(
        "processor", (sys.executable, "-m", "extproc", *arguments), run_dir, env=environment, stop_grace_s=1
    )

    async def ready():
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return "\ntokenweir_ready 1.0" in (await client.get(f"http://{HOST}:{ports[1]}/metrics")).text
            except httpx.TransportError:
                return False

    child = await start(command, ready)
    try:
        yield ports[0]
    finally:
        await child.stop()
