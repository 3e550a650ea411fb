"""The form in a real browser: what a model owner does, and gets."""

import subprocess

import pytest
import yaml

from extproc.onboarding import checking
from extproc.onboarding import helm as rendering

from .acting import download, field, objects, problem_at, settled, shown, tab, values
from .served import SlowHelm, git, helm

COMMENTED = """\
# The team's model.
replicaCount: 2   # two for the night

inferenceservice:
  predictor:
    model:
      modelFormat: {name: sklearn}
      # trained in May
      storageUri: gs://kfserving-examples/models/sklearn/1.0/model

# who may ask how often
ratelimitIPPerMinute: 60
"""
RELEASE = """\
# Flux reads this.
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: iris
  namespace: models
spec:
  interval: 10m
  chart:
    spec:
      chart: ./charts/kserve-general
      sourceRef: {kind: GitRepository, name: tokenweir}
  values:
    # the first
    replicaCount: 1
    inferenceservice:
      predictor:
        model: {modelFormat: {name: sklearn}, storageUri: "pvc://models/iris"}
"""


def describe_llm(page):
    """From nothing: an LLM with a GPU, a canary, limits, published."""
    page.get_by_role("button", name="LLM on a GPU").click()
    field(page, "Release").fill("qwen")
    field(page, "Namespace").fill("models")
    field(page, "Where it is stored").fill("hf://Qwen/Qwen3-0.6B")
    field(page, "GPUs").fill("2")
    field(page, "Pods, at most").fill("4")
    field(page, "Target: queue of vLLM").fill("8")
    page.get_by_role("switch", name="Published").check()
    field(page, "Requests a minute, per service account").fill("120")
    page.locator('[id="f-tokenLimit.limits-add"]').click()
    field(page, "Scope, row 1").select_option("service account")
    field(page, "Window, row 1").select_option("day")
    field(page, "Amount, row 1").fill("200000")
    field(page, "The new version's storage").fill("hf://Qwen/Qwen3-1.7B")
    field(page, "Traffic to the present version").fill("90")
    return settled(page)


def canary_of_an_llm(page):
    page.get_by_role("button", name="LLM on a GPU").click()
    field(page, "The new version's storage").fill("hf://Qwen/Qwen3-1.7B")
    return settled(page)


def test_from_nothing_to_an_llm_with_gpu_canary_and_limits_by_clicking_and_typing(blank, opened):
    page = describe_llm(opened(blank))
    made = objects(page)

    assert {name for kind, name in made if kind == "InferenceService"} == {"qwen-primary", "qwen-canary"}
    canary = made["InferenceService", "qwen-canary"]["spec"]["predictor"]
    assert "Qwen3-1.7B" in str(canary)
    assert "'nvidia.com/gpu': 2" in str(canary) or "'nvidia.com/gpu': '2'" in str(canary)
    weights = [
        route.get("weight")
        for (kind, _), each in made.items()
        if kind == "VirtualService"
        for rule in each["spec"]["http"]
        for route in rule["route"]
    ]
    assert {90, 10} <= set(weights)
    assert any(kind == "ScaledObject" for kind, _ in made)
    limits = [str(each) for (kind, _), each in made.items() if kind == "EnvoyFilter"]
    assert any("service_account:200000/day" in each and "service_account:120/minute" in each for each in limits)


@pytest.mark.thorough
def test_the_downloaded_values_are_the_smallest_that_say_it_and_they_work(blank, opened):
    page = describe_llm(opened(blank))
    text, name = download(page, "values")

    assert name == "values.yaml"
    found = yaml.safe_load(text)
    assert found["tokenLimit"]["limits"] == [
        {"scope": "service_account", "unit": "tokens", "window": "day", "amount": 200000}
    ]
    assert found["resources"]["limitGPU"] == 2
    assert "replicaCount" not in found  # it is the default
    assert set(found) == {
        "inferenceservice", "resources", "autoscaling", "exposeModel", "ratelimitEachSAPerMinute", "tokenLimit", "primaryLoad",
    }  # fmt: skip
    errors = [
        each
        for each in checking.problems("kserve-general", found, "qwen", "models")
        if each.level.value == "error"
    ]
    # The platform's issuers are not in a model's file.
    assert [each for each in errors if not each.path.startswith("platform")] == []
    rendered = rendering.render("kserve-general", found, "qwen", "models", helm())
    assert rendered == download(page, "rendered")[0]
    released = yaml.safe_load(download(page, "helmrelease")[0])
    assert released["spec"]["values"] == found
    assert released["metadata"] == {"name": "qwen", "namespace": "models"}


def test_a_wrong_value_says_what_is_wrong_at_its_field_and_only_there(blank, opened):
    page = opened(blank)
    page.get_by_role("button", name="Predictive model").click()
    pods = field(page, "Pods, at least")
    pods.fill("two")

    assert "whole number" in problem_at(page, "replicaCount")
    assert pods.get_attribute("aria-invalid") == "true"
    assert problem_at(page, "autoscaling.maxReplicaCount") == ""
    assert "f-replicaCount-problems" in pods.get_attribute("aria-describedby")
    assert "1 problem" in page.locator("#said").inner_text()

    pods.fill("2")
    assert problem_at(page, "replicaCount") == ""
    assert pods.get_attribute("aria-invalid") == "false"
    assert values(page)["replicaCount"] == 2


