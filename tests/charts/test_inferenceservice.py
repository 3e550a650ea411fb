"""The InferenceService: storages and formats, names, GPUs, images, and what is refused."""

from typing import Any

import pytest

from tests.charts import schemas
from tests.sizes import sampled

from .helm import ChartError, Document, kinds, pick, render

IRIS = "gs://kfserving-examples/models/sklearn/1.0/model"


def _with(**model: Any) -> dict[str, Any]:
    return {"inferenceservice": {"predictor": {"model": model}}}


def _model(name: str, uri: str = "s3://models/x", **more: Any) -> dict[str, Any]:
    return _with(modelFormat={"name": name}, storageUri=uri, **more)


def _containers(*containers: dict[str, Any], **predictor: Any) -> dict[str, Any]:
    return {"inferenceservice": {"predictor": {"containers": list(containers), **predictor}}}


def _predictor(documents: list[Document], name: str | None = None) -> dict[str, Any]:
    return pick(documents, "InferenceService", name)["spec"]["predictor"]


def _refused(chart: str, *values: dict[str, Any], release: str = "qwen", namespace: str = "models") -> str:
    with pytest.raises(ChartError) as caught:
        render(chart, *values, release=release, namespace=namespace)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    ("values", "args"),
    sampled(
        [
            (_model("sklearn"), ["--model_name=qwen"]),
            (_model("huggingface", "hf://Qwen/Qwen3-0.6B"), ["--model_name=qwen"]),
            (_model("vllm", "hf://Qwen/Qwen3-0.6B"), ["--served-model-name=qwen"]),
            (_model("tensorflow"), ["--model_name=qwen"]),
            (_model("xgboost", args=["--nthread=2"]), ["--model_name=qwen", "--nthread=2"]),
            (_model("sklearn", args=["--model_name=iris"]), ["--model_name=iris"]),
            (_model("vllm", "hf://a/b", args=["--served-model-name", "x"]), ["--served-model-name", "x"]),
            (_model("vllm", "hf://a/b", runtime="kserve-vllmserver"), ["--served-model-name=qwen"]),
            (_model("pytorch"), None),
            (_model("onnx"), None),
            (_model("mlflow"), None),
            (_model("sklearn", protocolVersion="v2"), None),
            (_model("sklearn", runtime="ours"), None),
        ],
        6,
    ),
)
def test_a_server_is_told_the_models_name_by_a_flag_that_it_knows(
    values: dict[str, Any], args: list[str] | None
) -> None:
    documents = render("kserve-model", values)
    schemas.check(documents)
    given = _predictor(documents)["model"].get("args")
    assert (given and [each for each in given if not each.startswith("--shutdown-timeout")]) == args


@pytest.mark.parametrize("values", [_model("mlflow"), _model("xgboost", protocolVersion="v2")])
def test_mlserver_is_told_the_models_name_by_environment(values: dict[str, Any]) -> None:
    values = {"inferenceservice": {**values["inferenceservice"], "servedModelName": "iris"}}
    documents = render("kserve-general", values)
    env = _predictor(documents)["model"]["env"]
    assert {"name": "MLSERVER_MODEL_NAME", "value": "iris"} in env


def test_kserve_finds_a_runtime_for_formats_that_know_v2_alone() -> None:
    for name in ("onnx", "triton", "mlflow"):
        assert _predictor(render("kserve-model", _model(name)))["model"]["protocolVersion"] == "v2"
    assert "protocolVersion" not in _predictor(render("kserve-model", _model("sklearn")))["model"]


def test_an_llm_of_either_runtime_has_the_same_paths() -> None:
    model = _predictor(render("kserve-model", _model("huggingface", "hf://Qwen/Qwen3-0.6B")))["model"]
    assert model["env"] == [{"name": "KSERVE_OPENAI_ROUTE_PREFIX", "value": ""}]
    own = [{"name": "KSERVE_OPENAI_ROUTE_PREFIX", "value": "llm"}]
    model = _predictor(render("kserve-model", _model("huggingface", "hf://Qwen/Qwen3-0.6B", env=own)))["model"]
    assert model["env"] == own


