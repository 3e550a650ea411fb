"""A cluster as these tests use it: kubectl and Helm with one kubeconfig."""

import contextlib
import functools
import json
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml

from tests.charts.helm import CHARTS, Document, Once, Values, tool

from .controllers import Controllers, probe

_T = TypeVar("_T")
# Who the API server takes these tests for, where it says who owns a field.
MANAGER = "tokenweir-tests"
# What this suite makes is recognized by this label; its value is the run's.
LABEL = "tokenweir.io/suite"
# kubectl and Helm print what the API server warns of like this.
_WARNING = re.compile(r"^(?:Warning: |[IW]\d{4} \S+ +\d+ warnings\.go:\d+\] )(.*)$", re.MULTILINE)


class ClusterError(Exception):
    """kubectl or Helm failed; the message is what it said."""


class Said(NamedTuple):
    """What a command printed, and the API server's warnings among it."""

    out: str
    warnings: list[str]


class Cluster:
    """The cluster that `kubeconfig` leads to, with the rights of its user: a cluster admin is needed."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.run = secrets.token_hex(3)
        self._home = tempfile.mkdtemp(prefix="tokenweir-cluster-")

    def kubectl(self, *arguments: str, given: str | list[Document] = "") -> Said:
        """Run kubectl with `given` (a text, or objects) as its input. Raises `ClusterError`."""
        # JSON: PyYAML writes the name N as it is, and kubectl would take that for false.
        text = given if isinstance(given, str) else "\n---\n".join(json.dumps(each, default=str) for each in given)
        return self._run(tool("kubectl"), *arguments, given=text)

    def helm(self, *arguments: str, values: tuple[Values, ...] = (), helm: str = "helm") -> Said:
        """Run Helm 4 (or `helm3`) with values files, or values, in their order. Raises `ClusterError`."""
        with tempfile.TemporaryDirectory() as folder:
            files: list[str] = []
            for number, each in enumerate(values):
                path = each if isinstance(each, Path) else Path(folder) / f"{number}.yaml"
                if not isinstance(each, Path):
                    path.write_text(json.dumps(each), encoding="utf-8")
                files += ["-f", str(path)]
            return self._run(tool(helm), *arguments, *files)

    def install(
        self,
        chart: str,
        release: str,
        namespace: str,
        *values: Values,
        helm: str = "helm",
        more: tuple[str, ...] = (),
    ) -> Said:
        """Install a chart of ours, or upgrade its release. Does not wait for pods."""
        command = ("upgrade", "--install", release, str(CHARTS / chart), "-n", namespace, *more)
        return self.helm(*command, values=values, helm=helm)

    def uninstall(self, release: str, namespace: str, helm: str = "helm") -> Said:
        """Remove a release and wait until its objects are gone."""
        return self.helm("uninstall", release, "-n", namespace, "--wait", "--timeout", "2m", helm=helm)

    def apply(self, documents: list[Document], *more: str) -> list[str]:
        """Apply objects on the server, with strict validation of fields; return what it warns of.

        Objects without a namespace go into `default`, if their kind has one: pass `-n` in `more`. `--dry-run=server`
        in `more` lets the server decide and keep nothing.
        """
        command = ("apply", "--server-side", "--field-manager", MANAGER, "--validate=strict", *more, "-f", "-")
        return self.kubectl(*command, given=documents).warnings

    def get(self, kind: str, name: str, namespace: str = "default") -> Document:
        """Return one object. Raises `ClusterError` where it is not there."""
        return dict(json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json").out))

    def all_of(self, kinds: str, namespace: str = "", selector: str = "") -> list[Document]:
        """Return the objects of these kinds (comma-separated) in a namespace, or in all."""
        where = ("-n", namespace) if namespace else ("-A",)
        return list(json.loads(self.kubectl("get", kinds, *where, "-l", selector, "-o", "json").out)["items"])

    def delete(self, kind: str, name: str, namespace: str = "default", *more: str) -> None:
        """Delete an object if it is there."""
        self.kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", *more)

    def names(self, namespace: str) -> set[str]:
        """Return kind/name of all that the API server has in a namespace, but what each namespace has and events."""
        found = self.kubectl(
            "get", ",".join(self._namespaced()), "-n", namespace, "-o", "name", "--ignore-not-found"
        )
        own = {"configmap/kube-root-ca.crt", "configmap/istio-ca-root-cert", "serviceaccount/default"}
        return {each for each in found.out.split() if each not in own and not each.startswith("event")}

    def make_namespace(self, name: str = "test", labels: dict[str, str] | None = None) -> str:
        """Make a namespace called `name` with a random ending; return what it is called."""
        called = f"{name}-{secrets.token_hex(4)}"
        self.apply(
            [
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": called, "labels": {LABEL: self.run, **(labels or {})}},
                }
            ]
        )
        # Pods are refused until the controller has made it.
        self.until(lambda: self._there("serviceaccount", "default", called), f"no service account in {called}")
        return called

    def until(self, ask: Callable[[], _T], otherwise: str, seconds: float = 60) -> _T:
        """Ask until the answer is not empty; return it. Raises `ClusterError` with `otherwise` after `seconds`."""
        end = time.monotonic() + seconds
        while not (answer := ask()):
            if time.monotonic() > end:
                raise ClusterError(f"{otherwise} after {seconds:g} s")
            time.sleep(0.3)
        return answer

    def serves(self, group_version: str, kind: str) -> bool:
        """Return whether the API server has this kind, e. g. `keda.sh/v1alpha1` and `ScaledObject`."""
        return (group_version, kind) in self._kinds

    def lacks(self, documents: list[Document]) -> list[str]:
        """Return the kinds among these objects that the API server does not have."""
        wanted = {(each["apiVersion"], each["kind"]) for each in documents}
        return sorted(f"{version} {kind}" for version, kind in wanted - set(self._kinds))

    def placed(self, documents: list[Document], namespace: str) -> list[Document]:
        """Return the objects with a namespace where their kind has one and they name none, as Helm places them."""
        return [
            {**each, "metadata": {"namespace": namespace, **each["metadata"]}}
            if self._kinds.get((each["apiVersion"], each["kind"]), True)
            else each
            for each in documents
        ]

    @functools.cached_property
    def controllers(self) -> Controllers:
        """Which controllers run here: found once, by what they do to small objects, in at most 20 s."""
        return probe(self)

    def remove_namespace(self, name: str) -> None:
        """Begin to remove a namespace with all that is in it. Pods that no kubelet ends go at once."""
        self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
        if "kubelets" in self.controllers.missing:
            self.kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0", "--wait=false")

    def clean(self) -> list[str]:
        """Remove what is left of this run, in at most two minutes; return the namespaces that stay."""
        left: list[str] = []

        def gone() -> bool:
            found = self.kubectl(
                "get", "namespace", "-l", f"{LABEL}={self.run}", "-o", "jsonpath={.items[*].metadata.name}"
            )
            left[:] = found.out.split()
            for name in left:
                self.remove_namespace(name)
            return not left

        with contextlib.suppress(ClusterError):
            self.until(gone, "namespaces are left", 120)
        self.kubectl("delete", "node", "-l", f"{LABEL}={self.run}", "--wait=false")
        return left

    def _there(self, kind: str, name: str, namespace: str) -> bool:
        return bool(self.kubectl("get", kind, name, "-n", namespace, "-o", "name", "--ignore-not-found").out)

    @functools.cached_property
    def _kinds(self) -> dict[tuple[str, str], bool]:
        """Ask for group/version and kind of all that the server has, and whether it is in namespaces."""
        lines = self.kubectl("api-resources", "--no-headers").out.splitlines()
        return {(words[-3], words[-1]): words[-2] == "true" for words in map(str.split, lines)}

    @functools.cache  # noqa: B019 - one cluster lives as long as the run
    def _namespaced(self) -> tuple[str, ...]:
        found = self.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").out.split()
        return tuple(each for each in found if not each.startswith(("events", "endpoints")))

    def _run(self, program: str, *arguments: str, given: str = "") -> Said:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "HOME": self._home,  # kubectl's and Helm's caches
            "HELM_CACHE_HOME": self._home,
            "HELM_CONFIG_HOME": self._home,
            "HELM_DATA_HOME": self._home,
        }
        done = subprocess.run(
            [program, *arguments],
            input=given,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise ClusterError(f"{Path(program).name} {' '.join(arguments[:6])}: {done.stderr or done.stdout}")
        return Said(done.stdout, _WARNING.findall(done.stderr))


def documents_in(text: str) -> list[Document]:
    """Return the objects of a YAML text. Refuses a map that says a key twice."""
    return [each for each in yaml.load_all(text, Loader=Once) if each]
