"""A mesh of real Envoys, made of what three charts render: platform, tokenweir, and one model's."""

import json
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from extproc.local.issuer import TokenIssuer
from extproc.local.parts import envoy_binary
from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from tests.charts.helm import pick, render

from . import envoys, upstream
from .envoys import HOST, Tls, cluster
from .identities import Authority
from .objects import Workload, check_kinds, model_workloads
from .processor import processor, runtime_values

NAMESPACE = "models"
RELEASE = "qwen"
DOMAIN = "models.example.com"
AUDIENCE = "models"
GATEWAY = "istio-system/istio-ingressgateway"
INGRESS = Workload(
    "gateway", "istio-system", "istio-ingressgateway-service-account", {"istio": "ingressgateway"}, 8443
)
PROCESSOR_CLUSTER = "outbound|50051||tokenweir.tokenweir.svc.cluster.local"


@dataclass
class Mesh:
    """All parts run. Ports: `gateway`, and of each pod's sidecar by the name of its Service."""

    authority: Authority
    issuer: TokenIssuer
    documents: list
    run_dir: Path
    gateway: int = 0
    sidecars: dict[str, int] = field(default_factory=dict)
    callers: dict[str, int] = field(default_factory=dict)
    processor: int = 0

    def token(self, account="robot", *, tenant="acme", **more):
        more = {"audience": AUDIENCE} | more
        return {"authorization": f"Bearer {self.issuer.issue(account, tenant=tenant, **more)}"}

    def outside(self, address=HOST, variant=""):
        """A caller at the gateway, from an address of its own."""
        host = f"{RELEASE}{variant}-predictor-{NAMESPACE}.{DOMAIN}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        url = f"http://{HOST}:{self.gateway}"
        return httpx.AsyncClient(transport=transport, base_url=url, headers={"host": host}, timeout=30)

    def inside(self, principal, service=f"{RELEASE}-primary-predictor"):
        """A caller with that mTLS identity at a pod; None: without mTLS."""
        scheme = "https" if principal else "http"
        return self.connect(f"{scheme}://{self.pod(service)}", principal)

    def connect(self, url, principal=None, authority=None):
        """A client of that URL; with a certificate of the mesh, or of `authority`, for that identity."""
        context = ssl.create_default_context()
        if principal:
            context = (authority or self.authority).client(principal)
            context.load_verify_locations(str(self.authority.ca))
        return httpx.AsyncClient(verify=context, base_url=url, trust_env=False, timeout=30)

    def pod(self, service):
        """Where the sidecar of that Service's pod listens, as host:port."""
        return f"{HOST}:{self.sidecars[service]}"

    def at_processor(self):
        """Where the sidecar of the processor's pod listens, as host:port."""
        return f"{HOST}:{self.processor}"


def values(issuer, **more):
    """The model's values with what the platform gives."""
    section = {"jwt": {"issuers": [{"issuer": issuer.issuer, "jwks": issuer.jwks_json()}]}}
    section |= more.pop("platform", {})
    section["gateway"] = {"principals": [INGRESS.principal, f"cluster.local/ns/{NAMESPACE}/sa/gateway"]}
    exposed = {"enabled": True, "jwtVerify": {"Audiences": [AUDIENCE]}, **more.pop("exposeModel", {})}
    return {"exposeModel": exposed, "platform": section, **more}


def documents_of(model_values, tokenweir_values, chart="kserve-general"):
    """All that is rendered; the platform's section is the same for each chart."""
    gateway = {"create": True, "hosts": [f"*.{DOMAIN}"]}
    platform = {"platform": model_values["platform"], "gateway": gateway}
    model = render(chart, model_values, release=RELEASE, namespace=NAMESPACE)
    baseline = render("platform", platform, release="platform", namespace="infra")
    filters = render("tokenweir", tokenweir_values, release="tokenweir", namespace="tokenweir")
    found = [*baseline, *filters, *model]
    check_kinds(found)
    return found


