"""RequestAuthentication -> jwt_authn, PeerAuthentication -> the mode of mTLS; as istiod does it."""

from .objects import holding
from .strict import fields

JWT = "envoy.filters.http.jwt_authn"
_TYPE = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"


def jwt_filter(documents, workload):
    """The filter, or None where no RequestAuthentication holds for the workload."""
    providers = {}
    for where, _, spec in holding(documents, "RequestAuthentication", workload):
        with fields(spec, where) as found:
            for rule in found.take("jwtRules"):
                providers[f"origins-{len(providers)}"] = _provider(rule, where)
    if not providers:
        return None
    # A token that is there must verify; none is none.
    each = [
        {"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}} for name in providers
    ]
    requires = each[0]
    if len(each) > 1:
        any_valid = [{"provider_name": name} for name in providers]
        requires = {"requires_any": {"requirements": [*any_valid, {"requires_all": {"requirements": each}}]}}
    typed = {
        "@type": _TYPE,
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": requires}],
        "bypass_cors_preflight": True,
    }
    return {"name": JWT, "typed_config": typed}


def _provider(rule, where):
    with fields(rule, where) as found:
        provider = {
            "issuer": found.take("issuer"),
            "audiences": found.take("audiences", []),
            "forward": found.take("forwardOriginalToken", False),
            # jwksUri is fetched by istiod or the sidecar: a live test gives the keys themselves.
            "local_jwks": {"inline_string": found.take("jwks")},
            "payload_in_metadata": "payload",
            "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]},
            "from_headers": [_location(header, where) for header in found.take("fromHeaders", [])],
            "claim_to_headers": [_claim(each, where) for each in found.take("outputClaimToHeaders", [])],
        }
    return {name: value for name, value in provider.items() if value != []}


def _location(header, where):
    with fields(header, where) as found:
        return {"name": found.take("name"), "value_prefix": found.take("prefix", "")}


def _claim(claim, where):
    with fields(claim, where) as found:
        return {"header_name": found.take("header"), "claim_name": found.take("claim")}


def mtls_mode(documents, workload):
    """STRICT or PERMISSIVE (Istio's default). The workload's own policy wins over the namespace's."""
    ranked = {}
    for where, selected, spec in holding(documents, "PeerAuthentication", workload):
        with fields(spec, where) as found:
            mode = found.take("mtls")["mode"]
            ports = found.take("portLevelMtls", {})
            ranked[selected] = ports.get(workload.port, {"mode": mode})["mode"]
    mode = ranked.get(True, ranked.get(False, "PERMISSIVE"))
    assert mode in {"STRICT", "PERMISSIVE"}, mode
    return mode
