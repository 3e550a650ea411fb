"""Configurations of real Envoys: a gateway, a pod's sidecar, and the sidecar of a caller."""

from .authn import jwt_filter, mtls_mode
from .authz import rbac_filters
from .envoyfilters import MANAGER, apply
from .routes import virtual_hosts

HOST = "127.0.0.1"
_API = "type.googleapis.com/envoy.extensions"
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{_API}.filters.http.router.v3.Router"},
}


class Tls:
    """A workload's certificate, and the CA of the mesh."""

    def __init__(self, authority, workload):
        certificate, key = authority.issue(workload.principal)
        self._common = {
            "tls_certificates": [
                {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            ]
        }
        self._ca = {"trusted_ca": {"filename": str(authority.ca)}}

    def server(self):
        common = {**self._common, "validation_context": self._ca}
        kind = f"{_API}.transport_sockets.tls.v3.DownstreamTlsContext"
        typed = {"@type": kind, "common_tls_context": common, "require_client_certificate": True}
        return {"name": "envoy.transport_sockets.tls", "typed_config": typed}

    def client(self, principal, protocol):
        """To the workload with that identity, and no other."""
        san = {"san_type": "URI", "matcher": {"exact": f"spiffe://{principal}"}}
        validation = {**self._ca, "match_typed_subject_alt_names": [san]}
        common = {**self._common, "validation_context": validation, "alpn_protocols": [protocol]}
        typed = {"@type": f"{_API}.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common}
        return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def cluster(name, port, *, http2=False, socket=None):
    """With Istio's bounds: as good as none."""
    found = {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(
                    ("max_connections", "max_pending_requests", "max_requests", "max_retries"), 4_294_967
                )
            ]
        },
    }
    if socket is not None:
        found["transport_socket"] = socket
    if http2:
        options = {"@type": f"{_API}.upstreams.http.v3.HttpProtocolOptions"}
        options["explicit_http_config"] = {"http2_protocol_options": {}}
        found["typed_extension_protocol_options"] = {f"{_kind('upstreams.http.v3.HttpProtocolOptions')}": options}
    return found


def gateway(documents, workload, gateway_name, ports, clusters):
    """`ports`: listener, admin."""
    manager = _manager(
        _security(documents, workload, ports[0]),
        virtual_hosts(documents, gateway_name),
        use_remote_address=True,
        # As where a load balancer with a private address stands in front: all callers are "internal" to Envoy.
        internal_address_config={"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
    )
    apply(documents, workload, "GATEWAY", manager)
    return _bootstrap(ports, [_chain(manager)], clusters)


def sidecar(documents, workload, ports, target, tls, *, clusters=(), http2=False, runtime=None):
    """The inbound side. `target` is the port of the workload itself."""
    name = f"inbound|{workload.port}||"
    route = {"name": "default", "match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    manager = _manager(
        _security(documents, workload, ports[0]),
        [{"name": f"inbound|http|{workload.port}", "domains": ["*"], "routes": [route]}],
        use_remote_address=False,
        forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details={"uri": True},
    )
    apply(documents, workload, "SIDECAR_INBOUND", manager)
    chains = [_chain(manager, match={"transport_protocol": "tls"}, socket=tls.server())]
    if mtls_mode(documents, workload) == "PERMISSIVE":
        chains.append(_chain(manager, match={"transport_protocol": "raw_buffer"}))
    return _bootstrap(ports, chains, [cluster(name, target, http2=http2), *clusters], runtime)


def caller(documents, ports, clusters):
    """The outbound side of a pod: where its requests to the hosts of the mesh go."""
    manager = _manager([], virtual_hosts(documents, "mesh"), use_remote_address=False)
    return _bootstrap(ports, [_chain(manager)], clusters)


def _security(documents, workload, listener_port):
    jwt = jwt_filter(documents, workload)
    return [*([jwt] if jwt else []), *rbac_filters(documents, workload, listener_port)]


def _manager(filters, hosts, **more):
    return {
        "@type": f"{_API}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "0s",
        "http_filters": [*filters, _ROUTER],
        "route_config": {
            "name": "routes",
            "virtual_hosts": hosts,
            "ignore_port_in_host_matching": True,
            "validate_clusters": True,
        },
        **more,
    }


def _chain(manager, match=None, socket=None):
    chain = {"filters": [{"name": MANAGER, "typed_config": manager}]}
    if match is not None:
        chain["filter_chain_match"] = match
    if socket is not None:
        chain["transport_socket"] = socket
    return chain


def _bootstrap(ports, chains, clusters, runtime=None):
    listener = {"name": "listener", "address": _address(ports[0]), "filter_chains": chains}
    if any("filter_chain_match" in chain for chain in chains):
        kind = f"{_API}.filters.listener.tls_inspector.v3.TlsInspector"
        inspector = {"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": kind}}
        listener["listener_filters"] = [inspector]
    return {
        "admin": {"address": _address(ports[1])},
        "static_resources": {"listeners": [listener], "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "global config", "static_layer": runtime or {}}]},
    }


def _address(port):
    return {"socket_address": {"address": HOST, "port_value": port}}


def _kind(name):
    return f"envoy.extensions.{name}"
