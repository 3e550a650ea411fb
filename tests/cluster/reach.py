"""Which names in a cluster lead to pods of models: Services, aliases, endpoints that somebody wrote, entries of the mesh."""

from tests.charts.helm import Document

from .meters import Pod, pods_in

# Labels of pods that serve a model or lead to one: KServe's, and the charts'.
_MODELS = (
    "serving.kserve.io/inferenceservice",
    "serving.kserve.io/inferencegraph",
    "tokenweir.io/release",
    "tokenweir.io/metered",
)


class Reach:
    """`names` has the places in `models` of the pods that each name leads to; `pods` are all of the cluster.

    A Service is called `name.namespace.svc`, an InferencePool `name.namespace.pool`, anything else by its host.
    """

    def __init__(self, objects: list[Document]) -> None:
        self._objects = objects
        self.pods = pods_in(objects)
        self.models = [each for each in self.pods if any(label in each.labels for label in _MODELS)]
        self.services = {service_name(each): each for each in self.of("Service")}
        self.names: dict[str, set[int]] = {}
        for name, service in self.services.items():
            if selector := service["spec"].get("selector"):
                self._add(name, self._selected(selector, namespace_of(service)))
        for pool in self.of("InferencePool"):
            given = pool["spec"].get("selector") or {}
            home = namespace_of(pool)
            self._add(
                pool_name(pool["metadata"]["name"], home), self._selected(given.get("matchLabels", given), home)
            )
        before = -1
        while before != (now := sum(map(len, self.names.values()))):
            before = now
            self._follow()

    def of(self, kind: str) -> list[Document]:
        """Return the cluster's objects of a kind."""
        return [each for each in self._objects if each["kind"] == kind]

    def named(self, host: str, namespace: str) -> set[int]:
        """Return the places of the pods that a host leads to, as an object of this namespace means it."""
        return self.names.get(self.canonical(host, namespace), set())

    def canonical(self, host: str, namespace: str) -> str:
        """Return the one spelling of a host: `name.namespace.svc` for a Service, be it short or whole."""
        host = host.lower().rstrip(".")
        parts = host.split(".")
        if len(parts) == 1:
            return f"{host}.{namespace}.svc"
        if len(parts) == 2 and f"{host}.svc" in self.services:
            return f"{host}.svc"
        return ".".join(parts[:3]) if len(parts) >= 3 and parts[2] == "svc" else host

    def _follow(self) -> None:
        """Follow each name that leads to names one step further."""
        for name, service in self.services.items():
            if service["spec"].get("type") == "ExternalName":
                self._add(name, self.named(service["spec"]["externalName"], namespace_of(service)))
        for each in self.of("EndpointSlice"):
            owner = (each["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
            if owner:
                reached = [one for part in each.get("endpoints") or () for one in part["addresses"]]
                self._add(f"{owner}.{namespace_of(each)}.svc", self._at(reached, namespace_of(each)))
        for each in self.of("Endpoints"):
            reached = [one["ip"] for part in each.get("subsets") or () for one in part.get("addresses") or ()]
            self._add(service_name(each), self._at(reached, namespace_of(each)))
        for each in self.of("ServiceEntry"):
            self._follow_entry(each)

    def _follow_entry(self, entry: Document) -> None:
        spec, namespace = entry["spec"], namespace_of(entry)
        chosen = (spec.get("workloadSelector") or {}).get("labels")
        reached = [one.get("address", "") for one in spec.get("endpoints") or ()]
        found: set[int] = set()
        if chosen:
            found = self._selected(chosen, namespace)
            for each in self.of("WorkloadEntry"):
                labels = each["spec"].get("labels") or {}
                if namespace_of(each) == namespace and chosen.items() <= labels.items():
                    reached.append(each["spec"].get("address", ""))
        for host in spec.get("hosts") or ():
            self._add(self.canonical(host, namespace), found | self._at(reached, namespace))

    def _add(self, name: str, found: set[int]) -> None:
        if found:
            self.names.setdefault(name, set()).update(found)

    def _selected(self, labels: dict[str, str], namespace: str) -> set[int]:
        return {place for place, pod in enumerate(self.models) if _fits(pod, labels, namespace)}

    def _at(self, addresses: list[str], namespace: str) -> set[int]:
        """Return the pods at addresses: their own, those of Services that lead to them, or names."""
        found: set[int] = set()
        for address in filter(None, addresses):
            found |= {place for place, pod in enumerate(self.models) if address in pod.addresses}
            for name, service in self.services.items():
                spec = service["spec"]
                if address in {spec.get("clusterIP"), *(spec.get("clusterIPs") or ())}:
                    found |= self.names.get(name, set())
            found |= self.named(address, namespace)
        return found


def _fits(pod: Pod, labels: dict[str, str], namespace: str) -> bool:
    return pod.namespace == namespace and labels.items() <= pod.labels.items()


def namespace_of(document: Document) -> str:
    """Return the namespace of an object, `default` where it names none."""
    return str(document["metadata"].get("namespace", "default"))


def service_name(document: Document) -> str:
    """Return what a Service is called in `Reach.names`."""
    return f"{document['metadata']['name']}.{namespace_of(document)}.svc"


def pool_name(name: str, namespace: str) -> str:
    """Return what an InferencePool is called in `Reach.names`."""
    return f"{name}.{namespace}.pool"
