"""Render `envoy.yaml`: Envoy in front of one model server, with Tokenweir as external processor."""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template
from urllib.parse import urlsplit

from extproc.core.request.buffers import MAX_BODY_BYTES, MESSAGE_TIMEOUT_S
from extproc.local.local_replies import mappers

# A client of HTTP/1.0 need not name a host.
_HTTP_1_0 = {"accept_http_10": True, "default_host_for_http_10": "gateway"}
_TEMPLATE = "envoy.yaml"
_PROTOCOL_HEADER = "tokenweir-protocol"
_CREDENTIAL_HEADERS = ("authorization", "x-api-key")
_UNIX = "unix:"
_HIGHEST_PORT = 65_535
# Envoy sorts requests by memory in so many classes, powers of two. The smallest has 2^10 bytes or more.
_TRACKED_CLASSES = 8
_LEAST_TRACKED = 10


@dataclass(frozen=True, slots=True)
class ProcessorTLS:
    """Configure mTLS to the processor: paths of PEM files, and the DNS name that its certificate must have."""

    certificate_file: str
    key_file: str
    ca_file: str
    server_name: str


@dataclass(frozen=True, slots=True)
class EnvoyOptions:
    """Configure one Envoy. All ports are TCP ports on 127.0.0.1."""

    listener_port: int
    admin_port: int
    jwks_json: str
    """Give the issuer's public keys as a JSON Web Key Set."""
    issuer: str
    audience: str
    processor_addresses: tuple[str, ...]
    """List one `host:port` (an IP address) or `unix:/path` per worker; at least one."""
    upstream_url: str
    """Give the model server's URL: `http://host[:port]` or `https://host[:port]`, without a path."""
    processor_tls: "ProcessorTLS | None" = None
    """Set mTLS to the processor; None is plaintext, for loopback and Unix sockets."""
    upstream_sni: str | None = None
    """Set the name to request and verify in TLS; None is the host of the URL."""
    upstream_ca_file: str = "/etc/ssl/certs/ca-certificates.crt"
    """Name the certificate authorities that verify an https upstream."""
    identity_headers: tuple[str, ...] = ("oc_sa",)
    """List headers that only the mesh may write; a client's copies are removed."""
    trusted_hops: int = 0
    """Count the proxies in front of this Envoy whose X-Forwarded-For entries are trusted."""
    forward_token: bool = False
    """Pass the caller's token on to the model server, or not."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Bound the request body; use the same value for the processor's `server.max_body_bytes`."""
    message_timeout_s: float = MESSAGE_TIMEOUT_S
    """Bound the time that the processor may take to answer one message; as its `server.message_timeout_s`."""
    idle_timeout_s: float = 300.0
    """Bound the silence on a request or its answer."""
    upstream_keep_alive_s: float = 4.0
    """Bound the time that an unused connection to the model server stays open; less than the server's own (5)."""
    accept_http_1_0: bool = False
    """Serve clients that speak HTTP/1.0, such as nginx by default; else they get 426."""
    share_port: bool = True
    """Let several Envoys, or several threads of one, listen on the port: with False a second one is refused."""
    max_heap_bytes: int = 1 << 30
    """Bound Envoy's own memory: near it, large requests are reset, then new ones refused."""
    max_connections: int = 50_000
    """Bound client connections, and the requests in flight to each cluster."""


def render(options: EnvoyOptions) -> str:
    """Return the configuration as YAML.

    Every value is inserted as JSON, which is YAML too: no value can end its own string or add a key.

    Raises:
        ValueError: an invalid address, port or URL.
    """
    template = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    values = {name: json.dumps(value) for name, value in _values(options).items()}
    return Template(template).substitute(values)


