"""Who gets in, on real Envoys that are made of the rendered charts."""

import httpx
import pytest
import pytest_asyncio

from .conftest import LLM, TOKENWEIR
from .identities import Authority
from .mesh import NAMESPACE, documents_of, values

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
BODY = {"model": "qwen", "messages": [{"role": "user", "content": "1 + 1 =?"}], "max_tokens": 16}
SAME = f"cluster.local/ns/{NAMESPACE}/sa/notebook"
OTHER = "cluster.local/ns/other/sa/notebook"
GATEWAY = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"


async def ask(client, headers=None, path=CHAT, method="POST"):
    # The target as it is: httpx would make "//metrics" a host.
    body, target = BODY if method == "POST" else None, {"target": path.encode()}
    async with client:
        return await client.request(method, "/", headers=headers, json=body, extensions=target)


async def test_a_token_lets_a_caller_from_outside_in(mesh):
    answer = await ask(mesh.outside(), mesh.token("robot@acme"))
    assert answer.status_code == 200, answer.text
    seen = answer.json()["headers"]
    assert seen["oc_sa"] == "robot@acme"
    assert "authorization" not in seen


async def test_without_a_token_nobody_outside_gets_in(mesh):
    assert (await ask(mesh.outside())).status_code == 403


@pytest.mark.parametrize("variant", ["", "-primary", "-canary"])
async def test_each_published_host_asks_for_a_token(mesh, variant):
    assert (await ask(mesh.outside(variant=variant))).status_code == 403
    answer = await ask(mesh.outside(variant=variant), mesh.token())
    assert answer.status_code == 200
    assert answer.json()["model"] == (variant.removeprefix("-") or answer.json()["model"])


async def test_a_forged_an_expired_and_another_audiences_token_are_refused(mesh):
    forged = f"Bearer {mesh.issuer.forge('robot', tenant='acme', audience='models')}"
    assert (await ask(mesh.outside(), {"authorization": forged})).status_code == 401
    assert (await ask(mesh.outside(), mesh.token(ttl_s=-120))).status_code == 401
    assert (await ask(mesh.outside(), mesh.token(audience="payroll"))).status_code == 403
    assert (await ask(mesh.outside(), {"authorization": "Bearer nonsense"})).status_code == 401


async def test_a_token_is_taken_from_no_other_place(mesh):
    token = mesh.token()["authorization"].removeprefix("Bearer ")
    assert (await ask(mesh.outside(), path=f"{CHAT}?access_token={token}")).status_code == 403
    assert (await ask(mesh.outside(), {"x-access-token": token})).status_code == 403


async def test_the_account_that_the_model_sees_is_the_tokens_and_no_clients_copy(mesh):
    forged = {"oc_sa": "admin@other", "OC_SA": "admin@other"}
    for variant in ("", "-primary", "-canary"):
        answer = await ask(mesh.outside(variant=variant), {**mesh.token("robot@acme"), **forged})
        assert answer.json()["headers"]["oc_sa"] == "robot@acme"


async def test_within_the_namespace_no_token_is_needed_and_none_can_be_claimed(mesh):
    for service in mesh.sidecars:
        answer = await ask(mesh.inside(SAME, service), {"oc_sa": "admin@other"})
        assert answer.status_code == 200, (service, answer.text)
        assert "oc_sa" not in answer.json()["headers"]


async def test_another_namespace_needs_a_token(mesh):
    assert (await ask(mesh.inside(OTHER))).status_code == 403
    assert (await ask(mesh.inside(OTHER), mesh.token())).status_code == 200
    forged = f"Bearer {mesh.issuer.forge('robot', tenant='acme', audience='models')}"
    assert (await ask(mesh.inside(OTHER), {"authorization": forged})).status_code == 401
    assert (await ask(mesh.inside(OTHER), mesh.token(audience="payroll"))).status_code == 403


@pytest.mark.parametrize("principal", [GATEWAY, f"cluster.local/ns/{NAMESPACE}/sa/gateway"])
async def test_a_gateway_itself_is_no_caller_not_even_one_of_the_same_namespace(mesh, principal):
    # Whoever reached it without a token would otherwise count as one of its own.
    assert (await ask(mesh.inside(principal))).status_code == 403
    assert (await ask(mesh.inside(principal), mesh.token())).status_code == 200