@pytest.mark.thorough
def test_free_form_yaml_that_cannot_be_read_names_its_line_and_holds_the_files_back(blank, opened):
    page = opened(blank)
    page.get_by_role("button", name="Container of your own").click()
    page.get_by_text("Storage access, image").click()
    box = field(page, "Containers of your own instead")
    assert "registry.example.com" in box.input_value()
    box.fill("- name: a\n  image: [b")

    assert "line 3" in problem_at(page, "inferenceservice.predictor.containers")
    tab(page, "Files")
    assert page.locator("#download-values").is_disabled()

    box.fill("- name: a\n  image: b:1")
    assert values(page)["inferenceservice"]["predictor"]["containers"] == [{"name": "a", "image": "b:1"}]


@pytest.mark.thorough
def test_rows_maps_and_lines_come_and_go(blank, opened):
    page = opened(blank)
    page.get_by_role("button", name="LLM on a GPU").click()
    page.get_by_role("button", name="All values").click()
    page.get_by_label("Search the values").fill("inferenceservice.labels")
    page.locator('[id="f-inferenceservice.labels-add"]').click()
    page.get_by_label("Labels: name, row 1", exact=True).fill("team")
    page.get_by_label("Labels: value, row 1", exact=True).fill("on")
    page.get_by_label("Search the values").fill("exposeModel.hosts")
    page.locator('[id="f-exposeModel.hosts"]').fill("a.example.com\n\n b.example.com\n")
    found = values(page)
    assert found["inferenceservice"]["labels"] == {"team": "on"}
    assert 'team: "on"' in shown(page, "values.yaml")
    assert found["exposeModel"]["hosts"] == ["a.example.com", "b.example.com"]

    page.get_by_label("Search the values").fill("")
    page.locator('[id="f-exposeModel.hosts"]').fill("")
    page.get_by_label("Search the values").fill("inferenceservice.labels")
    page.get_by_role("button", name="Remove row 1").click()
    found = values(page)
    assert "exposeModel" not in found
    assert "labels" not in found["inferenceservice"]


@pytest.mark.thorough
def test_reset_takes_a_value_back_to_its_default(blank, opened):
    page = opened(blank)
    field(page, "Pods, at least").fill("9")
    assert values(page) == {"replicaCount": 9}
    page.get_by_role("button", name="Reset Pods, at least").click()
    assert field(page, "Pods, at least").input_value() == "1"
    assert values(page) == {}


@pytest.mark.thorough
def test_each_object_says_which_value_it_is_there_for_and_leads_to_it(blank, opened):
    page = canary_of_an_llm(opened(blank))
    tab(page, "Objects")
    canary = page.locator(".object", has=page.get_by_text("my-model-canary", exact=True))
    canary.locator(".why", has_text="newStorageUri").wait_for()
    canary.locator("summary").click()
    canary.get_by_role("button", name="newStorageUri").first.click()
    assert page.evaluate("document.activeElement.id").endswith(".newStorageUri")


