"""What an istiod that reads the cluster makes of the charts' objects, for the Services and pods that KServe really made.

`tests/cluster/istio` lets requests pass; there the Services are written by hand. Here nothing is asked. Two Envoys get the
configuration of a gateway and of a model's sidecar from the istiod that ISTIOD_ADDRESS names, and it is read from them.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from extproc.admin.envoy_dump import read_dump
from extproc.local.issuer import TokenIssuer
from extproc.local.ports import free_ports
from tests.charts.helm import CHARTS, Document
from tests.charts.live.identities import Authority
from tests.charts.live.objects import Workload
from tests.missing import missing, needing_parts

from . import models, pods
from .cluster import Cluster
from .istio import proxies, secrets
from .istio.checks import check_order, check_routes, check_tcp_chains
from .istio.placing import Place, gateway_patches, objects, sidecar_patches
from .istio.plane import Plane
from .models import Release
from .test_ways import AT_PODS, install_meter

pytestmark = [pytest.mark.needs("kserve", "istiod"), pytest.mark.asyncio(loop_scope="session")]
MODULE: dict[str, Any] = {"scope": "module", "loop_scope": "session"}
SAMPLE = CHARTS / "kserve-general" / "ci" / "full-llm-canary.yaml"
TRANSFORMER = CHARTS / "kserve-model" / "ci" / "transformer-limits.yaml"
VARIANTS = ("primary-predictor", "canary-predictor")


class Seen:
    """A release, and the configuration that istiod gave to its gateway and to the sidecars of its pods."""

    def __init__(self, release: Release, services: dict[str, Document], dumps: dict[str, Document]) -> None:
        self.release = release
        self.services = services
        self.dumps = dumps

    def cluster_of(self, part: str) -> str:
        """Return Envoy's name for the Service that KServe made for a part."""
        name = f"{self.release.name}-{part}"
        (port,) = self.services[name]["spec"]["ports"]
        return f"outbound|{port['port']}||{name}.{self.release.namespace}.svc.cluster.local"

    def inbound_of(self, part: str) -> str:
        """Return a sidecar's name for the port that KServe's Service of the part leads to."""
        (port,) = self.services[f"{self.release.name}-{part}"]["spec"]["ports"]
        return f"inbound|{port['targetPort']}||"


def _plane() -> Plane:
    address = os.environ.get("ISTIOD_ADDRESS")
    if not address or os.environ.get("ISTIOD_FOLDER"):
        missing("ISTIOD_ADDRESS must name an istiod that reads the cluster, and ISTIOD_FOLDER must not be set")
    return Plane(address, Path())


@asynccontextmanager
async def seen(
    cluster: Cluster,
    folder: Path,
    *more: Document,
    placement: str,
    sample: Path = SAMPLE,
    parts: tuple[str, ...] = VARIANTS,
) -> AsyncIterator[Seen]:
    """Install the sample, the platform's objects at the gateway and the meter; connect the Envoys.

    `parts` are the names of the Services whose pods get a sidecar, without the release's.
    """
    plane, issuer = _plane(), TokenIssuer()
    jwt = {"platform": {"jwt": {"issuers": [{"issuer": issuer.issuer, "jwks": issuer.jwks_json()}]}}}
    with models.installed(cluster, sample.parts[-3], sample, jwt, *more) as release, needing_parts():
        given = models.values_of(sample)
        section = {**models.for_tests(given, release.gateway)["platform"], **jwt["platform"]}
        cluster.install(
            "platform",
            "platform",
            release.gateway,
            {"namespaces": {"create": False, "names": [release.namespace]}, "platform": section},
        )
        install_meter(cluster, release, given, placement, root=release.namespace)
        places = _places(cluster, release, parts)
        authority = Authority(folder / "pki")
        principals = {place.workload.name: place.workload.principal for place, _ in places.values()}
        async with AsyncExitStack() as stack:
            sockets = await stack.enter_async_context(secrets.serving(folder / "sds", authority, principals))
            dumps = {}
            for name, (place, kind) in places.items():
                socket = sockets[place.workload.name]
                proxy = await proxies.run(stack, place, kind, plane=plane, folder=folder / name, secrets=socket)
                await proxies.settled(proxy.serves)
                assert await proxy.refused() == {}
                dumps[name] = await proxy.dump()
            services = {each["metadata"]["name"]: each for each in cluster.all_of("services", release.namespace)}
            yield Seen(release, services, dumps)


def _places(cluster: Cluster, release: Release, parts: tuple[str, ...]) -> dict[str, tuple[Place, str]]:
    """Return a place for the gateway and for a pod of each part, whose labels and addresses the cluster has."""
    wanted = {"gateway": (release.gateway, "app=gateway-0", "router")}
    for part in parts:
        wanted[part] = (release.namespace, f"app=isvc.{release.name}-{part}", "sidecar")
    found = {}
    for number, (name, (namespace, chosen, kind)) in enumerate(wanted.items(), 1):
        pod = cluster.all_of("pods", namespace, chosen)[0]
        meta, address = pod["metadata"], f"10.244.7.{number}"
        workload = Workload(meta["name"], namespace, pod["spec"]["serviceAccountName"], meta["labels"])
        place = Place(workload, address, 1 if kind == "sidecar" else 0)
        labels = [f"{key}={place.labels[key]}" for key in ("place", "security.istio.io/tlsMode")]
        cluster.kubectl("label", "pod", meta["name"], "-n", namespace, *labels)
        pods.write_status(cluster, pod, address)
        # Listeners at free ports of this machine: nothing else of the configuration is changed.
        (port,) = free_ports(1)
        local = Place(workload, "127.0.0.1", 1)
        patches = gateway_patches(port) if kind == "router" else _listeners(local, port)
        cluster.apply([each for each in objects(place, list(patches)) if each["kind"] == "EnvoyFilter"])
        found[name] = (place, kind)
    return found