async def test_a_client_can_not_steer_envoy(mesh):
    forged = {"x-envoy-decorator-operation": "mine", "x-envoy-upstream-rq-timeout-ms": "1"}
    answer = await ask(mesh.outside(), {**mesh.token(), **forged})
    assert answer.status_code == 200
    assert forged.keys() & answer.json()["headers"].keys() == set()


async def test_without_mtls_nobody_reaches_a_pod(mesh):
    for service in mesh.sidecars:
        with pytest.raises(httpx.TransportError):
            await ask(mesh.inside(None, service), mesh.token())


async def test_a_certificate_of_another_mesh_is_refused(mesh, tmp_path):
    url = f"https://{mesh.pod('qwen-primary-predictor')}"
    with pytest.raises(httpx.TransportError):
        await ask(mesh.connect(url, SAME, Authority(tmp_path)))


CLOSED = [
    *("/metrics", "/metrics/", "/v1/load_lora_adapter", "/sleep", "/reset_prefix_cache", "/generate", "/inference/v1/generate"),
    *("/openai/v1/unload_lora_adapter", "/v1/realtime", "/v1/batches", "/collective_rpc", "/server_info"),
]  # fmt: skip
DISGUISED = [
    "//metrics",
    "/v1/models/../../metrics",
    "/./metrics",
    "/%6detrics",
    "/v1/chat/completions/../../../sleep",
]


@pytest.mark.parametrize("path", [*CLOSED, *DISGUISED])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_metrics_and_administration_are_closed_to_the_world(mesh, path, method):
    answer = await ask(mesh.outside(), mesh.token(), path, method)
    assert answer.status_code in {403, 404}, answer.text


@pytest.mark.parametrize("path", [*CLOSED, *DISGUISED])
async def test_they_are_closed_within_the_namespace_too(mesh, path):
    assert (await ask(mesh.inside(SAME), path=path)).status_code == 403
    assert (await ask(mesh.inside(OTHER), mesh.token(), path=path)).status_code == 403


async def test_prometheus_reads_the_metrics_and_nothing_else(mesh):
    prometheus = "cluster.local/ns/infra/sa/prometheus-server"
    assert (await ask(mesh.inside(prometheus), path="/metrics", method="GET")).status_code == 200
    assert (await ask(mesh.inside(prometheus), path="/metrics")).status_code == 403
    assert (await ask(mesh.inside(prometheus))).status_code == 403


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wide(start, issuer, tmp_path_factory):
    """Everything is published that is not closed."""
    documents = documents_of(values(issuer, **LLM, exposeModel={"paths": ["/"]}), TOKENWEIR)
    async with start(documents, issuer, tmp_path_factory.mktemp("wide")) as started:
        yield started


@pytest.mark.thorough
@pytest.mark.parametrize("path", [*CLOSED, *DISGUISED])
async def test_they_are_closed_where_all_paths_are_published(wide, path):
    assert (await ask(wide.outside(), wide.token(), path)).status_code in {403, 404}
    assert (await ask(wide.inside(SAME), path=path)).status_code == 403
    # Any other path is open. There a POST might generate, so the meter itself refuses it.
    assert (await ask(wide.outside(), wide.token(), "/v1/anything/else", "GET")).status_code == 200
    refused = await ask(wide.outside(), wide.token(), "/v1/anything/else")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "endpoint_not_metered")


async def test_another_host_leads_nowhere(mesh):
    for host in (
        "qwen-predictor.models.svc.cluster.local",
        "example.com",
        "qwen-predictor-models.models.example.com.evil.com",
    ):
        async with mesh.outside() as client:
            answer = await client.post(CHAT, headers={**mesh.token(), "host": host}, json=BODY)
        assert answer.status_code == 404


async def test_a_port_or_capital_letters_in_the_host_are_no_way_around(mesh):
    for host in ("qwen-predictor-models.models.example.com:8443", "QWEN-predictor-models.models.example.com"):
        async with mesh.outside() as client:
            assert (await client.post(CHAT, headers={"host": host}, json=BODY)).status_code == 403
            assert (await client.post(CHAT, headers={"host": host, **mesh.token()}, json=BODY)).status_code == 200


async def test_only_the_gateway_may_ask_the_processor(mesh):
    # The answer to a plain HTTP request shows who got as far as the processor.
    for principal, expected in ((SAME, 403), (OTHER, 403), (GATEWAY, 415)):
        async with mesh.connect(f"https://{mesh.at_processor()}", principal) as client:
            status = (await client.post("/envoy.service.ext_proc.v3.ExternalProcessor/Process")).status_code
        assert (status == 403) == (expected == 403), (principal, status)