@asynccontextmanager
async def running(documents, issuer, run_dir, *, gateway_only_of=None):
    """Starts all parts. `gateway_only_of`: only a gateway of these documents, in front of that mesh's pods."""
    async with AsyncExitStack() as stack:
        mesh = gateway_only_of or Mesh(Authority(run_dir / "pki"), issuer, documents, run_dir)
        starter = _Starter(stack, mesh, run_dir)
        if gateway_only_of is not None:
            yield Mesh(
                mesh.authority,
                mesh.issuer,
                documents,
                run_dir,
                gateway=await starter.gateway(documents),
                sidecars=mesh.sidecars,
            )
            return
        await starter.processor()
        await starter.pods()
        mesh.gateway = await starter.gateway(documents)
        mesh.callers[NAMESPACE] = await starter.caller(NAMESPACE)
        yield mesh


class _Starter:
    def __init__(self, stack, mesh, run_dir):
        self._stack = stack
        self._mesh = mesh
        self._run_dir = run_dir

    async def processor(self):
        documents = self._mesh.documents
        template = pick(documents, "Deployment", "tokenweir")["spec"]["template"]
        account, labels = template["spec"]["serviceAccountName"], template["metadata"]["labels"]
        self._processor = Workload("tokenweir", "tokenweir", account, labels, 50051, (9464,))
        runtime = runtime_values(template)
        target = await self._stack.enter_async_context(processor(documents, self._run_dir / "tokenweir"))
        ports = free_ports(2)
        tls = Tls(self._mesh.authority, self._processor)
        config = envoys.sidecar(documents, self._processor, ports, target, tls, http2=True, runtime=runtime)
        self._mesh.processor = await self._envoy("tokenweir", config, ports)

    async def pods(self):
        for workload in model_workloads(self._mesh.documents):
            server = await upstream.serve(workload.name.removeprefix(f"{RELEASE}-").removesuffix("-predictor"))
            self._stack.callback(server.close)
            ports, tls = free_ports(2), Tls(self._mesh.authority, workload)
            target = upstream.port_of(server)
            clusters = [self._to_processor(workload)]
            config = envoys.sidecar(self._mesh.documents, workload, ports, target, tls, clusters=clusters)
            self._mesh.sidecars[workload.name] = await self._envoy(workload.name, config, ports)

    async def gateway(self, documents):
        ports = free_ports(2)
        clusters = [*self._to_pods(INGRESS), self._to_processor(INGRESS)]
        return await self._envoy("gateway", envoys.gateway(documents, INGRESS, GATEWAY, ports, clusters), ports)

    async def caller(self, namespace):
        ports, workload = free_ports(2), Workload("caller", namespace, "notebook")
        config = envoys.caller(self._mesh.documents, ports, list(self._to_pods(workload)))
        return await self._envoy("caller", config, ports)

    def _to_pods(self, workload):
        tls = Tls(self._mesh.authority, workload)
        principals = {each.name: each.principal for each in model_workloads(self._mesh.documents)}
        for name, port in self._mesh.sidecars.items():
            socket = tls.client(principals[name], "http/1.1")
            name_in_mesh = f"outbound|80||{name}.{NAMESPACE}.svc.cluster.local"
            yield cluster(name_in_mesh, port, socket=socket)

    def _to_processor(self, workload):
        principal = "cluster.local/ns/tokenweir/sa/tokenweir"
        socket = Tls(self._mesh.authority, workload).client(principal, "h2")
        return cluster(PROCESSOR_CLUSTER, self._mesh.processor, http2=True, socket=socket)

    async def _envoy(self, name, config, ports):
        folder = self._run_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "envoy.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        options = ("--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1", "--disable-hot-restart")
        argv = (str(envoy_binary()), "-c", "envoy.json", *options)

        async def ready():
            async with httpx.AsyncClient(trust_env=False) as client:
                try:
                    return (await client.get(f"http://{HOST}:{ports[1]}/ready")).status_code == 200
                except httpx.TransportError:
                    return False

        child = await start(Command("envoy", argv, folder, stop_grace_s=1), ready)
        self._stack.push_async_callback(child.stop)
        return ports[0]