def _values(options: EnvoyOptions) -> Mapping[str, object]:
    upstream = _upstream(options)
    if not options.processor_addresses:
        raise ValueError("at least one processor address is needed")
    return {
        "listener_port": _port(options.listener_port),
        "share_port": options.share_port,
        "admin_port": _port(options.admin_port),
        "max_connections": options.max_connections,
        "max_heap_bytes": options.max_heap_bytes,
        "smallest_tracked": max(_LEAST_TRACKED, options.max_body_bytes.bit_length() - _TRACKED_CLASSES - 1),
        "trusted_hops": options.trusted_hops,
        "early_mutations": _early_mutations(options.identity_headers),
        "idle_timeout": _duration(options.idle_timeout_s),
        "message_timeout": _duration(options.message_timeout_s),
        "upstream_keep_alive": _duration(options.upstream_keep_alive_s),
        "http_1": _HTTP_1_0 if options.accept_http_1_0 else {},
        "local_replies": mappers(
            f"The request body is larger than {options.max_body_bytes} bytes; send a smaller one."
        ),
        "max_body_bytes": options.max_body_bytes,
        "issuer": options.issuer,
        "audience": options.audience,
        "jwks": options.jwks_json,
        "forward_token": options.forward_token,
        "headers_not_forwarded": [_PROTOCOL_HEADER, *(() if options.forward_token else _CREDENTIAL_HEADERS)],
        "protocol_header": _PROTOCOL_HEADER,
        "processor_transport": _mutual_tls(options.processor_tls) if options.processor_tls is not None else _PLAIN,
        "processor_endpoints": [_endpoint(address) for address in options.processor_addresses],
        **upstream,
    }


def _upstream(options: EnvoyOptions) -> Mapping[str, object]:
    url = urlsplit(options.upstream_url)
    host = url.hostname
    if url.scheme not in {"http", "https"} or not host or url.path not in {"", "/"}:
        raise ValueError(f"upstream_url must be http(s)://host[:port], not {options.upstream_url!r}")
    tls = url.scheme == "https"
    return {
        "upstream_host": host,
        "upstream_port": _port(url.port or (443 if tls else 80)),
        "upstream_authority": url.netloc.rpartition("@")[2],
        "upstream_discovery": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "upstream_transport": _tls(options.upstream_sni or host, options.upstream_ca_file) if tls else _PLAIN,
    }


_PLAIN: Mapping[str, object] = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    },
}


def _tls(server_name: str, ca_file: str) -> Mapping[str, object]:
    # Without a CA, Envoy verifies nothing; without a name, it accepts any certificate of that CA.
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": server_name,
            "common_tls_context": {
                "validation_context": {
                    "trusted_ca": {"filename": ca_file},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": server_name}}],
                },
            },
        },
    }


def _mutual_tls(tls: ProcessorTLS) -> Mapping[str, object]:
    transport = json.loads(json.dumps(_tls(tls.server_name, tls.ca_file)))
    own = {"certificate_chain": {"filename": tls.certificate_file}, "private_key": {"filename": tls.key_file}}
    transport["typed_config"]["common_tls_context"] |= {"tls_certificates": [own]}
    return dict(transport)


def _early_mutations(identity_headers: tuple[str, ...]) -> list[Mapping[str, object]]:
    # Envoy compares header names in lower case.
    envoys_own: Mapping[str, object] = {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}
    # For the choice of the route. It goes no further.
    protocol = {"key": _PROTOCOL_HEADER, "value": "%PROTOCOL%"}
    chosen = {"append": {"header": protocol, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
    return [envoys_own, *({"remove": name.lower()} for name in identity_headers), chosen]


def _endpoint(address: str) -> Mapping[str, object]:
    if address.startswith(_UNIX):
        return {"endpoint": {"address": {"pipe": {"path": address.removeprefix(_UNIX)}}}}
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _is_ip(host) or not port.isdecimal():
        raise ValueError(f"a processor address is ip:port or unix:/path, not {address!r}")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": _port(int(port))}}}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(port: int) -> int:
    if not 0 < port <= _HIGHEST_PORT:
        raise ValueError(f"{port} is not a TCP port")
    return port


def _duration(seconds: float) -> str:
    if not seconds > 0:
        raise ValueError(f"a timeout must be positive, not {seconds}")
    return f"{seconds:.3f}s"
