"""Judge Envoy's set-up: whether every metered request passes Tokenweir, and what it is told of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from extproc.admin.envoy_dump import (
    Chain,
    Dump,
    Json,
    cluster_of,
    config_of,
    get,
    listed,
    per_route,
    seconds,
    type_of,
)
from extproc.admin.findings import Finding, error, note, ok, warning
from extproc.core.quota.routes import LIMITS_KEY, ROUTE_KEY, BadRoute, read_route

PART: Final = "envoy"
_DEFAULT_MESSAGE_TIMEOUT_S: Final = 0.2
# Envoy's default of requests at once to a cluster. Streams last for minutes.
_DEFAULT_MAX_REQUESTS: Final = 1024
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_ROLES: Final = {"waypoint": "a waypoint of Istio's ambient mesh", "sidecar": "a sidecar", "router": "a gateway"}


@dataclass(frozen=True, slots=True)
class Expected:
    """Hold the settings that Envoy's set-up has to agree with. `identity_headers` name callers, if any are set."""

    jwt_namespace: str
    identity_headers: tuple[str, ...]
    max_body_bytes: int
    decision_timeout_s: float


def judged_envoy(dump: Dump, expected: Expected) -> Iterator[Finding]:
    """Judge a dump of Envoy's configuration."""
    yield from _role(dump)
    chains = [chain for chain in dump.chains if chain.processor is not None]
    if not chains and dump.node.startswith("waypoint~"):
        yield error(
            PART,
            "this waypoint has no ext_proc filter of Tokenweir: the charts do not meter at waypoints",
            "nothing is metered here: requests pass without limits",
            "meter at a gateway or at pods with sidecars (docs/istio.md)",
        )
        return
    if not chains:
        yield error(
            PART,
            "no listener has an ext_proc filter named tokenweir, or one that calls a cluster named so",
            "nothing is metered here: requests pass without limits",
            "add the filter (docs/operators.md, 'What runs'; extproc/local/envoy.yaml has a whole configuration); "
            "with the chart, check filter.gateway.selector",
        )
        return
    for chain in chains:
        yield from _judged_chain(chain, dump, expected)


def _role(dump: Dump) -> Iterator[Finding]:
    role = _ROLES.get(dump.node.partition("~")[0])
    if role is None:
        return
    waypoint = dump.node.startswith("waypoint~")
    yield note(
        PART,
        f"this Envoy is {role} ({dump.node.split('~')[2] if dump.node.count('~') > 1 else dump.node})",
        "a waypoint sees only traffic that is sent through it: who calls a pod's address passes it by"
        if waypoint
        else "",
        "label the namespace or service with istio.io/use-waypoint, and deny other traffic (docs/security.md)"
        if waypoint
        else "",
    )


def _judged_chain(chain: Chain, dump: Dump, expected: Expected) -> Iterator[Finding]:
    place = chain.processor or 0
    processor = chain.filters[place]
    name, config = str(processor.get("name", "")), config_of(processor)
    where = f"listener {chain.listener or '(unnamed)'}"
    yield from _others(chain, place, where)
    found = [
        *_order(chain, place, where, expected),
        *_switched_on(processor, name, dump, where),
        *_modes(config, where),
        *_told(config, where, expected),
        *_identity_headers(chain, where, expected),
        *_request_id(chain, where),
        *_buffer(chain, where, expected),
        *_cluster(processor, dump, where),
        *_route_limits(dump, name, where),
    ]
    yield from found or [ok(PART, f"{where}: filter {name!r} is as it should be")]


