"""What cuts a stream when its pod ends, and a strategy that replaces no pod."""

import pytest
import yaml

from extproc.onboarding import checking

PREDICTOR = "inferenceservice.predictor"
VLLM = "containers: [{image: 'vllm/vllm-openai:%s', args: [--model=x%s]}]"
MODEL = "model: {modelFormat: {name: vllm}, storageUri: 's3://a/b'%s}"
CASES = [
    (f"{MODEL % ', lifecycle: {preStop: {sleep: {seconds: 300}}}'}", "error", "model.lifecycle.preStop.sleep.seconds",
     "less than 300"),
    ("containers: [{image: 'a:1', lifecycle: {preStop: {sleep: {seconds: 40}}}}], terminationGracePeriodSeconds: 30",
     "error", "containers[0].lifecycle.preStop.sleep.seconds", "less than 30"),
    (f"{MODEL % ''}, timeout: 600", "warning", "timeout", "terminationGracePeriodSeconds: 620"),
    (VLLM % ("v0.32.0", ""), "warning", "containers[0].args", "--shutdown-timeout=280"),
    (f"{VLLM % ('latest', '')}, terminationGracePeriodSeconds: 60", "warning", "containers[0].args",
     "--shutdown-timeout=40"),
    (f"{MODEL % ''}, deploymentStrategy: {{type: Recreate, rollingUpdate: {{maxSurge: 1}}}}", "error",
     "deploymentStrategy.rollingUpdate", "one of them alone"),
    (f"{MODEL % ''}, deploymentStrategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 0%}}}}", "error",
     "deploymentStrategy.rollingUpdate", "maxUnavailable: 1"),
]  # fmt: skip
FINE = [
    f"{MODEL % ', lifecycle: {preStop: {sleep: {seconds: 200}}}'}",
    f"{MODEL % ''}, timeout: 280",
    VLLM % ("v0.32.0", ", --shutdown-timeout=60"),
    VLLM % ("v0.17.1", ""),
    VLLM % ("own-build", ""),
    f"{MODEL % ''}, deploymentStrategy: {{type: Recreate}}",
    f"{MODEL % ''}, deploymentStrategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 1}}}}",
]


def found(predictor):
    values = yaml.safe_load(f"{{resources: {{limitGPU: 1}}, inferenceservice: {{predictor: {{{predictor}}}}}}}")
    problems = checking.problems("kserve-model", values, "qwen", "models")
    return {(each.level.value, each.path): each for each in problems}


@pytest.mark.parametrize(("predictor", "level", "path", "fix"), CASES)
def test_what_cuts_a_stream_or_replaces_no_pod_is_told_with_the_fix(predictor, level, path, fix):
    assert fix in found(predictor)[level, f"{PREDICTOR}.{path}"].fix


@pytest.mark.parametrize("predictor", FINE)
def test_what_lets_streams_finish_is_left_alone(predictor):
    assert found(predictor) == {}
