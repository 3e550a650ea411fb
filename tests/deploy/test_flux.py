"""deploy/flux: builds offline, fits the schemas, refers to what is there, and gives our charts values that they take.

Charts of others can't be had offline: that their versions exist and take these values is not shown here.
"""

import graphlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts import schemas
from tests.charts.helm import CHARTS, HELMS, ROOT, Document, kinds, pick, render, tool

from .tree import CLUSTERS, FLUX, build, folders, merged, named, objects, rendered, steps

OURS = ("platform", "tokenweir", "kserve-model", "kserve-general")
# What the charts ask the cluster for; the controllers bring it.
SERVED = ("monitoring.coreos.com/v1/PodMonitor",)
CLUSTER_OF_ITS_OWN = {"default", "kube-system", "flux-system"}


def test_every_folder_builds_and_fits_the_schemas() -> None:
    assert len(folders()) >= 17
    for folder in folders():
        documents = build(folder)
        assert documents, folder
        schemas.check(documents)


def test_no_folder_is_left_out_of_both_clusters() -> None:
    used = {ROOT / d["spec"]["path"] for c in CLUSTERS for d in objects(c) if d["kind"] == "Kustomization"}
    used |= {FLUX / "clusters" / cluster for cluster in CLUSTERS}
    optional = {FLUX / "configs" / "prometheus-adapter"}
    assert set(folders()) - used - optional == {f for f in folders() if f.name == "base"}


def test_only_current_versions_of_apis_are_used() -> None:
    current = {
        "helm.toolkit.fluxcd.io": "v2", "source.toolkit.fluxcd.io": "v1", "kustomize.toolkit.fluxcd.io": "v1",
    }  # fmt: skip
    for cluster in CLUSTERS:
        for document in objects(cluster):
            group, _, version = document["apiVersion"].rpartition("/")
            assert current.get(group, "v1") == version, document["metadata"]["name"]
    text = "".join(path.read_text(encoding="utf-8") for path in FLUX.rglob("*.yaml"))
    assert not re.findall(r"toolkit\.fluxcd\.io/v\d(?:alpha|beta)\d|RawDeployment|chart: kserve$", text)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_folders_are_applied_one_after_the_other_and_waited_for(cluster: str) -> None:
    found = named(build(FLUX / "clusters" / cluster), "Kustomization")
    order = graphlib.TopologicalSorter(
        {name: {each["name"] for each in d["spec"].get("dependsOn", ())} for (_, name), d in found.items()}
    )
    assert list(order.static_order()) == ["sources", "controllers", "configs", "tokenweir", "apps"]
    for (namespace, name), document in found.items():
        spec = document["spec"]
        assert namespace == "flux-system"
        assert (spec["wait"], spec["prune"]) == (True, True)
        assert {"interval", "retryInterval", "timeout"} <= set(spec)
        assert (ROOT / spec["path"] / "kustomization.yaml").exists()
        assert name == "sources" or Path(spec["path"]).name == cluster


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_what_a_release_depends_on_is_there_before_it(cluster: str) -> None:
    applied = steps(cluster)
    step_of = {key: step for step, documents in applied.items() for key in named(documents, "HelmRelease")}
    order = list(applied)
    graph: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for documents in applied.values():
        for (namespace, name), document in named(documents, "HelmRelease").items():
            needed = {(d.get("namespace", namespace), d["name"]) for d in document["spec"].get("dependsOn", ())}
            assert needed <= set(step_of), f"{name} needs {needed - set(step_of)}"
            assert all(order.index(step_of[each]) <= order.index(step_of[(namespace, name)]) for each in needed)
            graph[namespace, name] = needed
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_chart_has_a_source_that_is_there(cluster: str) -> None:
    documents = objects(cluster)
    _sources_exist(documents, documents)


def test_the_adapter_which_no_cluster_has_would_find_what_it_needs() -> None:
    documents = objects("staging")
    adapter = build(FLUX / "configs" / "prometheus-adapter")
    _sources_exist(adapter, documents)
    (release,) = adapter
    releases = named(documents, "HelmRelease")
    assert {("infra", each["name"]) for each in release["spec"]["dependsOn"]} <= set(releases)
    rules = release["spec"]["values"]["rules"]["existing"]
    values = merged(releases["infra", "platform"]["spec"]["values"], {"prometheusAdapter": {"enabled": True}})
    made = pick(render("platform", values, release="platform", namespace="infra"), "ConfigMap", rules)
    assert made["metadata"]["namespace"] == release["metadata"]["namespace"]
    assert set(made["data"]) == {"config.yaml"}