def test_vllm_has_a_runtime_of_the_charts_that_both_variants_use() -> None:
    values = _model("vllm", "hf://Qwen/Qwen3-8B", newStorageUri="hf://Qwen/Qwen3-8B-FP8")
    documents = render("kserve-general", values)
    runtime = pick(documents, "ServingRuntime")
    container = runtime["spec"]["containers"][0]
    assert container["args"] == ["/mnt/models", "--port=8080"]
    for variant in ("primary", "canary"):
        model = _predictor(documents, f"qwen-{variant}")["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        assert model["modelFormat"]["name"] in [each["name"] for each in runtime["spec"]["supportedModelFormats"]]
    assert "ServingRuntime" not in kinds(render("kserve-model", {**_model("vllm", "hf://a/b", runtime="ours")}))


def test_several_models_in_a_pod_have_a_runtime_of_the_charts() -> None:
    values = _with(storageUri="s3://models/all")
    values["inferenceservice"]["multiModel"] = {"enabled": True, "server": "mlserver"}
    documents = render("kserve-model", values)
    runtime = pick(documents, "ServingRuntime")
    model = _predictor(documents)["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] == {"name": "mlserver"}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@pytest.mark.parametrize(
    ("image", "tag", "wanted"),
    sampled(
        [
            ("vllm:1", "2", "vllm:2"),
            ("vllm", "2", "vllm:2"),
            ("host:5000/vllm", "2", "host:5000/vllm:2"),
            ("host:5000/a/vllm:1", "2", "host:5000/a/vllm:2"),
            ("host:5000/vllm:1@sha256:" + "a" * 64, "2", "host:5000/vllm:2"),
            ("vllm:1", "sha256:" + "b" * 64, "vllm@sha256:" + "b" * 64),
        ],
        3,
    ),
)
def test_a_canarys_tag_takes_the_place_of_the_tag_alone(image: str, tag: str, wanted: str) -> None:
    documents = render("kserve-general", _containers({"image": image, "newImageTag": tag}))
    assert _predictor(documents, "qwen-primary")["containers"][0]["image"] == image
    assert _predictor(documents, "qwen-canary")["containers"][0]["image"] == wanted


def test_a_canary_may_change_a_container_that_does_not_serve() -> None:
    values = _containers({"name": "omen", "image": "a:1"}, {"name": "side", "image": "b:1", "newImage": "b:2"})
    documents = render("kserve-general", values)
    found = [(each["name"], each["image"]) for each in _predictor(documents, "qwen-canary")["containers"]]
    assert found == [("kserve-container", "a:1"), ("side", "b:2")]


@pytest.mark.parametrize(
    ("shared", "own", "requests", "limits"),
    sampled(
        [
            ({"requestGPU": 1}, {}, {"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "1"}),
            ({}, {"limitGPU": "2"}, {"nvidia.com/gpu": "2"}, {"nvidia.com/gpu": "2"}),
            ({"requestGPU": 1, "limitGPU": 1}, {"limitGPU": 4}, {"nvidia.com/gpu": "4"}, {"nvidia.com/gpu": "4"}),
            ({"limitGPU": 1}, {"limitGPU": 0}, None, None),
            ({}, {"limits": {"nvidia.com/gpu": 1}}, {"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "1"}),
            ({"requestCPU": 4}, {}, {"cpu": "4"}, {"cpu": "4"}),
            ({"limitMemory": "1Gi"}, {}, {"memory": "1Gi"}, {"memory": "1Gi"}),
            ({"requestCPU": "500m", "limitCPU": 2}, {"requestCPU": 1}, {"cpu": "1"}, {"cpu": "2"}),
            ({"requestMemory": "4Gi", "limitMemory": "8192Mi"}, {}, {"memory": "4Gi"}, {"memory": "8192Mi"}),
            ({"requestMemory": 4000000000}, {}, {"memory": "4000000000"}, {"memory": "4000000000"}),
            ({}, {}, None, None),
        ],
        6,
    ),
)
def test_resources_are_read_from_both_places(
    shared: dict[str, Any], own: dict[str, Any], requests: dict[str, str] | None, limits: dict[str, str] | None
) -> None:
    for values in (_model("sklearn", IRIS, resources=own), _containers({"image": "x:1", "var_resource": own})):
        documents = render("kserve-model", values, {"resources": shared})
        schemas.check(documents)
        predictor = _predictor(documents)
        found = predictor.get("model") or predictor["containers"][0]
        assert found.get("resources", {}).get("requests") == requests
        assert found.get("resources", {}).get("limits") == limits
        assert ("tolerations" in predictor) == bool(limits and "nvidia.com/gpu" in limits)


def test_the_gpus_node_label_is_asked_of_every_alternative() -> None:
    zones = [{"key": "zone", "operator": "In", "values": [zone]} for zone in "ab"]
    terms = {"nodeSelectorTerms": [{"matchExpressions": [zone]} for zone in zones]}
    preferred = [{"weight": 1, "preference": {"matchExpressions": [zones[0]]}}]
    node = {
        "requiredDuringSchedulingIgnoredDuringExecution": terms,
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    }
    anti = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "labelSelector": {}}]}
    values = _model("sklearn", IRIS, resources={"limitGPU": 1})
    values["inferenceservice"]["predictor"]["affinity"] = {"nodeAffinity": node, "podAntiAffinity": anti}
    documents = render("kserve-model", values)
    schemas.check(documents)
    affinity = _predictor(documents)["affinity"]
    gpu = {"key": "node-group", "operator": "In", "values": ["gpu"]}
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["matchExpressions"] for term in required["nodeSelectorTerms"]] == [[zone, gpu] for zone in zones]
    assert affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == preferred
    assert affinity["podAntiAffinity"] == anti


def test_a_gpu_label_may_have_any_value() -> None:
    platform = {"platform": {"gpu": {"nodeLabel": "gpu", "nodeLabelValue": "", "taintKey": ""}}}
    for resources, operator in (({"limitGPU": 1}, "Exists"), ({}, "DoesNotExist")):
        predictor = _predictor(render("kserve-model", platform, {"resources": resources}))
        required = predictor["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert required["nodeSelectorTerms"][0]["matchExpressions"] == [{"key": "gpu", "operator": operator}]
        assert "tolerations" not in predictor


def test_pods_are_fixed_in_number_unless_something_scales_them() -> None:
    service = pick(render("kserve-model", {"replicaCount": 3}), "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    assert service["spec"]["predictor"]["minReplicas"] == 3
    scaling = {"autoscaling": {"targetCPUUtilizationPercentage": 70}}
    documents = render("kserve-model", {"replicaCount": 3}, scaling)
    service = pick(documents, "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert "minReplicas" not in service["spec"]["predictor"]


def test_a_transformer_keeps_its_own_number_of_pods_where_the_predictor_scales() -> None:
    values = {
        "inferenceservice": {"transformer": {"containers": [{"image": "t:1"}], "replicas": 2}},
        "autoscaling": {"targetCPUUtilizationPercentage": 70},
    }
    transformer = pick(render("kserve-model", values), "InferenceService")["spec"]["transformer"]
    assert transformer["minReplicas"] == 2
    assert transformer["annotations"]["serving.kserve.io/autoscalerClass"] == "none"


def test_everything_that_calls_the_model_knows_its_name() -> None:
    values = {
        "inferenceservice": {
            "servedModelName": "iris",
            "transformer": {"containers": [{"image": "t:1", "args": ["--x"]}]},
            "explainer": {"type": "art"},
        }
    }
    spec = pick(render("kserve-model", values), "InferenceService")["spec"]
    assert spec["predictor"]["model"]["args"] == ["--model_name=iris"]
    assert spec["transformer"]["containers"][0]["args"] == ["--model_name=iris", "--x"]
    assert spec["explainer"]["art"]["args"] == ["--model_name=iris"]


def test_tokens_are_counted_at_one_component_alone() -> None:
    values = _model("vllm", "hf://a/b")
    predictor = pick(render("kserve-model", values), "InferenceService")["spec"]["predictor"]
    assert predictor["labels"] == {"tokenweir.io/metered": "true"}
    values["inferenceservice"]["transformer"] = {"containers": [{"image": "t:1"}]}
    spec = pick(render("kserve-model", values), "InferenceService")["spec"]
    assert "labels" not in spec["predictor"]
    assert spec["transformer"]["labels"] == {"tokenweir.io/metered": "true"}
    assert "labels" not in pick(render("kserve-model", {}), "InferenceService")["spec"]["predictor"]


def test_a_new_version_of_the_chart_restarts_no_model() -> None:
    labels = pick(render("kserve-model", {}), "InferenceService")["metadata"]["labels"]
    assert "helm.sh/chart" not in labels


def test_labels_say_where_the_release_is() -> None:
    values = {"env": "prod eu/1", "clusterName": "ai", "region": "us-west-2", "regionCode": "uw2"}
    labels = pick(render("kserve-model", values), "InferenceService")["metadata"]["labels"]
    found = {key: value for key, value in labels.items() if key.startswith("tokenweir.io/")}
    wanted = {"release": "qwen", "env": "prod-eu-1", "cluster": "ai", "region": "us-west-2", "region-code": "uw2"}
    assert found == {f"tokenweir.io/{key}": value for key, value in wanted.items()}


def test_a_service_account_is_made_unless_one_is_named() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
    made = {"serviceAccountAnnotations": role, "serviceAccountSecrets": ["s3"], "imagePullSecrets": ["harbor"]}
    documents = render("kserve-model", {"inferenceservice": {"predictor": made}})
    schemas.check(documents)
    account = pick(documents, "ServiceAccount")
    assert account["metadata"]["annotations"] == role
    assert account["secrets"] == [{"name": "s3"}]
    assert account["imagePullSecrets"] == [{"name": "harbor"}]
    assert _predictor(documents)["serviceAccountName"] == account["metadata"]["name"]
    documents = render("kserve-model", {"inferenceservice": {"predictor": {"serviceAccountName": "own"}}})
    assert "ServiceAccount" not in kinds(documents)
    assert _predictor(documents)["serviceAccountName"] == "own"


def test_a_graph_calls_this_release_where_a_step_names_nothing() -> None:
    graph = {"root": {"routerType": "Splitter", "steps": [{"weight": 90}, {"weight": 10, "serviceName": "other"}]}}
    values = {"inferenceservice": {"graph": graph}}
    found = pick(render("kserve-model", values), "InferenceGraph")
    assert found["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert [step["serviceName"] for step in found["spec"]["nodes"]["root"]["steps"]] == ["qwen", "other"]
    found = pick(render("kserve-general", values), "InferenceGraph")
    assert found["spec"]["nodes"]["root"]["steps"] == [
        {"weight": 90, "serviceUrl": "http://qwen-predictor.models.svc.cluster.local/v1/models/qwen:predict"},
        {"weight": 10, "serviceName": "other"},
    ]


GENERAL, MODEL = "kserve-general", "kserve-model"


@pytest.mark.parametrize(("chart", "services"), [(GENERAL, 2), (MODEL, 1)])
def test_kserve_makes_no_route_of_its_own(chart: str, services: int) -> None:
    """Primary, canary and graph are cluster-local: an Ingress or HTTPRoute of KServe's would lead past the meter."""
    graph = {"root": {"routerType": "Sequence", "steps": [{"serviceName": "other"}]}}
    more = {"inferenceservice": {"graph": graph, "labels": {"team": "a"}}}
    canary = {"newImageTag": "2"} if services > 1 else {}
    documents = render(chart, _containers({"image": "vllm:1", **canary}), more)
    found = [each for each in documents if each["apiVersion"].startswith("serving.kserve.io/")]
    assert sorted(each["kind"] for each in found) == ["InferenceGraph", *["InferenceService"] * services]
    assert {each["metadata"]["labels"]["networking.kserve.io/visibility"] for each in found} == {"cluster-local"}


@pytest.mark.parametrize(
    ("chart", "values", "message"),
    sampled(
        [
            (MODEL, _with(storageUri="s3://a/b"), "modelFormat.name is missing"),
            (GENERAL, _with(newStorageUri="s3://a/b"), "modelFormat.name is missing"),
            (MODEL, _with(modelFormat={"name": "sklearn"}), "storageUri is missing"),
            (GENERAL, _with(modelFormat={"name": "sklearn"}, newStorageUri="s3://a/b"), "storageUri is missing"),
            (MODEL, _model("sklearn", "Qwen/Qwen3"), "is it hf://Qwen/Qwen3?"),
            (MODEL, _model("sklearn", "ftp://a/b"), "platform.storageSchemes"),
            (MODEL, _model("huggingface", "hf://Qwen/Qwen3@main"), "hf://Qwen/Qwen3:main"),
            (MODEL, _model("huggingface", "hf://Qwen3"), "hf://organisation/model"),
            (MODEL, _model("huggingface", "https://huggingface.co/Qwen/Qwen3/tree/main"), "hf://Qwen/Qwen3"),
            (MODEL, _model("sklearn", "pvc:///model"), "pvc://claim/path"),
            (MODEL, _model("sklearn", IRIS, newStorageUri="s3://a/b"), "use the chart kserve-general"),
            (MODEL, _model("sklearn", IRIS, image="a:1", newImageTag="2"), "use the chart kserve-general"),
            (MODEL, _containers({"image": "a:1", "newImage": "a:2"}), "use the chart kserve-general"),
            (GENERAL, _model("sklearn", IRIS, newImageTag="2"), "needs inferenceservice.predictor.model.image"),
            (GENERAL, _containers({"image": "a"}, model={"newStorageUri": "s3://a/b"}), "no effect"),
            (MODEL, _containers({"image": "a"}, model={"storageUri": "s3://a/b"}), "Remove one"),
            (
                MODEL,
                _containers({"image": "a"}, {"image": "b", "name": "kserve-container"}),
                "the first one serves",
            ),
            (MODEL, {"resources": {"requestGPU": 1, "limitGPU": 2}}, "shares no GPU"),
            (MODEL, {"resources": {"requestMemory": "8Gi", "limitMemory": "4096Mi"}}, "above the limit of 4096Mi"),
            (MODEL, {"resources": {"requestCPU": "1500m", "limitCPU": 1}}, "above the limit of 1"),
            (MODEL, _model("sklearn", IRIS, storageKey="x"), "serviceAccountSecrets"),
            (
                MODEL,
                {"platform": {"gpu": {"nodeLabel": "eks.amazonaws.com/nodegroup", "nodeLabelValue": ""}}},
                "clusterName",
            ),
            (MODEL, {"inferenceservice": {"servedModelName": "Qwen/Qwen3"}}, "has a /"),
            (
                MODEL,
                {"inferenceservice": {"multiModel": {"enabled": True}}},
                "needs inferenceservice.predictor.model.storageUri",
            ),
            (
                MODEL,
                {"inferenceservice": {"explainer": {"type": "art", "containers": [{"image": "x"}]}}},
                "remove one",
            ),
            (MODEL, {"inferenceservice": {"graph": {"first": {"steps": [{}]}}}}, "no node `root`"),
            (
                MODEL,
                {"inferenceservice": {"graph": {"root": {"routerType": "Chain", "steps": [{}]}}}},
                "must be Sequence",
            ),
            (
                MODEL,
                {"inferenceservice": {"annotations": {"serving.kserve.io/deploymentMode": "Knative"}}},
                "Remove it",
            ),
            (
                MODEL,
                {"inferenceservice": {"labels": {"networking.kserve.io/visibility": "exposed"}}},
                "leads past the token limits",
            ),
            (MODEL, {"primaryLoad": 60}, "primaryLoad"),
            (GENERAL, {"primaryLoad": 101}, "primaryLoad"),
            (MODEL, {"replicas": 2}, "replicas"),
        ],
        10,
    ),
)
def test_bad_values_are_refused_with_a_message_that_helps(
    chart: str, values: dict[str, Any], message: str
) -> None:
    assert message in _refused(chart, values)


def test_a_scheme_that_the_cluster_knows_is_let_through() -> None:
    values = {**_model("sklearn", "models://iris"), "platform": {"storageSchemes": ["models"]}}
    assert _predictor(render("kserve-model", values))["model"]["storageUri"] == "models://iris"


@pytest.mark.parametrize(("release", "message"), [("9b", "a letter first"), ("a.b", "a letter first")])
def test_a_release_must_have_a_name_that_kserve_takes(release: str, message: str) -> None:
    assert message in _refused("kserve-model", {}, release=release)


@pytest.mark.parametrize("chart", [MODEL, GENERAL])
def test_a_name_that_is_too_long_is_refused_with_the_length_that_fits(chart: str) -> None:
    message = _refused(chart, {}, release="a" * 53, namespace="models-of-the-search-team")
    room = int(message.partition("a name may have ")[2].split()[0])
    render(chart, {}, release="a" * room, namespace="models-of-the-search-team")
    _refused(chart, {}, release="a" * (room + 1), namespace="models-of-the-search-team")
