"""VirtualService -> routes, as istiod does it."""

from copy import deepcopy

from .objects import named, of_kind
from .strict import fields, only


def virtual_hosts(documents, gateway):
    """Those of one gateway (`namespace/name`, or `mesh`)."""
    hosts = []
    for document in of_kind(documents, "VirtualService"):
        where, namespace = named(document), document["metadata"]["namespace"]
        with fields(document["spec"], where) as spec:
            names, gateways, http = spec.take("hosts"), spec.take("gateways"), spec.take("http")
        if gateway not in gateways:
            continue
        if gateway == "mesh":
            names = [name for short in names for name in (short, _service(short, namespace))]
        routes = [route for rule in http for route in _routes(rule, where, namespace)]
        hosts.append({"name": where, "domains": list(dict.fromkeys(names)), "routes": routes})
    return hosts


def _routes(rule, where, namespace):
    with fields(rule, where) as found:
        name, matches = found.take("name"), found.take("match", [{"uri": {"prefix": "/"}}])
        action = _answer(found, where) or _forward(found, where, namespace)
    for match in matches:
        with fields(match, where) as each:
            kind, value = only(each.take("uri"), where)
        key = {"exact": "path", "prefix": "prefix"}[kind]
        yield {"name": name, "match": {key: value}, **deepcopy(action)}


def _answer(found, where):
    given = found.take("directResponse", None)
    if given is None:
        return None
    with fields(given, where) as answer:
        return {"direct_response": {"status": answer.take("status")}}


def _forward(found, where, namespace):
    with fields(found.take("retries"), where) as retries:
        assert retries.take("attempts") == 0, f"{where}: an inference must not be repeated"
    route = {"timeout": found.take("timeout", "0s")}
    nothing = {"request": {"remove": []}}
    with (
        fields(found.take("headers", nothing), where) as headers,
        fields(headers.take("request"), where) as request,
    ):
        removed = request.take("remove")
    weights = {}
    for backend in found.take("route"):
        with fields(backend, where) as each, fields(each.take("destination"), where) as destination:
            with fields(destination.take("port"), where) as port:
                cluster = f"outbound|{port.take('number')}||{_service(destination.take('host'), namespace)}"
            weights[cluster] = each.take("weight", 100)
    assert sum(weights.values()) == 100, f"{where}: weights {weights}"
    used = [{"name": name, "weight": weight} for name, weight in weights.items() if weight]
    if len(used) == 1:
        route["cluster"] = used[0]["name"]
    else:
        route["weighted_clusters"] = {"clusters": used}
    return {"route": route, "request_headers_to_remove": removed}


def _service(host, namespace):
    return host if "." in host else f"{host}.{namespace}.svc.cluster.local"
