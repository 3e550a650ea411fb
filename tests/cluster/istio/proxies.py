"""Envoys that get all of their configuration from istiod, with the bootstrap that Istio's agent writes, shortened."""

import asyncio
import json

import httpx

from extproc.local.parts import envoy_binary
from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from tests.charts.live.envoys import HOST

_H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}
# The agent's defaults; pods add to them by the annotation proxy.istio.io/config.
_RUNTIME = {
    "re2.max_program_size.error_level": "32768",
    "envoy.reloadable_features.http_reject_path_with_fragment": False,
}


class Proxy:
    """A running Envoy. `admin` is its admin port."""

    def __init__(self, name, admin, child):
        self.name = name
        self.admin = admin
        self.child = child

    async def ask(self, path):
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return await client.get(f"http://{HOST}:{self.admin}{path}")

    async def dump(self):
        return (await self.ask("/config_dump?include_eds")).json()

    async def serves(self):
        """Whether a listener is there, warm: with its certificates."""
        return bool((await self.ask("/listeners")).text.strip())

    async def refused(self):
        """What istiod sent and Envoy did not take: the errors, by resource."""
        found = {}
        for part in (await self.dump())["configs"]:
            for held in part.values():
                for each in held if isinstance(held, list) else []:
                    if isinstance(each, dict) and "error_state" in each:
                        found[each.get("name", "?")] = each["error_state"].get("details")
        return found


async def run(stack, place, kind, *, plane, folder, secrets, runtime=None, binary=None):
    """Starts one for the place; `kind` is the role in its node id: sidecar, router or waypoint.

    `secrets` is the Unix socket that serves its certificate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (admin,) = free_ports(1)
    config = _bootstrap(
        place, kind, plane.address, secrets=secrets, admin=admin, runtime={**_RUNTIME, **(runtime or {})}
    )
    (folder / "envoy.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    options = ("--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1", "--disable-hot-restart")
    argv = (str(binary or envoy_binary()), "-c", "envoy.json", *options)
    proxy = Proxy(place.workload.name, admin, None)

    async def ready():
        try:
            return (await proxy.ask("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    proxy.child = await start(Command("envoy", argv, folder, stop_grace_s=1), ready)
    stack.push_async_callback(proxy.child.stop)
    return proxy


async def settled(check, *, within_s=60):
    """Waits until `check` returns something true, and returns that."""
    for _ in range(int(within_s / 0.1)):
        found = await check()
        if found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {check.__doc__ or check}")


def _bootstrap(place, kind, address, *, secrets, admin, runtime):
    workload, (host, _, port) = place.workload, address.rpartition(":")
    ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "node": {
            "id": f"{kind}~{place.address}~{workload.name}.{workload.namespace}~{workload.namespace}.svc.cluster.local",
            "cluster": f"{workload.name}.{workload.namespace}",
            "metadata": {
                "NAMESPACE": workload.namespace,
                "NAME": workload.name,
                "LABELS": place.labels,
                "SERVICE_ACCOUNT": workload.account,
                "INSTANCE_IPS": place.address,
                "CLUSTER_ID": "Kubernetes",
                "INTERCEPTION_MODE": "REDIRECT" if kind != "sidecar" or place.target else "NONE",
                "ISTIO_VERSION": "1.28.0",
            },
        },
        "admin": {"address": _address(HOST, admin)},
        "layered_runtime": {"layers": [{"name": "global config", "static_layer": runtime}]},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
                },
            }
        ],
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "set_node_on_first_message_only": True,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {
            "clusters": [
                _cluster("xds-grpc", _address(host, int(port))),
                _cluster("sds-grpc", {"pipe": {"path": str(secrets)}}),
            ]
        },
    }


def _cluster(name, address):
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": _H2,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}
