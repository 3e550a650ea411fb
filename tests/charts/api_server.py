"""An API server that has a few objects and answers what Helm's `lookup` asks, so that charts that look can be tested."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .helm import Document

# Kinds by group and version: all that our charts look up.
_SERVED = {
    "v1": {"services": "Service"},
    "networking.istio.io/v1": {"virtualservices": "VirtualService"},
    "serving.kserve.io/v1beta1": {"inferenceservices": "InferenceService"},
}


@contextmanager
def serving(folder: Path, *objects: Document, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """Serve these objects, and no kind of the groups `without`; give the kubeconfig that leads to them."""
    served = {version: kinds for version, kinds in _SERVED.items() if version not in without}
    answers = {path: answer for version in served for path, answer in _discovery(version, served).items()}
    answers["/version"] = {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    groups = [each for each in served if "/" in each]
    answers["/apis"] = {"kind": "APIGroupList", "groups": [_group(each) for each in groups]}
    answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    answers.update({_path(each): each for each in objects})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            missing = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    kubeconfig = folder / f"kubeconfig-{server.server_port}"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "c",
    }
    kubeconfig.write_text(json.dumps(config), encoding="utf-8")
    try:
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _discovery(version: str, served: dict[str, dict[str, str]]) -> dict[str, Any]:
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for plural, kind in served[version].items()
    ]
    found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    return {f"{_root(version)}/{version}": found}


def _group(version: str) -> dict[str, Any]:
    one = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [one], "preferredVersion": one}


def _root(version: str) -> str:
    return "/apis" if "/" in version else "/api"


def _path(document: Document) -> str:
    version, metadata = document["apiVersion"], document["metadata"]
    (plural,) = (plural for plural, kind in _SERVED[version].items() if kind == document["kind"])
    return f"{_root(version)}/{version}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
