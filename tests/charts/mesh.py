"""What Istio makes of rendered objects, as far as the charts use it: where a request goes, and whether it gets in.

Written from Istio's documentation of VirtualService and AuthorizationPolicy, for tests that ask "may this caller do
that?" instead of comparing YAML. Whatever the charts use that is not known here is an error, not a guess.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Caller:
    """Who is connected (`principal`, of mTLS), and the claims of the token that was verified, if one was."""

    principal: str | None = None
    claims: dict[str, Any] = field(default_factory=dict)


def principal(namespace: str, account: str = "default") -> str:
    return f"cluster.local/ns/{namespace}/sa/{account}"


def destinations(documents: list[Document], host: str, path: str) -> dict[str, int] | int:
    """Where a request from outside goes, by weight; or the status that it gets."""
    for document in documents:
        if document["kind"] == "VirtualService" and "mesh" not in document["spec"]["gateways"]:
            if host in document["spec"]["hosts"]:
                return _virtual_service(document, path)
        elif document["kind"] == "HTTPRoute" and host in document["spec"]["hostnames"]:
            return _http_route(document, path)
    return 404


def _virtual_service(document: Document, path: str) -> dict[str, int] | int:
    for rule in document["spec"]["http"]:
        if any(_uri(match["uri"], path) for match in rule["match"]):
            if "directResponse" in rule:
                return int(rule["directResponse"]["status"])
            return {each["destination"]["host"]: each["weight"] for each in rule["route"]}
    return 404


def _uri(match: dict[str, str], path: str) -> bool:
    ((kind, value),) = match.items()
    return {"exact": path == value, "prefix": path.startswith(value)}[kind]


def _http_route(document: Document, path: str) -> dict[str, int] | int:
    """The most specific match of all rules: exact before prefix, then the longest."""
    found = []
    for rule in document["spec"]["rules"]:
        for match in (each["path"] for each in rule["matches"]):
            value = match["value"]
            if match["type"] == "Exact" and path == value:
                found.append((1, len(value), rule))
            elif match["type"] == "PathPrefix" and (path + "/").startswith(value.rstrip("/") + "/"):
                found.append((0, len(value), rule))
    if not found:
        return 404
    rule = max(found, key=lambda each: each[:2])[2]
    return {each["name"]: each["weight"] for each in rule["backendRefs"]} if "backendRefs" in rule else 500


def policies(documents: list[Document], action: str, namespace: str) -> list[Document]:
    """The AuthorizationPolicies of one action that stand in the namespace."""
    return [
        each
        for each in documents
        if each["kind"] == "AuthorizationPolicy"
        and each["spec"]["action"] == action
        and each["metadata"]["namespace"] == namespace
    ]


def admitted(
    documents: list[Document],
    caller: Caller,
    path: str,
    *,
    port: int = 8080,
    method: str = "GET",
    host: str = "",
    namespace: str = "models",
) -> bool:
    """Whether the policies in `namespace` let a request pass: DENY first, then ALLOW, which has to match."""
    request = {"path": path, "port": str(port), "method": method, "host": host}
    if any(_matches(each, caller, request) for each in policies(documents, "DENY", namespace)):
        return False
    allow = policies(documents, "ALLOW", namespace)
    return not allow or any(_matches(each, caller, request) for each in allow)


def shown(documents: list[Document], path: str, namespace: str = "models") -> bool:
    """Whether the provider of a CUSTOM policy is asked about a request for `path`."""
    request = {"path": path, "port": "8080", "method": "GET", "host": "any"}
    return any(_matches(each, Caller(), request) for each in policies(documents, "CUSTOM", namespace))


def _matches(policy: Document, caller: Caller, request: dict[str, str]) -> bool:
    return any(
        _any_of(rule, "from", lambda each: _source(each["source"], caller))
        and _any_of(rule, "to", lambda each: _operation(each["operation"], request))
        and all(_condition(each, caller) for each in rule.get("when", ()))
        for rule in policy["spec"].get("rules", ())
    )


def _any_of(rule: Document, key: str, matches: Any) -> bool:
    return key not in rule or any(matches(each) for each in rule[key])


def _source(source: Document, caller: Caller) -> bool:
    return all(_fields(source, {**_connected(caller), "requestPrincipals": _subject(caller.claims)}))


def _connected(caller: Caller) -> dict[str, str | None]:
    name = caller.principal
    return {"principals": name, "namespaces": name.split("/ns/")[1].split("/")[0] if name else None}


def _subject(claims: dict[str, Any]) -> str | None:
    return f"{claims['iss']}/{claims['sub']}" if "iss" in claims and "sub" in claims else None


def _operation(operation: Document, request: dict[str, str]) -> bool:
    values = {name: request[name.removesuffix("s")] for name in ("paths", "ports", "methods", "hosts")}
    return all(_fields(operation, values))


def _fields(given: Document, values: dict[str, Any]) -> Iterator[bool]:
    for name, patterns in given.items():
        if name.startswith("not"):
            yield not _like(values[name[3].lower() + name[4:]], patterns)
        else:
            yield _like(values[name], patterns)


def _condition(condition: Document, caller: Caller) -> bool:
    claim = {"request.auth.audiences": "aud", "request.auth.claims[iss]": "iss"}[condition["key"]]
    found = caller.claims.get(claim, [])
    values = [found] if isinstance(found, str) else found
    wanted = "values" if "values" in condition else "notValues"
    return any(_like(each, condition[wanted]) for each in values) is (wanted == "values")


def _like(value: str | None, patterns: list[str]) -> bool:
    return value is not None and any(_one(value, each) for each in patterns)


def _one(value: str, pattern: str) -> bool:
    if "{*}" in pattern:
        parts, values = pattern.split("/"), value.split("/")
        return len(parts) == len(values) and all(p in ("{*}", v) for p, v in zip(parts, values, strict=True))
    if pattern == "*":
        return value != ""
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value.endswith(pattern[1:]) if pattern.startswith("*") else value == pattern