def _order(chain: Chain, place: int, where: str, expected: Expected) -> Iterator[Finding]:
    tokens = chain.index(".JwtAuthentication")
    if tokens is None and not expected.identity_headers:
        yield warning(
            PART,
            f"{where}: no jwt_authn filter",
            "no caller is named by a token: all share one service account, unless the mesh names them",
            "add jwt_authn before ext_proc, or set identity.service_account_header or identity.peer_principals",
        )
    elif tokens is not None and tokens > place:
        yield error(
            PART,
            f"{where}: ext_proc comes before jwt_authn",
            "Tokenweir sees no verified token: every caller counts as unknown",
            "move ext_proc behind jwt_authn",
        )
    buffer = chain.index(".buffer.v3.Buffer")
    if buffer is None or buffer > place:
        yield warning(
            PART,
            f"{where}: no buffer filter before ext_proc",
            "a body comes in pieces: large requests take longer, and may stall on flow control",
            "add envoy.filters.http.buffer before ext_proc",
        )
    router = chain.index(".Router")
    if router is not None and router < place:
        yield error(
            PART,
            f"{where}: ext_proc comes after the router",
            "nothing is metered: the router ends the chain",
            "move ext_proc before the router",
        )


def _others(chain: Chain, place: int, where: str) -> Iterator[Finding]:
    """Name other ext_proc filters of the chain, such as the endpoint picker of an InferencePool."""
    for at, each in enumerate(chain.filters):
        if at != place and type_of(each).endswith(".ExternalProcessor"):
            order = "before" if at < place else "after"
            yield note(
                PART,
                f"{where}: another ext_proc, {each.get('name')!r}, comes {order} Tokenweir",
                "it sees requests that are denied afterwards, and what it changes is what is counted"
                if at < place
                else "it sees admitted requests only, and what it changes is not counted",
                "each one costs a stream per request (docs/istio.md)",
            )


def _switched_on(processor: Json, name: str, dump: Dump, where: str) -> Iterator[Finding]:
    says = [per_route(route, name) for route in dump.routes]
    on = sum(each is not None and not each.get("disabled") for each in says)
    if processor.get("disabled") is True and not on:
        yield error(
            PART,
            f"{where}: the filter {name!r} is off, and no route switches it on",
            "nothing is metered",
            f"give routes typed_per_filter_config with the key {name!r}; it has to equal the filter's name",
        )
    off = [
        route for route, each in zip(dump.routes, says, strict=True) if each is not None and each.get("disabled")
    ]
    loose = [route for route in off if not get(route, "match", "path")]
    if loose:
        yield warning(
            PART,
            f"{where}: {len(loose)} route(s) switch the filter off for more than one exact path",
            "another spelling of a metered path may pass unmetered",
            "switch it off only for exactly matched paths",
        )


def _modes(config: Json, where: str) -> Iterator[Finding]:
    if config.get("failure_mode_allow"):
        yield error(
            PART,
            f"{where}: failure_mode_allow is true",
            "while Tokenweir is away, every request passes without limits and without a record",
            "set failure_mode_allow: false",
        )
    if config.get("observability_mode"):
        yield error(PART, f"{where}: observability_mode is true", "nothing is ever denied", "remove it")
    if config.get("disable_immediate_response"):
        yield error(
            PART,
            f"{where}: disable_immediate_response is true",
            "a denial is no answer: clients get 500",
            "remove disable_immediate_response",
        )
    mode = config.get("processing_mode") or {}
    wanted = {
        "request_header_mode": ("SEND", "DEFAULT"),
        "request_body_mode": ("STREAMED",),
        "response_header_mode": ("SEND", "DEFAULT"),
        "response_body_mode": ("STREAMED",),
    }
    absent = {"request_header_mode": "DEFAULT", "response_header_mode": "DEFAULT"}
    for field, allowed in wanted.items():
        value = mode.get(field) or absent.get(field, "NONE")
        if value not in allowed:
            why = (
                "usage is not seen, and answers are charged by an estimate"
                if field.startswith("response")
                else "the request can't be read, and is refused"
            )
            yield error(PART, f"{where}: {field} is {value}", why, f"set {field}: {allowed[0]}")
    if mode.get("request_trailer_mode") != "SEND":
        yield warning(
            PART,
            f"{where}: request_trailer_mode is {mode.get('request_trailer_mode', 'DEFAULT')}",
            "a request that ends with trailers waits until it times out",
            "set request_trailer_mode: SEND",
        )
    if not config.get("send_body_without_waiting_for_header_response"):
        yield warning(
            PART,
            f"{where}: send_body_without_waiting_for_header_response is not set",
            "each request takes two round trips",
            "set send_body_without_waiting_for_header_response: true",
        )


