"""Beside an InferencePool's endpoint picker, which is an ext_proc too, and which istiod puts before the meter."""

import pytest

from tests.charts.live.conftest import LLM, TOKENWEIR
from tests.charts.live.mesh import documents_of, values
from tests.charts.live.test_callers import BODY, CHAT
from tests.charts.live.test_limits_enforced import QUOTA
from tests.charts.live.upstream import TOKENS

from .checks import check_order, doctors_findings
from .mesh import GATEWAY_LISTENER
from .picker import patches, picking

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="session")]


async def test_the_meter_counts_and_denies_behind_a_picker(start, mesh, issuer, tmp_path):
    limit = {"scope": "service_account", "amount": QUOTA, "window": "day"}
    documents = documents_of(values(issuer, **LLM, tokenLimit={"limits": [limit]}), TOKENWEIR)
    async with picking() as port:
        documents.append(
            {
                "apiVersion": "networking.istio.io/v1alpha3",
                "kind": "EnvoyFilter",
                "metadata": {"name": "picker", "namespace": "istio-system"},
                "spec": {
                    "workloadSelector": {"labels": {"istio": "ingressgateway"}},
                    "configPatches": patches(port),
                },
            }
        )
        async with start(documents, issuer, tmp_path, gateway_only_of=mesh) as both:
            dump = await both.proxies["gateway"].dump()
            check_order(dump, {GATEWAY_LISTENER})
            async with both.outside() as client:
                answers = [await client.post(CHAT, headers=both.token("picky"), json=BODY) for _ in range(12)]
                admitted = [answer.status_code for answer in answers].index(429)
                assert {answer.status_code for answer in answers[admitted:]} == {429}
                assert QUOTA - 3 * TOKENS <= admitted * TOKENS <= QUOTA
                assert answers[0].json()["usage"]["total_tokens"] == TOKENS
                assert (await client.post(CHAT, json=BODY)).status_code == 403
            (told,) = [
                each for each in await doctors_findings(both.proxies["gateway"]) if "another ext_proc" in each.what
            ]
            assert "comes before" in told.what
