"""Token quotas and request limits, on real Envoys and a real processor."""

import pytest
import pytest_asyncio

from extproc.core.request.buffers import MAX_BODY_BYTES
from extproc.local.ports import free_ports
from tests.changing import replace

from .conftest import LLM, TOKENWEIR
from .mesh import documents_of, values
from .test_callers import BODY, CHAT, SAME
from .upstream import TOKENS

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]

QUOTA = 10 * TOKENS
IRIS = {
    "inferenceservice": {
        "predictor": {
            "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/1", "newStorageUri": "s3://b/2"}
        }
    },
    "ratelimitIPPerMinute": 7,
    "ratelimitEachSAPerMinute": 4,
}
PREDICT = "/v1/models/qwen:predict"


def limited_gateway(start, mesh, issuer, folder, **more):
    documents = documents_of(values(issuer, **LLM | more), TOKENWEIR)
    return start(documents, issuer, folder, gateway_only_of=mesh)


async def statuses(mesh, count, account, path=CHAT, **where):
    async with mesh.outside(**where) as client:
        return [
            (await client.post(path, headers=mesh.token(account), json=BODY)).status_code for _ in range(count)
        ]


async def test_a_token_quota_is_enforced_and_shared_by_primary_and_canary(start, mesh, issuer, tmp_path):
    limit = {"scope": "service_account", "amount": QUOTA, "window": "day"}
    async with limited_gateway(start, mesh, issuer, tmp_path, tokenLimit={"limits": [limit]}) as gateway:
        async with gateway.outside(variant="-primary") as client:
            answers = [await client.post(CHAT, headers=gateway.token("spender"), json=BODY) for _ in range(12)]
        admitted = [answer.status_code for answer in answers].index(429)
        assert {answer.status_code for answer in answers[admitted:]} == {429}
        # Each used 20 of 200; the last ones may not be begun, as they could use more than is left.
        assert QUOTA - 3 * TOKENS <= admitted * TOKENS <= QUOTA
        denied = answers[-1]
        error = denied.json()["error"]
        assert error["code"] == "rate_limit_exceeded"
        assert error["message"].startswith(f"Usage over limit -- serviceAccount. Limit {QUOTA} tokens per day:")
        assert int(denied.headers["retry-after"]) > 60
        # No second budget on another host, from another address; but another account has its own.
        for variant in ("", "-canary"):
            assert await statuses(gateway, 1, "spender", variant=variant, address="127.0.0.2") == [429]
        assert await statuses(gateway, 1, "saver", variant="-canary") == [200]


async def test_requests_to_an_llm_are_limited_by_address_and_by_account(start, mesh, issuer, tmp_path):
    limits = {"ratelimitIPPerMinute": 6, "ratelimitEachSAPerMinute": 4}
    async with limited_gateway(start, mesh, issuer, tmp_path, **limits) as gateway:
        assert await statuses(gateway, 5, "a", variant="-primary") == [200] * 4 + [429]
        assert await statuses(gateway, 3, "b", variant="-canary") == [200] * 2 + [429]
        # A header doesn't make another address; another address is one.
        async with gateway.outside() as client:
            forged = {
                "x-forwarded-for": "10.9.9.9",
                "x-envoy-external-address": "10.9.9.9",
                "x-real-ip": "10.9.9.9",
            }
            answer = await client.post(CHAT, headers={**gateway.token("c"), **forged}, json=BODY)
            assert answer.status_code == 429
        assert await statuses(gateway, 1, "c", address="127.0.0.2") == [200]
        assert await statuses(gateway, 1, "a", address="127.0.0.2") == [429]


