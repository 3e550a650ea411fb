"""Where istiod puts the charts' patches, and that a broken patch is seen."""

from copy import deepcopy

import pytest

from tests.charts.helm import pick

from .checks import check_order, check_routes, doctors_errors
from .mesh import GATEWAY_LISTENER

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]

MODELS = "-predictor.models.svc.cluster.local"


async def test_a_gateway_asks_who_calls_before_it_counts(mesh):
    check_order(await mesh.proxies["gateway"].dump(), {GATEWAY_LISTENER})


async def test_no_route_of_a_gateway_to_a_model_lacks_the_meter(mesh):
    routes = check_routes(await mesh.proxies["gateway"].dump(), MODELS)
    assert {route["name"] for route in routes} == {
        "models.qwen-predictor",
        "models.qwen-primary-predictor",
        "models.qwen-canary-predictor",
    }


async def test_doctor_finds_nothing_wrong_with_what_istiod_makes(mesh):
    assert await doctors_errors(mesh.proxies["gateway"]) == []


async def test_requests_of_a_gateway_reach_the_pods_with_mtls(mesh):
    dump = await mesh.proxies["gateway"].dump()
    clusters = [
        held["cluster"]
        for part in dump["configs"]
        for held in part.get("dynamic_active_clusters", [])
        if MODELS in held["cluster"]["name"] or "|50051||" in held["cluster"]["name"]
    ]
    assert len(clusters) == 4
    for cluster in clusters:
        text = str(cluster)
        assert "sds-grpc" in text, cluster["name"]
        assert "spiffe://cluster.local/ns/" in text, cluster["name"]


def _wrong_name(patches):
    """The filter is called otherwise than the routes say."""
    patches[1]["patch"]["value"]["name"] = "tokenweir-2"


def _wrong_order(patches):
    """First instead of before the router: nobody has been asked who calls."""
    for each in patches[:3]:
        each["patch"]["operation"] = "INSERT_FIRST"


def _wrong_match(patches):
    """The name of a filter of Envoy's former versions, which istiod no longer uses."""
    for each in patches[:3]:
        each["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"] = "envoy.router"


def _wrong_context(patches):
    """For another kind of proxy than the one that is selected."""
    for each in patches[:3]:
        each["match"]["context"] = "SIDECAR_INBOUND"


@pytest.mark.parametrize("broken", [_wrong_name, _wrong_order, _wrong_match, _wrong_context])
async def test_a_broken_patch_is_seen_by_this_suite_and_by_doctor(start, mesh, issuer, tmp_path, broken):
    documents = deepcopy(mesh.documents)
    broken(pick(documents, "EnvoyFilter", "tokenweir")["spec"]["configPatches"])
    async with start(documents, issuer, tmp_path, gateway_only_of=mesh):
        gateway = mesh.proxies["gateway"]
        assert await doctors_errors(gateway) != []
        with pytest.raises(AssertionError):
            check_order(await gateway.dump(), {GATEWAY_LISTENER})
    assert await doctors_errors(mesh.proxies["gateway"]) == []


async def test_a_patch_of_a_route_that_does_not_exist_is_seen(start, mesh, issuer, tmp_path):
    documents = deepcopy(mesh.documents)
    patches = pick(documents, "EnvoyFilter", "models.qwen")["spec"]["configPatches"]
    patches[0]["match"]["routeConfiguration"]["vhost"]["route"]["name"] = "models.qwen"
    async with start(documents, issuer, tmp_path, gateway_only_of=mesh):
        with pytest.raises(AssertionError, match=r"models\.qwen-predictor"):
            check_routes(await mesh.proxies["gateway"].dump(), MODELS)
