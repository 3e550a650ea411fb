"""AuthorizationPolicy -> rbac, as istiod does it: DENY before ALLOW, which has to match where there is one."""

import re

from .authn import JWT
from .objects import holding
from .strict import fields

_TYPE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
_CLAIM = re.compile(r"request\.auth\.(?:audiences|claims\[([^\[\]]+)\])")
_ANY = {"safe_regex": {"regex": ".+"}}


def rbac_filters(documents, workload, listener_port):
    """`listener_port` stands for the workload's own port, which the listener of a test can't have."""
    ports = {str(workload.port): listener_port} | {str(other): other for other in workload.other_ports}
    rules = {"DENY": {}, "ALLOW": {}}
    present = set()
    for where, _, spec in holding(documents, "AuthorizationPolicy", workload):
        with fields(spec, where) as found:
            action = found.take("action", "ALLOW")
            assert action in rules, f"{where}: no action {action} here"
            present.add(action)
            for number, rule in enumerate(found.take("rules", [])):
                rules[action][f"{where} {number}"] = _policy(rule, where, ports)
    for action in ("DENY", "ALLOW"):
        if action in present:
            typed = {"@type": _TYPE, "rules": {"action": action, "policies": rules[action]}}
            yield {"name": "envoy.filters.http.rbac", "typed_config": typed}


def _policy(rule, where, ports):
    with fields(rule, where) as found:
        conditions = [_condition(each, where) for each in found.take("when", [])]
        sources = [_source(each, where) for each in found.take("from", [])] or [[]]
        operations = [_operation(each, where, ports) for each in found.take("to", [])] or [[]]
    return {
        "permissions": [_all("and_rules", "rules", each) for each in operations],
        "principals": [_all("and_ids", "ids", [*each, *conditions]) for each in sources],
    }


def _all(key, inner, parts):
    return {key: {inner: parts or [{"any": True}]}}


def _source(value, where):
    with fields(value, where) as outer, fields(outer.take("source"), where) as found:
        parts = []
        for name, matcher in (
            ("principals", _principal),
            ("requestPrincipals", _request_principal),
            ("namespaces", _namespace),
        ):
            parts += _either(found, name, matcher, ("or_ids", "ids", "not_id"))
        return parts


def _operation(value, where, ports):
    def port(number):
        assert number in ports, f"{where}: port {number} is none of {sorted(ports)}"
        return {"destination_port": ports[number]}

    with fields(value, where) as outer, fields(outer.take("operation"), where) as found:
        parts = []
        for name, matcher in (("hosts", _host), ("methods", _method), ("paths", _path), ("ports", port)):
            parts += _either(found, name, matcher, ("or_rules", "rules", "not_rule"))
        return parts


def _either(found, name, matcher, keys):
    key, inner, negation = keys
    for field, negated in ((name, False), (f"not{name[0].upper()}{name[1:]}", True)):
        values = found.take(field, [])
        if values:
            part = {key: {inner: [matcher(value) for value in values]}}
            yield {negation: part} if negated else part


def _text(value, **more):
    if value == "*":
        return {**_ANY, **more}
    if value.startswith("*"):
        return {"suffix": value[1:], **more}
    return {"prefix": value[:-1], **more} if value.endswith("*") else {"exact": value, **more}


def _principal(value):
    if value == "*" or value.startswith("*"):
        return {"authenticated": {"principal_name": _text(value)}}
    return {"authenticated": {"principal_name": _text(f"spiffe://{value}")}}


def _namespace(value):
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": f".*/ns/{value.replace('*', '.*')}/.*"}}}}


def _request_principal(value):
    """`issuer/subject`; the issuer may have slashes itself."""
    if value == "*":
        return {"and_ids": {"ids": [_claim("iss", _ANY), _claim("sub", _ANY)]}}
    issuer, slash, subject = value.rpartition("/")
    assert slash, value
    assert "*" not in issuer, value
    return {"and_ids": {"ids": [_claim("iss", {"exact": issuer}), _claim("sub", _text(subject))]}}


def _claim(name, matcher):
    return {"metadata": _metadata(name, {"string_match": matcher})}


def _metadata(name, value):
    return {"filter": JWT, "path": [{"key": "payload"}, {"key": name}], "value": value}


def _condition(condition, where):
    with fields(condition, where) as found:
        claim = _CLAIM.fullmatch(found.take("key"))
        values, not_values = found.take("values", []), found.take("notValues", [])
    assert claim, f"{where}: {condition}"
    assert bool(values) != bool(not_values), where
    texts = _one_of([{"string_match": _text(each)} for each in values or not_values])
    # A claim such as `aud` is one text or a list of them.
    either = _one_of([texts, {"list_match": {"one_of": texts}}])
    principal = {"metadata": _metadata(claim[1] or "aud", either)}
    return principal if values else {"not_id": principal}


def _one_of(matchers):
    return {"or_match": {"value_matchers": matchers}} if len(matchers) > 1 else matchers[0]


def _host(value):
    return {"header": {"name": ":authority", "string_match": _text(value, ignore_case=True)}}


def _method(value):
    return {"header": {"name": ":method", "string_match": _text(value)}}


def _path(value):
    if "{" in value:
        template = {"name": "envoy.path.match.uri_template.uri_template_matcher"}
        kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        template["typed_config"] = {
            "@type": kind,
            "path_template": value.replace("{**}", "**").replace("{*}", "*"),
        }
        return {"uri_template": template}
    return {"url_path": {"path": _text(value)}}
