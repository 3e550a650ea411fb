"""The mesh of tests/charts/live once more, its configuration made by a real istiod instead of by hand."""

import itertools
import os
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx

from extproc.local.ports import free_ports
from tests.charts.helm import pick
from tests.charts.live import upstream
from tests.charts.live.envoys import HOST
from tests.charts.live.identities import Authority
from tests.charts.live.mesh import INGRESS, NAMESPACE, RELEASE, Mesh
from tests.charts.live.objects import Workload, model_workloads
from tests.charts.live.processor import processor, runtime_values

from . import proxies, secrets
from .placing import (
    ALPN,
    Place,
    caller_patches,
    caller_scope,
    gateway_patches,
    kserve_services,
    objects,
    sidecar_patches,
)
from .proxies import settled

_SERIAL = itertools.count(1)
# An address of loopback for each pod; runs beside one another differ in the second and third part.
_NETWORK = f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
GATEWAY_LISTENER = "0.0.0.0_80"  # as istiod calls it; its address is another one here
_MARK_HOST = "mark-{}.models.example.com"


@dataclass
class IstioMesh(Mesh):
    """Also knows each Envoy, and what istiod was given beside the charts' objects."""

    plane: object = None
    proxies: dict = field(default_factory=dict)
    around: list = field(default_factory=list)

    def connect(self, url, principal=None, authority=None):
        """As a sidecar connects: it says by ALPN that HTTP follows."""
        context = ssl.create_default_context()
        if principal:
            context = _IstioContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False  # a SPIFFE identity is no host
            context.load_verify_locations(str(self.authority.ca))
            context.load_cert_chain(*map(str, (authority or self.authority).issue(principal)))
        return httpx.AsyncClient(verify=context, base_url=url, trust_env=False, timeout=30)

    def pod(self, service):
        return f"{self.sidecars[service]}:8080"

    def at_processor(self):
        return f"{self.processor}:50051"

    async def give(self, documents):
        """Makes these the charts' objects, and waits until the gateway's Envoy has what follows of them."""
        serial = next(_SERIAL)
        self.plane.apply([*documents, *self.around, *_mark(serial)])

        async def arrived():
            """The gateway serves the host that was given last."""
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                try:
                    mark = {"host": _MARK_HOST.format(serial)}
                    return (await client.get(f"http://{HOST}:{self.gateway}/", headers=mark)).status_code == 299
                except httpx.TransportError:
                    return False

        await settled(arrived)
        await self.ready()

    async def ready(self):
        """Fails where an Envoy did not take what istiod sent."""
        for proxy in self.proxies.values():
            await settled(proxy.serves)
            assert await proxy.refused() == {}, proxy.name


class _IstioContext(ssl.SSLContext):
    def set_alpn_protocols(self, alpn_protocols):
        super().set_alpn_protocols([ALPN])


def _mark(serial):
    """A host of the gateway that answers itself: istiod sends routes last, so the rest has arrived before."""
    spec = {
        "hosts": [_MARK_HOST.format(serial)],
        "gateways": ["istio-system/istio-ingressgateway"],
        "http": [{"directResponse": {"status": 299}}],
    }
    metadata = {"name": "mark", "namespace": INGRESS.namespace}
    yield {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": metadata,
        "spec": spec,
    }


@asynccontextmanager
async def running(plane, documents, issuer, run_dir, *, gateway_only_of=None):
    """Starts all parts; or, with `gateway_only_of`, gives that mesh other objects for the time being."""
    if gateway_only_of is not None:
        await gateway_only_of.give(documents)
        try:
            yield gateway_only_of
        finally:
            await gateway_only_of.give(gateway_only_of.documents)
        return
    async with AsyncExitStack() as stack:
        mesh = IstioMesh(Authority(run_dir / "pki"), issuer, documents, run_dir, plane=plane)
        stack.callback(plane.clear)
        await _start(stack, mesh, documents, run_dir)
        yield mesh


async def _start(stack, mesh, documents, run_dir):
    addresses = (f"{_NETWORK}.{number}" for number in itertools.count(1))
    template = pick(documents, "Deployment", "tokenweir")["spec"]["template"]
    account, labels = template["spec"]["serviceAccountName"], template["metadata"]["labels"]
    server = Workload("tokenweir", "tokenweir", account, labels, 50051)
    target = await stack.enter_async_context(processor(documents, run_dir / "processor"))
    places = [(Place(server, next(addresses), target), runtime_values(template))]
    mesh.processor = places[0][0].address
    for workload in model_workloads(documents):
        model = await upstream.serve(workload.name.removeprefix(f"{RELEASE}-").removesuffix("-predictor"))
        stack.callback(model.close)
        place = Place(workload, next(addresses), upstream.port_of(model))
        mesh.sidecars[workload.name] = place.address
        places.append((place, None))
    caller = Place(Workload("caller", NAMESPACE, "notebook"), next(addresses))
    gateway = Place(INGRESS, next(addresses))
    places.append((caller, None))
    mesh.gateway, mesh.callers[NAMESPACE] = free_ports(2)
    mesh.around = [
        *kserve_services(documents),
        *objects(gateway, list(gateway_patches(mesh.gateway))),
        *caller_scope(caller, f"{RELEASE}-predictor.{NAMESPACE}.svc.cluster.local"),
        *objects(caller, list(caller_patches(mesh.callers[NAMESPACE]))),
        *(each for place, _ in places if place.target for each in objects(place, list(sidecar_patches(place)))),
    ]
    principals = {
        place.workload.name: place.workload.principal for place in (gateway, *(each for each, _ in places))
    }
    sockets = await stack.enter_async_context(secrets.serving(run_dir / "sds", mesh.authority, principals))
    # The gateway first: once it has what istiod was given, a sidecar never sees its listener change its address.
    for place, kind, runtime in [(gateway, "router", None), *((place, "sidecar", more) for place, more in places)]:
        folder = run_dir / place.workload.name
        started = await proxies.run(
            stack,
            place,
            kind,
            plane=mesh.plane,
            folder=folder,
            secrets=sockets[place.workload.name],
            runtime=runtime,
        )
        mesh.proxies[place.workload.name] = started
        if kind == "router":
            await mesh.give(documents)
    await mesh.ready()
