"""EnvoyFilter patches, applied to an HTTP connection manager as istiod applies them."""

from copy import deepcopy

from .objects import holding
from .strict import fields

MANAGER = "envoy.filters.network.http_connection_manager"


def apply(documents, workload, context, manager):
    """Changes `manager`, the typed configuration of the connection manager, with its filters and routes."""
    found = sorted(holding(documents, "EnvoyFilter", workload), key=lambda each: each[2].get("priority", 0))
    for where, _, spec in found:
        with fields(spec, where) as taken:
            taken.take("priority", 0)
            for patch in taken.take("configPatches"):
                _apply(patch, context, manager, where)


def _apply(patch, context, manager, where):
    if patch["applyTo"] == "BOOTSTRAP":
        return  # of the whole Envoy, not of a listener: tests/charts/test_platform_gateway.py gives it to one
    with fields(patch, where) as found:
        kind, match, change = found.take("applyTo"), found.take("match"), found.take("patch")
    with fields(change, where) as found:
        operation, value = found.take("operation"), deepcopy(found.take("value"))
    with fields(match, where) as found:
        if found.take("context") != context:
            found.take("listener", None)
            found.take("routeConfiguration", None)
            return
        if kind == "HTTP_ROUTE":
            assert operation == "MERGE", where
            _merge_routes(found.take("routeConfiguration"), value, manager, where)
            return
        with (
            fields(found.take("listener"), where) as listener,
            fields(listener.take("filterChain"), where) as chain,
            fields(chain.take("filter"), where) as target,
        ):
            target.expect("name", MANAGER)
            within = target.take("subFilter", None)
    if kind == "NETWORK_FILTER":
        assert (operation, within) == ("MERGE", None), where
        with fields(value, where) as found:
            merge(manager, found.take("typed_config"), where)
    else:
        assert (kind, operation) == ("HTTP_FILTER", "INSERT_BEFORE"), where
        names = [each["name"] for each in manager["http_filters"]]
        manager["http_filters"].insert(names.index(within["name"]), value)


def _merge_routes(match, value, manager, where):
    with (
        fields(match, where) as found,
        fields(found.take("vhost"), where) as host,
        fields(host.take("route"), where) as route,
    ):
        name = route.take("name")
        route.expect("action", "ROUTE")
    routes = [each for host in manager["route_config"]["virtual_hosts"] for each in host["routes"]]
    wanted = [each for each in routes if each["name"] == name and "route" in each]
    assert wanted, f"{where}: no route is called {name!r}"
    for each in wanted:
        merge(each, value, where)


def merge(base, change, where):
    """As protobuf merges: messages within messages, lists at the end of lists, a map's value for another."""
    for name, value in change.items():
        assert not isinstance(value, bool | int | float) or value, f"{where}: a merge loses {name}: {value}"
        if name not in base:
            base[name] = deepcopy(value)
        elif name == "typed_per_filter_config":
            base[name] = {**base[name], **deepcopy(value)}
        elif isinstance(value, dict):
            merge(base[name], value, where)
        elif isinstance(value, list):
            base[name] = [*base[name], *deepcopy(value)]
        else:
            assert name != "@type" or base[name] == value, f"{where}: {value} into {base[name]}"
            base[name] = value