def _told(config: Json, where: str, expected: Expected) -> Iterator[Finding]:
    timeout = seconds(config.get("message_timeout"))
    given = timeout if timeout is not None else _DEFAULT_MESSAGE_TIMEOUT_S
    if given < 2 * expected.decision_timeout_s:
        yield error(
            PART,
            f"{where}: message_timeout is {given:g} s; a decision may take {expected.decision_timeout_s:g} s",
            "Envoy gives up before Tokenweir has answered: clients get 504 instead of an answer with a reason",
            "set message_timeout: 1s",
        )
    if expected.jwt_namespace not in _namespaces(config):
        yield error(
            PART,
            f"{where}: metadata_options.forwarding_namespaces.untyped lacks {expected.jwt_namespace}",
            "the verified token does not reach Tokenweir: every caller counts as unknown",
            f"set metadata_options: {{forwarding_namespaces: {{untyped: [{expected.jwt_namespace}]}}}}",
        )
    if "source.address" not in listed(config.get("request_attributes")):
        yield error(
            PART,
            f"{where}: request_attributes lacks source.address",
            "the client IP is not known: limits by client IP count all clients together",
            "set request_attributes: [source.address, request.id]",
        )
    if "response.code_details" not in listed(config.get("response_attributes")):
        yield warning(
            PART,
            f"{where}: response_attributes lacks response.code_details",
            "an error of Envoy's own can't be told from the model server's: some failed requests are charged",
            "set response_attributes: [response.code_details, upstream.request_attempt_count]",
        )


def _namespaces(config: Json) -> list[Any]:
    return listed(get(config, "metadata_options", "forwarding_namespaces", "untyped"))


def _identity_headers(chain: Chain, where: str, expected: Expected) -> Iterator[Finding]:
    mutations = [
        mutation
        for extension in listed(chain.manager.get("early_header_mutation_extensions"))
        for mutation in listed(config_of(extension).get("mutations"))
    ]
    removed = {str(mutation.get("remove", "")).lower() for mutation in mutations if isinstance(mutation, dict)}
    for header in expected.identity_headers:
        if header.lower() not in removed:
            yield error(
                PART,
                f"{where}: a client's own {header} is not removed",
                "a client that sends the header is taken for whom it names",
                f"remove {header} in early_header_mutation_extensions, before the mesh sets it",
            )
    if chain.manager.get("use_remote_address") is not True:
        yield warning(
            PART,
            f"{where}: use_remote_address is not true",
            "X-Forwarded-For of clients may decide the client IP",
            "set use_remote_address: true, and xff_num_trusted_hops to the number of proxies in front",
        )


def _request_id(chain: Chain, where: str) -> Iterator[Finding]:
    if chain.manager.get("preserve_external_request_id"):
        yield warning(
            PART,
            f"{where}: preserve_external_request_id is true",
            "clients choose request ids: one id may stand for several requests in the ledger",
            "set preserve_external_request_id: false",
        )
    if not chain.manager.get("always_set_request_id_in_response"):
        yield note(
            PART,
            f"{where}: always_set_request_id_in_response is not true",
            "a client does not see the x-request-id that `request show` takes",
            "set always_set_request_id_in_response: true",
        )


def _buffer(chain: Chain, where: str, expected: Expected) -> Iterator[Finding]:
    place = chain.index(".buffer.v3.Buffer")
    if place is None:
        return
    bytes_ = config_of(chain.filters[place]).get("max_request_bytes")
    if bytes_ != expected.max_body_bytes:
        yield warning(
            PART,
            f"{where}: buffer.max_request_bytes is {bytes_}, server.max_body_bytes is {expected.max_body_bytes}",
            "the smaller one decides, and its 413 names another number than the other",
            "give both the same value",
        )


def _cluster(processor: Json, dump: Dump, where: str) -> Iterator[Finding]:
    name = cluster_of(processor)
    if name is None:
        yield note(PART, f"{where}: the filter calls no cluster of Envoy's own gRPC", "", "use envoy_grpc")
        return
    cluster = dump.clusters.get(name)
    if cluster is None:
        yield error(
            PART,
            f"{where}: the cluster {name!r} does not exist",
            "every request gets 503",
            "define it, or correct grpc_service.envoy_grpc.cluster_name",
        )
        return
    options = get(cluster, "typed_extension_protocol_options", _HTTP_OPTIONS) or {}
    speaks_h2 = get(options, "explicit_http_config", "http2_protocol_options") is not None
    if not speaks_h2 and cluster.get("http2_protocol_options") is None:
        yield error(
            PART,
            f"{where}: the cluster {name!r} does not speak HTTP/2",
            "ext_proc is gRPC: every request gets 503",
            "set typed_extension_protocol_options with explicit_http_config: {http2_protocol_options: {}}",
        )
    thresholds = [
        each for each in listed(get(cluster, "circuit_breakers", "thresholds")) if isinstance(each, dict)
    ]
    most = next((each.get("max_requests") for each in thresholds if not each.get("priority")), None)
    if most is None or most <= _DEFAULT_MAX_REQUESTS:
        yield warning(
            PART,
            f"{where}: the cluster {name!r} takes {most or _DEFAULT_MAX_REQUESTS} requests at once",
            "further ones get 503; each request is a stream that lasts as long as its answer",
            "raise circuit_breakers.thresholds.max_requests, to server.max_streams or more",
        )
    yield from _hosts(name, dump, where)


def _hosts(name: str, dump: Dump, where: str) -> Iterator[Finding]:
    hosts = dump.hosts.get(name, ())
    healthy = [host for host in hosts if _is_healthy(host)]
    if not hosts:
        yield error(
            PART,
            f"{where}: the cluster {name!r} has no endpoint",
            "every request gets 503",
            "start Tokenweir, or correct the cluster's address or service",
        )
    elif not healthy:
        yield error(
            PART,
            f"{where}: none of the {len(hosts)} endpoint(s) of the cluster {name!r} can be used",
            "every request gets 503",
            "look at the replicas' logs and readiness; with TLS, at server.tls.allowed_sans",
        )
    elif len(healthy) < len(hosts):
        yield note(PART, f"{where}: {len(healthy)} of {len(hosts)} endpoints of the cluster {name!r} can be used")


def _is_healthy(host: Json) -> bool:
    health = get(host, "health_status") or {}
    failed = any(value is True for key, value in health.items() if key.startswith("failed_"))
    counts = {str(get(each, "name")): int(get(each, "value") or 0) for each in listed(get(host, "stats"))}
    never = counts.get("cx_connect_fail", 0) > 0 and counts.get("cx_connect_fail") == counts.get("cx_total")
    return (
        health.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN", "DEGRADED")
        and not failed
        and not never
    )


def _route_limits(dump: Dump, name: str, where: str) -> Iterator[Finding]:
    """Judge the limits that routes carry as metadata of their streams."""
    told: set[str] = set()
    for route in dump.routes:
        metadata = listed(get(per_route(route, name) or {}, "overrides", "grpc_initial_metadata"))
        pairs = {str(get(each, "key")): str(get(each, "value") or "") for each in metadata}
        read = read_route(pairs.get(ROUTE_KEY, ""), pairs.get(LIMITS_KEY, ""))
        if isinstance(read, BadRoute) and read.message not in told:
            told.add(read.message)
            yield error(
                PART,
                f"{where}: a route's limits can't be read: {read.message}",
                "requests on this route are refused",
                "correct its grpc_initial_metadata",
            )
