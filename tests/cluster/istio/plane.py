"""The istiod under test, and where its objects are kept: a folder that it watches, or a cluster."""

import asyncio
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.missing import missing

_GROUPS = ("networking.istio.io/", "security.istio.io/", "telemetry.istio.io/")
_LABEL = {"tokenweir.io/suite": "istio"}
_FILE = "tokenweir.yaml"
_HOW = "see tests/cluster/istio/README.md"


@dataclass(frozen=True)
class Plane:
    """`address` is host:port of istiod's plaintext xDS (15010 in a usual installation)."""

    address: str
    folder: Path | None = None

    @classmethod
    def from_environment(cls):
        """The istiod that ISTIOD_ADDRESS names. Without it the test is listed as not run."""
        address, folder = os.environ.get("ISTIOD_ADDRESS"), os.environ.get("ISTIOD_FOLDER")
        if not address:
            missing(f"ISTIOD_ADDRESS does not say where istiod's plaintext xDS is: {_HOW}")
        if not folder and not os.environ.get("KUBECONFIG"):
            missing(f"neither ISTIOD_FOLDER nor KUBECONFIG says where istiod reads objects: {_HOW}")
        return cls(address, Path(folder) if folder else None)

    async def apply(self, documents):
        """Make these all the objects that istiod has of this suite."""
        if self.folder is not None:
            self._write(yaml.safe_dump_all(list(_for_folder(documents)), sort_keys=False))
        else:
            await asyncio.to_thread(
                _to_cluster, [each for each in documents if _is_istios(each) or _is_service(each)]
            )

    async def clear(self):
        """Take everything away again."""
        if self.folder is not None:
            self._write("")
        else:
            await asyncio.to_thread(_to_cluster, [])

    def _write(self, text):
        """Write the file whole: istiod looks whenever something changes."""
        part = self.folder / ".part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.folder / _FILE)


def _is_istios(document):
    return document["apiVersion"].startswith(_GROUPS)


def _is_service(document):
    return (document["apiVersion"], document["kind"]) == ("v1", "Service")


def _for_folder(documents):
    """Without an API server Services are ServiceEntries that select the same pods."""
    for document in documents:
        if _is_istios(document):
            yield document
        elif _is_service(document):
            yield _service_entry(document)


def _service_entry(service):
    metadata, spec = service["metadata"], service["spec"]
    ports = [
        {
            "name": port.get("name") or f"tcp-{port['port']}",
            "number": port["port"],
            "protocol": _protocol(port),
            "targetPort": port["targetPort"] if isinstance(port["targetPort"], int) else port["port"],
        }
        for port in spec["ports"]
    ]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": {
            "hosts": [f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": ports,
            "workloadSelector": {"labels": spec["selector"]},
        },
    }


def _protocol(port):
    """As Istio reads a Service's port: appProtocol, then the name's first part, else it looks at the bytes."""
    named = port.get("appProtocol") or port.get("name", "").partition("-")[0]
    return {"http": "HTTP", "grpc": "GRPC", "kubernetes.io/h2c": "HTTP2"}.get(named, "")


def _to_cluster(documents):
    """Server-side apply, and the removal of what was applied before and is no longer there."""
    namespaces = {each["metadata"]["namespace"] for each in documents}
    made = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in namespaces]
    _kubectl("apply", "--server-side", "-f", "-", given=made)
    for each in documents:
        each["metadata"]["labels"] = {**each["metadata"].get("labels", {}), **_LABEL}
    before = set(_kubectl("get", _KINDS, "-A", "-l", _SELECTOR, "-o", _NAMES).split())
    if documents:
        _kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=documents)
    for gone in sorted(before - {_name(each) for each in documents}):
        namespace, kind, name = gone.split("/")
        _kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found")


_KINDS = ",".join(
    ("services", "envoyfilters", "virtualservices", "destinationrules", "gateways.networking.istio.io", "workloadentries",
     "authorizationpolicies", "requestauthentications", "peerauthentications", "telemetries.telemetry.istio.io")
)  # fmt: skip
_SELECTOR = ",".join(f"{name}={value}" for name, value in _LABEL.items())
_NAMES = "jsonpath={range .items[*]}{.metadata.namespace}/{.kind}/{.metadata.name}{'\\n'}{end}"


def _name(document):
    metadata = document["metadata"]
    return f"{metadata['namespace']}/{document['kind']}/{metadata['name']}"


def _kubectl(*arguments, given=()):
    text = yaml.safe_dump_all(given) if given else ""
    done = subprocess.run(
        ["kubectl", *arguments], input=text, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"kubectl {arguments}: {done.stderr}"
    return done.stdout