def _sources_exist(releases: list[Document], among: list[Document]) -> None:
    for document in releases:
        if document["kind"] != "HelmRelease":
            continue
        spec, name = document["spec"], document["metadata"]["name"]
        assert ("chart" in spec) != ("chartRef" in spec), name
        reference = spec["chartRef"] if "chartRef" in spec else spec["chart"]["spec"]["sourceRef"]
        source = named(among, reference["kind"]).get((reference["namespace"], reference["name"]))
        assert source, f"{name}: no {reference}"
        if reference["kind"] == "HelmRepository":
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", spec["chart"]["spec"]["version"]), f"{name} is not pinned"
        elif reference["kind"] == "OCIRepository":
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", source["spec"]["ref"]["tag"])
            # An OCI artifact's layers are what Flux made of them otherwise: a chart must come as it is.
            assert source["spec"]["layerSelector"]["operation"] == "copy"
        else:
            assert spec["chart"]["spec"]["reconcileStrategy"] == "Revision"
            assert (ROOT / spec["chart"]["spec"]["chart"] / "Chart.yaml").exists()


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_source_is_used(cluster: str) -> None:
    documents = objects(cluster) + build(FLUX / "configs" / "prometheus-adapter")
    used = set()
    for document in documents:
        spec = document.get("spec", {})
        for reference in (
            spec.get("chartRef"),
            spec.get("sourceRef"),
            spec.get("chart", {}).get("spec", {}).get("sourceRef"),
        ):
            if reference:
                used.add((reference["kind"], reference["name"]))
    there = {(d["kind"], d["metadata"]["name"]) for d in documents if d["apiVersion"].startswith("source.")}
    assert there == used


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_release_is_retried_and_rolled_back(cluster: str) -> None:
    for name, release in named(objects(cluster), "HelmRelease").items():
        spec = release["spec"]
        assert spec["install"]["remediation"] == {"retries": 3}, name
        assert spec["upgrade"]["remediation"] == {
            "retries": 3,
            "strategy": "rollback",
            "remediateLastFailure": True,
        }
        assert {"interval", "timeout"} <= set(spec), name
        assert spec["install"]["crds"] == spec["upgrade"]["crds"] == "CreateReplace"


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_namespace_is_made_before_something_is_put_into_it(cluster: str) -> None:
    there = set(CLUSTER_OF_ITS_OWN)
    for documents in steps(cluster).values():
        there |= {d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"}
        missing = {d["metadata"].get("namespace") for d in documents} - there - {None}
        assert not missing
        for (namespace, name), release in named(documents, "HelmRelease").items():
            if _chart(release) in OURS:
                made = _rendered(release, cluster)
                there |= {d["metadata"]["name"] for d in made if d["kind"] == "Namespace"}
                assert {d["metadata"].get("namespace", namespace) for d in made} <= there, name


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_our_charts_take_the_values_that_flux_gives_them(cluster: str, helm: str) -> None:
    releases = [r for r in named(objects(cluster), "HelmRelease").values() if _chart(r) in OURS]
    assert {_chart(each) for each in releases} == set(OURS)
    for release in releases:
        schemas.check(_rendered(release, cluster, helm))


def _chart(release: Document) -> str:
    name = release["spec"].get("chart", {}).get("spec", {}).get("chart", "")
    return str(name).removeprefix("./charts/") if name.startswith("./charts/") else ""


def _rendered(release: Document, cluster: str, helm: str = "helm") -> list[Document]:
    metadata = release["metadata"]
    values = _values(release, cluster)
    return rendered(_chart(release), values, metadata["name"], metadata["namespace"], *SERVED, helm=helm)


def _values(release: Document, cluster: str) -> dict[str, Any]:
    """The release's values above those that it takes from ConfigMaps, in the order of Flux."""
    values: dict[str, Any] = {}
    for reference in release["spec"].get("valuesFrom", ()):
        assert reference["kind"] == "ConfigMap"
        platform = named(objects(cluster), "HelmRelease")["infra", "platform"]
        maps = named(_rendered(platform, cluster), "ConfigMap")
        text = maps[release["metadata"]["namespace"], reference["name"]]["data"][
            reference.get("valuesKey", "values.yaml")
        ]
        values = merged(values, yaml.safe_load(text))
    return merged(values, release["spec"].get("values", {}))


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_charts_agree_on_the_gateway_and_on_prometheus(cluster: str) -> None:
    releases = named(objects(cluster), "HelmRelease")
    gateway = releases["istio-ingress", "istio-ingressgateway"]
    said = {
        "namespace": gateway["metadata"]["namespace"],
        "selector": {"istio": gateway["spec"]["values"]["labels"]["istio"]},
        "principals": ["cluster.local/ns/istio-ingress/sa/" + gateway["spec"]["values"]["serviceAccount"]["name"]],
    }
    platform = releases["infra", "platform"]["spec"]["values"]
    assert platform["platform"]["gateway"] == said
    assert releases["tokenweir", "tokenweir"]["spec"]["values"]["gateway"] == said
    made = _rendered(releases["infra", "platform"], cluster)
    found = pick(made, "Gateway")["metadata"]
    assert platform["platform"]["gateways"] == [f"{found['namespace']}/{found['name']}"]
    prometheus = releases["infra", "prometheus"]["spec"]["values"]
    account = prometheus["prometheus"]["serviceAccount"]["name"]
    assert platform["platform"]["prometheusPrincipals"] == [f"cluster.local/ns/infra/sa/{account}"]
    assert platform["platform"]["prometheusUrl"] == (
        f"http://{prometheus['fullnameOverride']}-prometheus.infra.svc.cluster.local:9090"
    )
    assert releases["tokenweir", "tokenweir"]["spec"]["values"]["placement"] == platform["platform"].get(
        "tokenweir", {}
    ).get("placement", "gateway")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_what_is_enforced_on_pods_istio_can_live_with(cluster: str) -> None:
    releases = named(objects(cluster), "HelmRelease")
    labels = pick(_rendered(releases["infra", "platform"], cluster), "Namespace", "models")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert ("istio-system", "istio-cni") in releases
    assert releases["istio-system", "istiod"]["spec"]["values"]["pilot"]["cni"] == {"enabled": True}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_examples_are_a_metered_model_on_a_gpu_with_a_canary_and_a_small_one(cluster: str) -> None:
    releases = named(objects(cluster), "HelmRelease")
    qwen = _rendered(releases["models", "qwen"], cluster)
    services = {d["metadata"]["name"]: d["spec"]["predictor"] for d in qwen if d["kind"] == "InferenceService"}
    assert set(services) == {"qwen-primary", "qwen-canary"}
    for each in services.values():
        assert each["model"]["resources"]["limits"]["nvidia.com/gpu"] in {1, "1"}
        # KServe's image without that ending has no CUDA.
        assert each["model"]["image"].endswith("-gpu")
    assert {"EnvoyFilter", "ScaledObject", "PodMonitor"} <= kinds(qwen)
    small = _rendered(releases["models", "iris"], cluster)
    assert [d["metadata"]["name"] for d in small if d["kind"] == "InferenceService"] == ["iris"]


def test_production_keeps_its_stores_and_staging_starts_from_nothing() -> None:
    staging, production = (
        named(objects(c), "HelmRelease")["tokenweir", "tokenweir"]["spec"]["values"] for c in CLUSTERS
    )
    assert staging["trial"] == {"enabled": True}
    assert "trial" not in production
    assert production["redis"]["existingSecret"]["name"] == production["mongo"]["existingSecret"]["name"]
    refs = {
        d["metadata"]["name"]: d["spec"]["ref"]
        for d in build(FLUX / "clusters" / "production")
        if d["kind"] == "GitRepository"
    }
    assert set(refs["tokenweir"]) == {"semver"}


def test_no_secret_is_in_the_tree() -> None:
    for cluster in CLUSTERS:
        assert "Secret" not in kinds(objects(cluster))
    text = "".join(path.read_text(encoding="utf-8") for path in FLUX.rglob("*.yaml"))
    assert not re.search(r"://[^/\s]*:[^/\s]*@|password:|BEGIN [A-Z ]*PRIVATE KEY", text)


def test_charts_from_git_are_whole_without_the_links_that_flux_leaves_out(tmp_path: Path) -> None:
    """Flux drops symbolic links from what it fetches, adds the commit to the version, and builds dependencies."""
    shutil.copytree(CHARTS, tmp_path / "charts", symlinks=True)
    for link in [path for path in (tmp_path / "charts").rglob("*") if path.is_symlink()]:
        link.unlink()
    for name in OURS:
        folder = tmp_path / "charts" / name
        about = yaml.safe_load((folder / "Chart.yaml").read_text(encoding="utf-8"))
        about["version"] += "+0123456789ab"
        (folder / "Chart.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
        home = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        if about.get("dependencies"):
            subprocess.run(
                [tool("helm"), "dependency", "build", str(folder)], check=True, capture_output=True, env=home
            )
        release = next(r for r in named(objects("staging"), "HelmRelease").values() if _chart(r) == name)
        values = tmp_path / f"{name}.yaml"
        values.write_text(yaml.safe_dump(_values(release, "staging")), encoding="utf-8")
        metadata = release["metadata"]
        command = [
            tool("helm"),
            "template",
            metadata["name"],
            str(folder),
            "-n",
            metadata["namespace"],
            "-f",
            str(values),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=home)
        assert done.returncode == 0, done.stderr
        found = [each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each]
        schemas.check(found)  # a label with a plus in it would be refused by the cluster
        for document in found:
            for value in document["metadata"].get("labels", {}).values():
                assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value), (name, value)