def repository(folder, **files):
    subprocess.run([git(), "init", "-q", str(folder)], check=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def apply(folder, patch):
    subprocess.run([git(), "-C", str(folder), "apply", "--verbose", "-"], input=patch, text=True, check=True)


@pytest.mark.thorough
def test_the_patch_of_a_file_applies_and_keeps_its_comments(tmp_path, form, opened):
    folder = repository(tmp_path, models__iris_yaml=COMMENTED)
    file = folder / "models" / "iris.yaml"
    page = opened(form(str(file), "--release", "iris"))
    assert field(page, "Pods, at least").input_value() == "2"
    field(page, "Pods, at least").fill("3")
    field(page, "Memory, requested").fill("2Gi")
    wanted, _ = download(page, "values")
    patch, name = download(page, "patch")

    assert file.read_text() == COMMENTED  # the form writes nothing
    assert name == "iris.patch"
    apply(folder, patch)
    assert file.read_text() == wanted
    assert (
        wanted == COMMENTED.replace("replicaCount: 2 ", "replicaCount: 3 ") + "resources:\n  requestMemory: 2Gi\n"
    )


@pytest.mark.thorough
def test_the_patch_of_a_new_file_makes_it_where_the_form_says(tmp_path, blank, opened):
    page = canary_of_an_llm(opened(blank))
    tab(page, "Files")
    field(page, "Path in the repository").fill("models/my qwen/values.yaml")
    field(page, "Path in the repository").blur()
    patch, _ = download(page, "patch")
    apply(repository(tmp_path), patch)
    assert (tmp_path / "models" / "my qwen" / "values.yaml").read_text() == download(page, "values")[0]

    field(page, "Path in the repository").fill("../values.yaml")
    field(page, "Path in the repository").blur()
    settled(page)
    assert "no path of a file inside a repository" in page.locator("#shown").inner_text()
    assert page.locator("#download-patch").is_disabled()


@pytest.mark.thorough
def test_a_helmrelease_is_edited_in_its_values_alone(tmp_path, form, opened):
    folder = repository(tmp_path, iris_yaml=RELEASE)
    page = opened(form(str(folder / "iris.yaml")))
    assert field(page, "Release").input_value() == "iris"
    field(page, "Pods, at least").fill("2")
    patch, _ = download(page, "patch")
    apply(folder, patch)
    assert (folder / "iris.yaml").read_text() == RELEASE.replace("replicaCount: 1", "replicaCount: 2")


@pytest.mark.thorough
def test_a_value_that_no_chart_has_is_named_and_can_be_removed(tmp_path, form, opened):
    file = tmp_path / "values.yaml"
    file.write_text(COMMENTED + "replicas: 4\nautoscaling:\n  maxReplicas: 3\n")
    page = opened(form(str(file), "--chart", "kserve-model"))
    problems = page.locator("#problems")
    assert "there is no such value" in problems.inner_text()
    page.get_by_role("button", name="Remove replicas").click()
    settled(page)
    page.get_by_role("button", name="Remove autoscaling.maxReplicas").click()
    assert shown(page, "values.yaml").strip() == COMMENTED.strip()


@pytest.mark.thorough
def test_the_other_chart_keeps_what_was_typed_and_offers_the_canary_again(blank, opened):
    page = canary_of_an_llm(opened(blank))
    page.get_by_role("radio", name="One version").check()
    settled(page)
    assert field(page, "Where it is stored").input_value() == "hf://Qwen/Qwen2.5-0.5B-Instruct"
    assert "error" in page.locator("#status").get_attribute("data-state")  # a canary that it can't have
    page.get_by_role("button", name="Use kserve-general").click()
    settled(page)
    assert field(page, "The new version's storage").input_value() == "hf://Qwen/Qwen3-1.7B"
    assert ("InferenceService", "my-model-canary") in objects(page)


@pytest.mark.thorough
@pytest.mark.parametrize("reload", [True, False])
def test_what_was_typed_outlives_a_reload_and_the_server(form, opened, reload):
    served = form()
    page = opened(served)
    page.get_by_role("button", name="Predictive model").click()
    field(page, "Pods, at least").fill("7")
    settled(page)
    if reload:
        page.reload()
        settled(page)
        assert values(page)["replicaCount"] == 7
        assert "is here again" in page.locator("#notice").inner_text()
        return
    served.end()
    field(page, "Pods, at most").fill("8")
    page.wait_for_selector("#notice:not([hidden])")
    assert "has ended" in page.locator("#notice").inner_text()
    assert "replicaCount: 7" in page.locator("#shown").inner_text()
    page.errors[:] = [each for each in page.errors if "ERR_CONNECTION_REFUSED" not in each]


@pytest.mark.thorough
def test_somebody_elses_change_of_the_file_is_told(tmp_path, form, opened):
    file = tmp_path / "values.yaml"
    file.write_text(COMMENTED)
    page = opened(form(str(file)))
    file.write_text(COMMENTED + "env: dev\n")
    field(page, "Pods, at least").fill("3")
    settled(page)
    assert "changed by somebody else" in page.locator("#notice").inner_text()


@pytest.mark.thorough
def test_an_older_answer_is_never_shown_for_what_was_typed_since(tmp_path, form, opened):
    helm = SlowHelm(tmp_path)
    helm.go_on()
    page = opened(form(helm=helm.path))
    helm.wait()
    for number in (2, 3):
        with page.expect_request("**/api/preview"):
            field(page, "Pods, at least").fill(str(number))
    field(page, "Pods, at least").fill("4")
    helm.go_on()
    assert values(page) == {"replicaCount": 4}


@pytest.mark.thorough
def test_a_file_whose_comments_cannot_be_kept_says_so(tmp_path, form, opened):
    file = tmp_path / "values.yaml"
    file.write_text(COMMENTED + "inferenceservice2: &a {x: 1}\nenv: dev\nlabels: *a\n")
    page = opened(form(str(file)))
    assert "without its comments" not in page.locator("#problems").inner_text()
    page.get_by_role("button", name="Remove inferenceservice2").click()
    settled(page)
    assert "without its comments" in page.locator("#problems").inner_text()
    assert file.read_text().startswith("# The team")


def test_what_a_file_says_is_never_read_as_markup(tmp_path, form, opened):
    file = tmp_path / "values.yaml"
    file.write_text('env: "<img src=x onerror=alert(1)>"\n"<b>x</b>": 1\n')
    page = opened(form(str(file)))
    assert "<img src=x" in shown(page, "values.yaml")
    assert page.locator("#shown img, #problems b").count() == 0
    assert "<b>x</b>" in page.locator("#problems").inner_text()