def _listeners(place: Place, port: int) -> list[Document]:
    """Return the patches of sidecar_patches about listeners, at free ports."""
    found = [each for each in sidecar_patches(place) if each["applyTo"] == "LISTENER"]
    for each, at in zip(found, (port, *free_ports(1)), strict=True):
        each["patch"]["value"]["address"]["socket_address"]["port_value"] = at
    return found


@pytest_asyncio.fixture(**MODULE)
async def at_gateway(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    """The sample with its meter at the gateway."""
    async with seen(cluster, tmp_path_factory.mktemp("gateway"), placement="gateway") as found:
        yield found


@pytest_asyncio.fixture(**MODULE)
async def at_pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    """The sample with its meter at the pods."""
    async with seen(cluster, tmp_path_factory.mktemp("pods"), AT_PODS, placement="sidecar") as found:
        yield found


def _weights(routes: list[Document]) -> dict[str, dict[str, int]]:
    return {
        route["name"]: {
            each["name"]: each["weight"]
            for each in route["route"].get("weighted_clusters", {}).get("clusters", ())
        }
        or {route["route"]["cluster"]: 100}
        for route in routes
    }


async def test_each_route_of_the_gateway_leads_to_a_service_of_kserve_s_and_is_metered(at_gateway: Seen) -> None:
    dump, release = at_gateway.dumps["gateway"], at_gateway.release
    routes = check_routes(dump, f".{release.namespace}.svc.cluster.local")
    primary, canary = (at_gateway.cluster_of(each) for each in VARIANTS)
    name = f"{release.namespace}.{release.name}"
    share = models.values_of(SAMPLE)["primaryLoad"]
    assert _weights(routes) == {
        f"{name}-predictor": {primary: share, canary: 100 - share},
        f"{name}-primary-predictor": {primary: 100},
        f"{name}-canary-predictor": {canary: 100},
    }
    there = {
        held["cluster"]["name"] for part in dump["configs"] for held in part.get("dynamic_active_clusters", [])
    }
    assert {primary, canary} <= there


async def test_the_gateway_asks_who_calls_before_it_counts(at_gateway: Seen) -> None:
    dump = at_gateway.dumps["gateway"]
    check_order(dump, {"0.0.0.0_80"})
    (rules,) = _policies(dump, "0.0.0.0_80")
    name = f"{at_gateway.release.namespace}.{at_gateway.release.name}"
    assert {each.partition("-policy[")[2].partition("]")[0] for each in rules} == {name}


async def test_the_gateway_closes_connections_to_the_models_before_they_do(at_gateway: Seen) -> None:
    """The DestinationRules are about the Services that KServe made."""
    dump = at_gateway.dumps["gateway"]
    clusters = [held["cluster"] for part in dump["configs"] for held in part.get("dynamic_active_clusters", [])]
    for part in VARIANTS:
        (found,) = (each for each in clusters if each["name"] == at_gateway.cluster_of(part))
        (options,) = found["typed_extension_protocol_options"].values()
        assert options["common_http_protocol_options"]["idle_timeout"] == "4s"


def _policies(dump: Document, listener: str) -> list[list[str]]:
    """Return the names of the policies' rules in each RBAC filter of a listener's HTTP chains, each set of them once."""
    found = {
        tuple(sorted(each["typed_config"]["rules"]["policies"]))
        for chain in read_dump(dump, {}).chains
        if chain.listener == listener
        for each in chain.filters
        if each["name"] == "envoy.filters.http.rbac"
    }
    return [list(each) for each in found]


@pytest.mark.parametrize("part", VARIANTS)
async def test_at_the_pods_everything_that_comes_in_is_metered(at_pods: Seen, part: str) -> None:
    dump = at_pods.dumps[part]
    check_order(dump, {"virtualInbound"})
    check_routes(dump, at_pods.inbound_of(part))
    check_tcp_chains(dump)


@pytest.mark.parametrize("part", VARIANTS)
async def test_at_the_pods_the_release_s_policies_are_there(at_pods: Seen, part: str) -> None:
    rules = set().union(*_policies(at_pods.dumps[part], "virtualInbound"))
    held = {each.partition("-policy[")[2].partition("]")[0] for each in rules}
    # That of the chart platform refuses whatever no policy of a release allows.
    assert held == {"default-deny", *(f"{at_pods.release.name}-{kind}" for kind in ("callers", "closed"))}


async def test_with_the_meter_at_the_pods_the_gateway_has_none(at_pods: Seen) -> None:
    with pytest.raises(AssertionError):
        check_routes(at_pods.dumps["gateway"], f".{at_pods.release.namespace}.svc.cluster.local")


async def test_behind_a_transformer_the_predictor_s_sidecar_lets_in_the_release_s_own_parts(
    cluster: Cluster, tmp_path: Path
) -> None:
    parts = ("predictor", "transformer", "explainer")
    async with seen(cluster, tmp_path, placement="sidecar", sample=TRANSFORMER, parts=parts) as found:
        for part in ("transformer", "explainer"):
            check_order(found.dumps[part], {"virtualInbound"})
            to = found.inbound_of(part)
            routes = [each for each in read_dump(found.dumps[part], {}).routes if to in str(each.get("route"))]
            assert routes
            assert all("tokenweir.ratelimit" in each["typed_per_filter_config"] for each in routes)
        behind = f"policy[{found.release.name}-behind]"
        held = {part: str(_policies(found.dumps[part], "virtualInbound")) for part in parts}
        assert {part for part in parts if behind in held[part]} == {"predictor"}
