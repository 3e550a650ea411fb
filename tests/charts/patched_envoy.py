"""What istiod does with an EnvoyFilter, as far as the charts' patches go: they are put into an Envoy's configuration.

As in istiod: patches that insert go right before the filter that they match, one after the other; a merge joins
messages field by field and appends to lists; a route is found by its name.
"""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

HCM = "envoy.filters.network.http_connection_manager"
TYPE = "type.googleapis.com/envoy.extensions.filters"
Config = dict[str, Any]


def connection_manager(*routes: Config, domains: tuple[str, ...] = ("*",)) -> Config:
    """A listener's filter as istiod makes it: no filters but the router, and these routes."""
    router = {"@type": f"{TYPE}.http.router.v3.Router"}
    return {
        "name": HCM,
        "typed_config": {
            "@type": f"{TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "use_remote_address": True,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
            "route_config": {
                "name": "routes",
                "virtual_hosts": [{"name": "all", "domains": list(domains), "routes": list(routes)}],
            },
        },
    }


def cluster(name: str, port: int, *, http2: bool = False) -> Config:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    made: Config = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        made["typed_extension_protocol_options"] = {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made


def bootstrap(manager: Config, *clusters: Config, port: int, admin_port: int) -> Config:
    def address(number: int) -> Config:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    listener = {"name": "in", "address": address(port), "filter_chains": [{"filters": [manager]}]}
    return {
        "admin": {"address": address(admin_port)},
        "static_resources": {"listeners": [listener], "clusters": list(clusters)},
    }


def patched(manager: Config, filters: list[Config], context: str) -> Config:
    """The connection manager with the patches of these EnvoyFilters, in the order of their priority."""
    manager = copy.deepcopy(manager)
    for each in sorted(filters, key=lambda one: one["spec"].get("priority", 0)):
        for patch in each["spec"]["configPatches"]:
            assert patch["match"]["context"] == context
            _apply(manager, patch)
    return manager


def _apply(manager: Config, patch: Config) -> None:
    config, value = manager["typed_config"], copy.deepcopy(patch["patch"]["value"])
    match (patch["applyTo"], patch["patch"]["operation"]):
        case ("HTTP_FILTER", "INSERT_BEFORE"):
            found = patch["match"]["listener"]["filterChain"]["filter"]
            assert found["name"] == manager["name"]
            names = [each["name"] for each in config["http_filters"]]
            config["http_filters"].insert(names.index(found["subFilter"]["name"]), value)
        case ("NETWORK_FILTER", "MERGE"):
            assert patch["match"]["listener"]["filterChain"]["filter"] == {"name": manager["name"]}
            assert value["typed_config"].pop("@type") == config["@type"]
            merge(manager, value)
        case ("HTTP_ROUTE", "MERGE"):
            name = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
            for host in config["route_config"]["virtual_hosts"]:
                for route in host["routes"]:
                    if route.get("name") == name:
                        merge(route, value)
        case other:
            raise AssertionError(f"{other}: no patch of this kind is expected")


def merge(into: Config, value: Config) -> None:
    """As protobuf merges: messages field by field, lists one behind the other, the rest is replaced."""
    for key, each in value.items():
        if isinstance(each, dict) and isinstance(into.get(key), dict):
            merge(into[key], each)
        elif isinstance(each, list) and isinstance(into.get(key), list):
            into[key] += each
        else:
            into[key] = each


def refusal(binary: str, config: Config, folder: Path) -> str:
    """What `envoy --mode validate` has against the configuration; empty where nothing."""
    path = folder / "envoy.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [binary, "--mode", "validate", "-c", str(path), "--log-level", "error", "--disable-hot-restart"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr
