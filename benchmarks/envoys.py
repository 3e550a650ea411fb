"""Make the Envoy configurations of all variants from the shipped one.

Tokenweir and the no-op processors get the shipped configuration as it is. The others get it without some of its
filters.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.variants import Messages
from extproc.local.envoy_config import EnvoyOptions, render
from extproc.local.ports import HOST

Config = dict[str, Any]
Shape = Callable[[Config], None]

_JWT = "envoy.filters.http.jwt_authn"
_ROUTER = "envoy.filters.http.router"
_LUA_SOURCE = Path(__file__).parent / "talk.lua"
# Envoy ends requests when its heap is nearly full, and 10,000 streams take 0.8 GB of it.
_HEAP_BYTES = 4 << 30
_NOWHERE = f"{HOST}:1"
_HEADERS_READ = (
    ":method",
    ":path",
    ":status",
    "content-encoding",
    "content-length",
    "content-type",
    "metadata",
    "oc_sa",
    "x-request-id",
)


def configuration(options: EnvoyOptions, shape: Shape | None = None) -> str:
    """Return the shipped configuration as YAML, changed by `shape`; unchanged without one."""
    text = render(options)
    if shape is None:
        return text
    config = yaml.safe_load(text)
    shape(config)
    return yaml.safe_dump(config, sort_keys=False)


def alone(config: Config) -> None:
    """Leave the router only, without an access log."""
    _keep_filters(config, {_ROUTER})
    del _manager(config)["access_log"]


def jwt_and_log(config: Config) -> None:
    """Leave the check of the token, the access log and the router."""
    _keep_filters(config, {_JWT, _ROUTER})


def talk(meter_port: int) -> Shape:
    """Return the compared design: the same token check and access log, and Lua that calls a service."""

    def shape(config: Config) -> None:
        jwt_and_log(config)
        filters = _manager(config)["http_filters"]
        provider = filters[0]["typed_config"]["providers"]["tokens"]
        provider["claim_to_headers"] = [{"header_name": "oc_sa", "claim_name": "sub"}]
        filters.insert(1, _lua())
        config["static_resources"]["clusters"].append(_meter(config, meter_port))

    return shape


def sending(messages: Messages) -> Shape:
    """Return the shipped configuration with fewer messages to the processor, or with shorter ones."""

    def shape(config: Config) -> None:
        filters = _manager(config)["http_filters"]
        processor = next(each for each in filters if each["name"] == "tokenweir")["typed_config"]
        match messages:
            case Messages.NO_ANSWER:
                processor["processing_mode"] |= {"response_header_mode": "SKIP", "response_body_mode": "NONE"}
            case Messages.NO_ANSWER_HEAD:
                processor["processing_mode"]["response_header_mode"] = "SKIP"
            case Messages.FEW_HEADERS:
                patterns = [{"exact": name, "ignore_case": True} for name in _HEADERS_READ]
                processor["forward_rules"] = {"allowed_headers": {"patterns": patterns}}

    return shape


def _manager(config: Config) -> Config:
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    manager: Config = chain["filters"][0]["typed_config"]
    return manager


def _keep_filters(config: Config, names: set[str]) -> None:
    manager = _manager(config)
    manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] in names]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.pop("typed_per_filter_config", None)
    clusters = config["static_resources"]["clusters"]
    clusters[:] = [each for each in clusters if each["name"] != "tokenweir"]


def _lua() -> Config:
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": _LUA_SOURCE.read_text(encoding="utf-8")},
        },
    }


def _meter(config: Config, port: int) -> Config:
    model = config["static_resources"]["clusters"][0]
    address = {"socket_address": {"address": HOST, "port_value": port}}
    return {
        "name": "meter",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": model["circuit_breakers"],
        "load_assignment": {
            "cluster_name": "meter",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def options(
    *, listener: int, admin: int, issuer: Any, upstream_port: int, processor: str = _NOWHERE, **further: Any
) -> EnvoyOptions:
    """Return the options of one Envoy. `issuer` is the `TokenIssuer` of the run."""
    return EnvoyOptions(
        listener_port=listener,
        admin_port=admin,
        jwks_json=issuer.jwks_json(),
        issuer=issuer.issuer,
        audience=issuer.audience,
        processor_addresses=(processor,),
        upstream_url=f"http://{HOST}:{upstream_port}",
        max_heap_bytes=_HEAP_BYTES,
        **further,
    )
