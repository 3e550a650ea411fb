"""Read what Envoy's admin port tells of its configuration (`/config_dump`) and its clusters (`/clusters`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Json = Mapping[str, Any]

_EXT_PROC: Final = ".ext_proc.v3.ExternalProcessor"
_PER_ROUTE: Final = ".ext_proc.v3.ExtProcPerRoute"
_OURS: Final = "tokenweir"


@dataclass(frozen=True, slots=True)
class Chain:
    """Hold an HTTP connection manager of a listener, with its HTTP filters in their order."""

    listener: str
    manager: Json
    filters: tuple[Json, ...]

    def index(self, suffix: str) -> int | None:
        """Return the place of the first filter whose type ends so; None if there is none."""
        return next((i for i, each in enumerate(self.filters) if type_of(each).endswith(suffix)), None)

    @property
    def processor(self) -> int | None:
        """Return the place of our filter: an ext_proc with our name in it, or in that of its cluster."""
        return next((i for i, each in enumerate(self.filters) if _is_ours(each)), None)


@dataclass(frozen=True, slots=True)
class Dump:
    """Hold the parts of a dump that matter here. `node` is Envoy's own id; Istio's begins with its role."""

    node: str = ""
    chains: tuple[Chain, ...] = ()
    routes: tuple[Json, ...] = ()
    clusters: Mapping[str, Json] = field(default_factory=dict)
    hosts: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)


def read_dump(config: object, clusters: object) -> Dump:
    """Read both answers. What is not as expected is left out, so a dump of anything else is empty."""
    node, chains, routes, known = "", [], [], {}
    for each in _list(_get(config, "configs")):
        node = node or str(_get(each, "bootstrap", "node", "id") or "")
        chains += [chain for listener in _listeners(each) for chain in _chains(listener)]
        for name in ("static_route_configs", "dynamic_route_configs"):
            routes += [
                route
                for held in _list(_get(each, name))
                for host in _list(_get(held, "route_config", "virtual_hosts"))
                for route in _routes(host)
            ]
        for name in ("static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"):
            held_clusters = [_get(held, "cluster") for held in _list(_get(each, name))]
            known.update({str(c["name"]): c for c in held_clusters if isinstance(c, dict) and "name" in c})
    hosts = {
        str(_get(status, "name")): tuple(_list(_get(status, "host_statuses")))
        for status in _list(_get(clusters, "cluster_statuses"))
    }
    return Dump(node, tuple(chains), tuple(routes), known, hosts)


def type_of(value: object) -> str:
    """Return the type of a filter's, or another extension's, configuration."""
    config = config_of(value)
    # Istio may carry an extension's configuration as a TypedStruct.
    return str(config.get("type_url") or config.get("@type") or "")


def config_of(value: object) -> Json:
    """Return the typed configuration of a filter, whatever it is wrapped in."""
    config = _get(value, "typed_config")
    inner = _get(config, "value")
    if isinstance(inner, dict):
        return {**inner, "@type": _get(config, "type_url") or ""}
    return config if isinstance(config, dict) else {}


def per_route(route: Json, name: str) -> Json | None:
    """Return what a route says of the filter of this name; None if it says nothing."""
    found = _get(route, "typed_per_filter_config", name)
    return found if isinstance(found, dict) else None


def cluster_of(processor: Json) -> str | None:
    """Return the cluster that an ext_proc filter calls."""
    name = get(config_of(processor), "grpc_service", "envoy_grpc", "cluster_name")
    return str(name) if name else None


def get(value: object, *path: str) -> Any:
    """Return what stands at a path of keys; None if something on it is not there."""
    return _get(value, *path)


def listed(value: object) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return _list(value)


def seconds(value: object) -> float | None:
    """Return a duration such as "0.250s" in seconds; None for anything else."""
    text = str(value)
    try:
        return float(text.removesuffix("s")) if text.endswith("s") else None
    except ValueError:
        return None


def _is_ours(value: Json) -> bool:
    kind = type_of(value)
    if not kind.endswith(_EXT_PROC):
        return False
    return _OURS in str(value.get("name", "")).lower() or _OURS in str(cluster_of(value) or "").lower()


def _listeners(config: object) -> Iterator[Json]:
    for held in _list(_get(config, "static_listeners")):
        yield _get(held, "listener") or {}
    for held in _list(_get(config, "dynamic_listeners")):
        yield _get(held, "active_state", "listener") or {}


def _chains(listener: Json) -> Iterator[Chain]:
    chains = [*_list(_get(listener, "filter_chains")), _get(listener, "default_filter_chain")]
    for each in chains:
        for network in _list(_get(each, "filters")):
            if type_of(network).endswith(".HttpConnectionManager"):
                manager = config_of(network)
                filters = tuple(f for f in _list(manager.get("http_filters")) if isinstance(f, dict))
                yield Chain(str(_get(listener, "name") or ""), manager, filters)


def _routes(host: object) -> Iterator[Json]:
    """Yield the routes of a virtual host, each with what the host says of filters where the route says nothing."""
    general = _get(host, "typed_per_filter_config") or {}
    for route in _list(_get(host, "routes")):
        if isinstance(route, dict):
            yield {**route, "typed_per_filter_config": {**general, **(route.get("typed_per_filter_config") or {})}}


def _get(value: object, *path: str) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
