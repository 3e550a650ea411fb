"""What stands in for pods and their network on one machine: an address of loopback for each Envoy.

A pod is a WorkloadEntry. Nothing redirects its traffic, so one more EnvoyFilter, the suite's own, makes istiod give each
Envoy other addresses to listen at, and an address for the one server behind it. All else stays as istiod makes it.
"""

from dataclasses import dataclass

from tests.charts.live.envoys import HOST
from tests.charts.live.objects import Workload, of_kind

# Written by the filter istio.alpn in Istio's own build of Envoy; the other build lacks it.
ALPN = "istio-http/1.1"
_PRIORITY = 1000  # after the charts' own
_OTHER_PORTS = (50051, 9464)  # of the processor


@dataclass(frozen=True)
class Place:
    """A workload with the address of its pod; `target` is the port of the server behind its sidecar."""

    workload: Workload
    address: str
    target: int = 0

    @property
    def labels(self):
        return {
            **self.workload.labels,
            "place": self.workload.name,
            "security.istio.io/tlsMode": "istio",  # the injector's: the pod has a sidecar
        }


def objects(place, patches):
    """The pod's WorkloadEntry, and what changes addresses."""
    metadata = {"name": f"place-{place.workload.name}", "namespace": place.workload.namespace}
    entry = {"address": place.address, "labels": place.labels, "serviceAccount": place.workload.account}
    yield {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": metadata, "spec": entry}
    spec = {
        "priority": _PRIORITY,
        "workloadSelector": {"labels": {"place": place.workload.name}},
        "configPatches": patches,
    }
    yield {"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": metadata, "spec": spec}


def sidecar_patches(place, ports=()):
    """Inbound: at the pod's address and the workload's port. `ports`: further ones of the pod, served the same."""
    inbound = {"address": _address(place.address, place.workload.port)}
    if ports:
        inbound["additional_addresses"] = [{"address": _address(place.address, port)} for port in ports]
    server = {"endpoint": {"address": _address(HOST, place.target)}}
    # A merge takes no 0, as STATIC and ROUND_ROBIN are.
    cluster = {
        "type": "STRICT_DNS",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": f"inbound|{place.workload.port}||",
            "endpoints": [{"lb_endpoints": [server]}],
        },
    }
    yield _merge("LISTENER", "SIDECAR_INBOUND", {"listener": {"name": "virtualInbound"}}, inbound)
    yield _merge("CLUSTER", "SIDECAR_INBOUND", {"cluster": {"name": f"inbound|{place.workload.port}||"}}, cluster)
    yield from _outbound(place)


def caller_patches(port):
    """Outbound to port 80 of the mesh's Services, as a pod's own requests go, at 127.0.0.1:`port`.

    For a proxy of interception mode NONE, whose listeners are bound as they are. Never merge `bind_to_port: true` into
    another's: istiod has one `false` for everything, and from then on it is true everywhere, use_remote_address too.
    """
    yield _merge(
        "LISTENER", "SIDECAR_OUTBOUND", {"listener": {"portNumber": 80}}, {"address": _address(HOST, port)}
    )
    for other in _OTHER_PORTS:
        match = {"context": "SIDECAR_OUTBOUND", "listener": {"portNumber": other}}
        yield {"applyTo": "LISTENER", "match": match, "patch": {"operation": "REMOVE"}}
    yield _alpn("SIDECAR_OUTBOUND")


def caller_scope(place, host):
    """What the caller sees: with ports bound there is one listener for port 80, and so one Service can have it."""
    yield {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": f"place-{place.workload.name}", "namespace": place.workload.namespace},
        "spec": {
            "workloadSelector": {"labels": {"place": place.workload.name}},
            "egress": [{"hosts": [f"./{host}"]}],
        },
    }


def gateway_patches(port):
    """The one listener of a gateway at 127.0.0.1:`port`."""
    yield _merge("LISTENER", "GATEWAY", {}, {"address": _address(HOST, port)})
    yield _alpn("GATEWAY")


def _outbound(place):
    outbound = {"address": _address(place.address, 15001)}
    yield _merge("LISTENER", "SIDECAR_OUTBOUND", {"listener": {"name": "virtualOutbound"}}, outbound)


def _alpn(context):
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    typed = {"@type": kind, "common_tls_context": {"alpn_protocols": [ALPN]}}
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": typed}
    return _merge("CLUSTER", context, {"cluster": {"portNumber": 80}}, {"transport_socket": socket})


def _merge(kind, context, match, value):
    return {
        "applyTo": kind,
        "match": {"context": context, **match},
        "patch": {"operation": "MERGE", "value": value},
    }


def _address(address, port):
    return {"socket_address": {"address": address, "port_value": port}}


def kserve_services(documents):
    """The Services that KServe makes of InferenceServices: its runtimes' containers do not name their port."""
    for service in of_kind(documents, "InferenceService"):
        name, namespace = f"{service['metadata']['name']}-predictor", service["metadata"]["namespace"]
        ports = [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"app": f"isvc.{name}"}, "ports": ports},
        }
