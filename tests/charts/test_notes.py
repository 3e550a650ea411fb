"""NOTES.txt: what was made, how to try it, and what the values leave open."""

import re

import pytest

from tests.charts import helm
from tests.sizes import sampled

LLM = {
    "inferenceservice": {
        "predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://q/q"}}
    }
}
VLLM = {"inferenceservice": {"predictor": {"containers": [{"image": "vllm/vllm-openai:v0.11.0"}]}}}
ONNX = {"inferenceservice": {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://b/m"}}}}
CUSTOM = {"inferenceservice": {"predictor": {"containers": [{"image": "registry.example.com/mine:1"}]}}}
EXPOSED = {"exposeModel": {"enabled": True}}
ISSUER = {"issuer": "https://issuer.example.com", "audiences": ["models"]}
ISSUERS = {"platform": {"jwt": {"issuers": [ISSUER]}}}
HOST = "https://qwen-predictor-models.models.example.com"


def warnings(*values, chart="kserve-model") -> list[str]:
    return re.findall(r"^  \* (.*)$", helm.notes(chart, *values), re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (LLM, f"curl {HOST}/v1/chat/completions"),
        (VLLM, f"curl {HOST}/v1/chat/completions"),
        ({}, f"curl {HOST}/v1/models/qwen:predict"),
        (ONNX, f"curl {HOST}/v2/models/qwen/infer"),
        (CUSTOM, f"curl {HOST}/ "),
    ],
)
def test_the_line_to_try_it_speaks_the_models_protocol_and_shows_a_token(values, line):
    text = helm.notes("kserve-model", values, EXPOSED)
    command = text[text.index("curl ") :].partition("\n\n")[0]
    assert command.startswith(line)
    assert '-H "Authorization: Bearer $TOKEN"' in command


def test_the_model_in_that_line_is_the_name_that_it_is_served_as():
    named = {"inferenceservice": {"servedModelName": "Qwen/Qwen2.5-14B"}}
    assert '"model": "Qwen/Qwen2.5-14B"' in helm.notes("kserve-model", LLM, named)


@pytest.mark.parametrize("chart", ["kserve-model", "kserve-general"])
def test_an_unpublished_model_is_tried_from_inside_without_a_token(chart):
    text = helm.notes(chart, LLM)
    assert "curl http://qwen-predictor.models/v1/chat/completions" in text
    assert "Bearer" not in text
    assert "https://" not in text


def test_it_says_what_was_made_and_where_it_is_found():
    text = helm.notes("kserve-general", LLM, EXPOSED, ISSUERS)
    assert "InferenceService qwen-primary (primary)" in text
    assert "RequestAuthentication" in text
    assert f"  {HOST}\n  https://qwen-primary-predictor-models.models.example.com\n" in text
    assert "canary-predictor" not in text
    assert "HTTPRoute" in helm.notes("kserve-model", EXPOSED, {"exposeModel": {"api": "gateway-api"}})


def test_it_says_how_the_canary_stands():
    canary = {"primaryLoad": 60, "inferenceservice": {"predictor": {"model": {"newStorageUri": "hf://q/2"}}}}
    text = helm.notes("kserve-general", LLM, canary)
    assert "60 % of the requests go to the primary, 40 % to the canary (hf://q/2)" in text
    assert "There is no canary" in helm.notes("kserve-general", LLM)
    assert "canary" not in helm.notes("kserve-model", LLM)


def test_it_says_what_is_limited_and_where():
    rates = {"ratelimitIPPerMinute": 10, "ratelimitEachSAPerMinute": 100}
    text = helm.notes("kserve-model", LLM, rates, EXPOSED)
    assert "Tokens are counted at the gateway" in text
    assert "client_ip:10/minute, service_account:100/minute" in text
    sidecar = {"platform": {"tokenweir": {"placement": "sidecar"}}}
    assert "Requests are limited at its pods: client_ip:10/minute" in helm.notes("kserve-model", rates, sidecar)


SIDECAR = {"platform": {"tokenweir": {"placement": "sidecar"}, "jwt": {"issuers": [ISSUER]}}}


@pytest.mark.parametrize(
    ("values", "words"),
    sampled(
        [
            ([], "THE EXAMPLE IS SERVED"),
            (
                [{"autoscaling": {"targetGPUUtilizationPercentage": 75}}],
                "targetGPUUtilizationPercentage was left out",
            ),
            ([LLM], "exposeModel.enabled is false"),
            ([LLM, EXPOSED], "platform.jwt.issuers is empty: nobody outside gets in"),
            ([LLM, EXPOSED, ISSUERS], "callers inside the mesh are not"),
            ([LLM, EXPOSED, ISSUERS], "or every request gets 403"),
            ([LLM], "Tokens are counted nowhere"),
            ([{"ratelimitIPPerMinute": 1}], "Requests are counted nowhere"),
            ([LLM, {"tokenLimit": {"enabled": False}}], "tokenLimit.enabled is false"),
            ([LLM, {"platform": {"tokenweir": {"enabled": False}}}], "platform.tokenweir.enabled is false"),
            ([{"security": {"mtls": "PERMISSIVE"}}], "PERMISSIVE"),
            ([{"platform": {"jwt": {"issuers": [{"issuer": "https://a"}]}}}], "Any token of https://a gets in"),
            (
                [LLM, EXPOSED, {"exposeModel": {"paths": ["/v1/"]}}],
                "replaces the paths that are known to be metered",
            ),
        ],
        5,
    ),
)
def test_what_the_values_leave_open_is_said(values, words):
    assert any(words in each for each in warnings(*values)), warnings(*values)
    assert not any(words in each for each in warnings(LLM, EXPOSED, SIDECAR))


def test_where_nothing_is_left_open_nothing_is_said():
    assert warnings(LLM, EXPOSED, SIDECAR) == []
    assert "Look at these" not in helm.notes("kserve-model", LLM, EXPOSED, SIDECAR)


@pytest.mark.parametrize(
    "section", ["exposeModel", "platform", "security", "tokenLimit", "autoscaling", "metrics"]
)
def test_a_section_may_be_null(section):
    assert "Try it:" in helm.notes("kserve-general", {section: None})


def test_the_notes_are_tidy():
    text = helm.notes("kserve-general", LLM, EXPOSED, ISSUERS, {"ratelimitIPPerMinute": 3})
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]+$", text.strip(), re.MULTILINE), text
    assert "<no value>" not in text