async def test_a_stranger_uses_up_nothing(start, mesh, issuer, tmp_path):
    async with limited_gateway(start, mesh, issuer, tmp_path, ratelimitIPPerMinute=2) as gateway:
        forged = {"authorization": f"Bearer {issuer.forge('robot', tenant='acme', audience='models')}"}
        async with gateway.outside(address="127.0.0.3") as client:
            for headers in ({}, forged, gateway.token(audience="payroll")) * 3:
                assert (await client.post(CHAT, headers=headers, json=BODY)).status_code in {401, 403}
            token = gateway.token()["authorization"].removeprefix("Bearer ")
            assert (await client.post(f"{CHAT}?access_token={token}", json=BODY)).status_code == 403
        assert await statuses(gateway, 3, "d", address="127.0.0.3") == [200, 200, 429]


async def test_a_body_that_is_too_large_is_refused(mesh):
    body = {**BODY, "messages": [{"role": "user", "content": "x" * MAX_BODY_BYTES}]}
    async with mesh.outside() as client:
        answer = await client.post(CHAT, headers=mesh.token("large"), json=body)
    assert answer.status_code == 413


async def test_the_processor_being_away_lets_nobody_through(start, mesh, issuer, tmp_path):
    away = replace(mesh, processor=free_ports(1)[0])
    async with limited_gateway(start, away, issuer, tmp_path) as gateway:
        assert await statuses(gateway, 3, "e") == [503] * 3


# ---------------------------------------------------------------- a model that is no LLM


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def iris(start, issuer, tmp_path_factory):
    documents = documents_of(values(issuer, **IRIS), TOKENWEIR)
    async with start(documents, issuer, tmp_path_factory.mktemp("iris")) as started:
        yield started


@pytest.mark.thorough
async def test_a_model_that_is_no_llm_is_limited_by_address_and_by_account(iris):
    assert await statuses(iris, 5, "a", PREDICT, variant="-primary") == [200] * 4 + [429]
    assert await statuses(iris, 4, "b", PREDICT, variant="-canary") == [200] * 3 + [429]
    async with iris.outside() as client:
        answer = await client.post(PREDICT, headers={**iris.token("c"), "x-forwarded-for": "10.9.9.9"}, json=BODY)
    assert answer.status_code == 429
    assert answer.json()["error"]["message"].startswith("Usage over limit -- IP. Limit 7 requests per minute:")
    assert await statuses(iris, 1, "a", PREDICT, address="127.0.0.2") == [429]
    assert await statuses(iris, 1, "c", PREDICT, address="127.0.0.2") == [200]


@pytest.mark.thorough
async def test_its_administration_is_closed_and_its_callers_inside_need_no_token(iris):
    async with iris.inside(SAME) as client:
        assert (await client.post(PREDICT, json=BODY)).status_code == 200
        assert (await client.get("/metrics")).status_code == 403
    async with iris.outside(address="127.0.0.4") as client:
        assert (await client.get("/metrics", headers=iris.token())).status_code == 404


# ---------------------------------------------------------------- at the pods


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def at_pods(start, issuer, tmp_path_factory):
    limit = {"scope": "service_account", "amount": QUOTA, "window": "day"}
    section = {"tokenweir": {"placement": "sidecar"}}
    model = values(issuer, **LLM, tokenLimit={"limits": [limit]}, platform=section)
    filters = {**TOKENWEIR, "placement": "sidecar", "sidecar": {"namespaces": ["models"]}}
    documents = documents_of(model, filters)
    async with start(documents, issuer, tmp_path_factory.mktemp("pods")) as started:
        yield started


@pytest.mark.thorough
async def test_at_the_pods_a_quota_holds_for_callers_from_outside_and_inside(at_pods):
    found = await statuses(at_pods, 12, "outsider")
    assert found == sorted(found)
    assert 7 <= found.count(200) <= 10
    assert found.count(429) == 12 - found.count(200)
    # Without a token the caller is its mTLS identity, on whichever variant.
    inside = []
    for number in range(12):
        async with at_pods.inside(SAME, list(at_pods.sidecars)[number % 2]) as client:
            inside.append((await client.post(CHAT, json=BODY)).status_code)
    assert inside == sorted(inside)
    assert 7 <= inside.count(200) <= 10
    async with at_pods.inside("cluster.local/ns/models/sa/other") as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200
