"""The istiod under test, and the folder of objects that it watches."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.missing import missing

_GROUPS = ("networking.istio.io/", "security.istio.io/", "telemetry.istio.io/")
_FILE = "tokenweir.yaml"
_HOW = "see tests/cluster/istio/README.md"


@dataclass(frozen=True)
class Plane:
    """`address` is host:port of istiod's plaintext xDS (15010 in a usual installation)."""

    address: str
    folder: Path

    @classmethod
    def from_environment(cls):
        """The istiod that ISTIOD_ADDRESS names. Without it the test is listed as not run."""
        address, folder = os.environ.get("ISTIOD_ADDRESS"), os.environ.get("ISTIOD_FOLDER")
        if not address:
            missing(f"ISTIOD_ADDRESS does not say where istiod's plaintext xDS is: {_HOW}")
        if not folder:
            missing(f"ISTIOD_FOLDER does not say which folder istiod reads objects from: {_HOW}")
        return cls(address, Path(folder))

    def apply(self, documents):
        """Make these all the objects that istiod has of this suite."""
        self._write(yaml.safe_dump_all(list(_for_folder(documents)), sort_keys=False))

    def clear(self):
        """Take everything away again."""
        self._write("")

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
