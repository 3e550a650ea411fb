"""What an Envoy's configuration must be, whoever made it: the order of filters, and that no route goes around them."""

from datetime import UTC, datetime

from extproc.admin.doctor import Doctor
from extproc.admin.doctor_envoy import Expected
from extproc.admin.envoy_dump import config_of, read_dump, type_of
from extproc.admin.findings import Level

OURS = ["tokenweir.buffer", "tokenweir", "tokenweir.ratelimit"]
_CORE = "envoy.filters.http."
EXPECTED = Expected(
    jwt_namespace="envoy.filters.http.jwt_authn",
    identity_headers=(),
    max_body_bytes=33_554_432,
    decision_timeout_s=0.1,
)


def check_order(dump, listeners):
    """Who is asked before what is counted, and both before the router: in each HTTP chain of these listeners."""
    chains = [chain for chain in read_dump(dump, {}).chains if chain.listener in listeners]
    assert chains, f"none of {listeners} is there"
    for chain in chains:
        names = [each["name"] for each in chain.filters]
        assert names[-4:] == [*OURS, f"{_CORE}router"], names
        before = [each for each in names if each in (f"{_CORE}jwt_authn", f"{_CORE}rbac", f"{_CORE}cors")]
        assert before == sorted(before, key=_rank), names
        assert {f"{_CORE}jwt_authn", f"{_CORE}rbac"} <= set(names), names
        for each in chain.filters:
            assert (each["name"] in OURS) == bool(each.get("disabled")), each["name"]


def _rank(name):
    return ("jwt_authn", "rbac", "cors").index(name.removeprefix(_CORE))


def check_routes(dump, to, *, meter="tokenweir"):
    """Each route to a cluster whose name contains `to` switches the meter on, and says whose limits it counts."""
    routes = [route for route in read_dump(dump, {}).routes if to in str(route.get("route"))]
    assert routes, f"no route leads to {to}"
    for route in routes:
        found = route.get("typed_per_filter_config", {})
        assert {"tokenweir.buffer", meter} <= found.keys(), (route.get("name"), route["match"])
        told = {each["key"]: each["value"] for each in found[meter]["overrides"]["grpc_initial_metadata"]}
        assert told["tokenweir-route"], route.get("name")
        # At pods Istio tries again what was not sent: nothing runs twice.
        tried_on = route["route"].get("retry_policy", {"retry_on": "reset-before-request"})["retry_on"]
        assert tried_on == "reset-before-request", route.get("name")
    return routes


def check_tcp_chains(dump, listener="virtualInbound"):
    """A chain that does not read HTTP has no meter, so that its network RBAC lets nothing through."""
    found = 0
    for part in dump["configs"]:
        for held in part.get("dynamic_listeners", []):
            if held["name"] != listener:
                continue
            for chain in held["active_state"]["listener"]["filter_chains"]:
                kinds = [type_of(each).rpartition(".")[2] for each in chain["filters"]]
                if "TcpProxy" not in kinds or "blackhole" in chain.get("name", ""):
                    continue
                found += 1
                assert kinds == ["RBAC", "RBAC", "TcpProxy"], kinds
                (allow,) = (config_of(each) for each in chain["filters"][:2] if _action(each) == "ALLOW")
                for policy in allow["rules"]["policies"].values():
                    assert _never(policy), policy
    return found


def _action(each):
    return config_of(each)["rules"].get("action", "ALLOW")


def _never(policy):
    """Istio writes so what a rule about HTTP is worth where there is none."""
    return {"not_rule": {"any": True}} in policy["permissions"] or {"not_id": {"any": True}} in policy[
        "principals"
    ]


async def doctors_errors(proxy):
    """What `tokenweir doctor --envoy-admin` says is wrong."""
    return [each for each in await doctors_findings(proxy) if each.level is Level.ERROR]


async def doctors_findings(proxy):
    """All that it says."""

    async def fetch(path):
        return (await proxy.ask(path)).json()

    doctor = Doctor(None, None, lambda: datetime.now(UTC))
    return await doctor.envoy(fetch, EXPECTED)
