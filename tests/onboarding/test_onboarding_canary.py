"""A canary's life in the file: everything else stays byte for byte."""

import difflib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.onboarding import canary, files
from extproc.onboarding.canary import canary_of
from extproc.onboarding.errors import OnboardingError

SLIDE = """\
primaryLoad: 60 # What percentage of traffic will be forwarded to the primary model?
inferenceservice:
  predictor:
    model:
      modelFormat:
        name: sklearn
      storageUri: "gs://kfserving-examples/models/sklearn/1.0/model"   # Primary model
      newStorageUri: "gs://kfserving-examples/models/sklearn/1.0/model-2"  # Canary model
"""
ODD = """\
# The team's model, chart kserve-general
#
replicaCount: 1   # pods

# Who calls
exposeModel: {enabled: true,  jwtVerify: {Audiences: [ 'llm' ]}}


# The model itself
inferenceservice:
      predictor:
          # one of ours
          model:
              modelFormat: { name:   "sklearn" }
              storageUri: 'gs://k/model'      # trained in May
              args:
              - --x=1      # not indented
              - >-
                folded
                text
# the end"""
CONTAINER = """\
inferenceservice:
  predictor:
    containers:
      - newImage: registry:5000/a/b:v3 # to try
        # the next line is the present one
        image: registry:5000/a/b:v2
        name: x
"""
RELEASE = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data: {a: "1"}
---
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: qwen # the release
spec:
  chartRef: {kind: OCIRepository, name: kserve-general}
  values:
    # first
    inferenceservice:
      predictor:
        model: {image: "a/b:v1", modelFormat: {name: vllm}, storageUri: hf://Qwen/x}
---
x: 1
"""


def values(text):
    return files.one(text, "f").values


def model(text):
    return values(text)["inferenceservice"]["predictor"]["model"]


def changed(before, after):
    return [line for line in difflib.ndiff(before.split("\n"), after.split("\n")) if line[0] in "+-"]


def comments(text):
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


def test_start_shift_and_promote_touch_only_their_own_lines():
    started = canary.start(ODD, storage="gs://k/model-2", primary_load=80)
    assert changed(ODD, started) == [
        "+ primaryLoad: 80",
        "+               newStorageUri: 'gs://k/model-2'",
    ]
    shifted = canary.shift(started, 10)
    assert changed(started, shifted) == ["- primaryLoad: 80", "+ primaryLoad: 10"]
    promoted = canary.promote(shifted)
    assert changed(ODD, promoted) == [
        "+ primaryLoad: 100",
        "-               storageUri: 'gs://k/model'      # trained in May",
        "+               storageUri: 'gs://k/model-2'      # trained in May",
    ]
    assert values(promoted)["primaryLoad"] == 100
    assert canary_of(values(promoted)) == {}


@pytest.mark.parametrize("text", [SLIDE, ODD, CONTAINER, RELEASE], ids=["slide", "odd", "container", "release"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_comment_and_line_end_outlives_a_canary(text, newline, bom):
    text = bom + text.replace("\n", newline)
    if not canary_of(values(text)):
        text = canary.start(text, **({"storage": "gs://k/new"} if "storageUri" in text else {"tag": "v9"}))
    for after in (canary.promote(text), canary.abort(text), canary.shift(text, 5)):
        assert sorted(comments(after)) == sorted(comments(text))
        assert after.count("\r\n") == (after.count("\n") if newline == "\r\n" else 0)
        assert after.startswith("\ufeff") == bool(bom)


def test_the_slides_canary_is_promoted_and_its_comments_stay():
    promoted = canary.promote(SLIDE)
    assert model(promoted)["storageUri"] == "gs://kfserving-examples/models/sklearn/1.0/model-2"
    assert "newStorageUri" not in promoted
    assert "      # Canary model\n" in promoted
    assert promoted.startswith("primaryLoad: 100 # What percentage")


def test_abort_gives_everything_back_to_the_primary():
    aborted = canary.abort(SLIDE)
    assert model(aborted) == {
        "modelFormat": {"name": "sklearn"},
        "storageUri": "gs://kfserving-examples/models/sklearn/1.0/model",
    }
    assert values(aborted)["primaryLoad"] == 100


def test_a_containers_new_image_takes_the_place_of_its_image():
    assert canary.promote(CONTAINER).splitlines()[3:] == [
        "      # to try",
        "      # the next line is the present one",
        "      - image: registry:5000/a/b:v3",
        "        name: x",
    ]
    assert values(canary.abort(CONTAINER))["inferenceservice"]["predictor"]["containers"] == [
        {"image": "registry:5000/a/b:v2", "name": "x"}
    ]


def test_a_canary_in_a_helmrelease_is_a_change_of_its_values_alone():
    started = canary.start(RELEASE, tag="v2", storage="hf://Qwen/y", primary_load=50)
    before = '        model: {image: "a/b:v1", modelFormat: {name: vllm}, storageUri: hf://Qwen/x}'
    after = before.replace('v1",', 'v1", newImageTag: "v2",').replace("x}", "x, newStorageUri: hf://Qwen/y}")
    assert changed(RELEASE, started) == [f"- {before}", f"+ {after}", "+     primaryLoad: 50"]
    assert model(canary.promote(started)) == {
        "image": "a/b:v2", "modelFormat": {"name": "vllm"}, "storageUri": "hf://Qwen/y",
    }  # fmt: skip


def test_values_in_json_stay_json():
    text = '{"inferenceservice": {"predictor": {"model": {"storageUri": "s3://a/b"}}}}\n'
    started = canary.start(text, storage="s3://a/c")
    assert started == (
        '{"inferenceservice": {"predictor": {"model": {"storageUri": "s3://a/b", "newStorageUri": "s3://a/c"}}}, '
        '"primaryLoad": 90}\n'
    )


@pytest.mark.parametrize(
    ("image", "tag", "result"),
    [
        ("a/b:v1", "v2", "a/b:v2"),
        ("host:5000/a/b", "v2", "host:5000/a/b:v2"),
        ("a/b:v1@sha256:" + "0" * 64, "v2", "a/b:v2"),
        ("a/b:v1", "sha256:" + "1" * 64, "a/b@sha256:" + "1" * 64),
    ],
)
def test_a_tag_is_put_in_place_of_an_images_own(image, tag, result):
    text = f"inferenceservice:\n  predictor:\n    model:\n      image: {image}\n"
    assert model(canary.promote(canary.start(text, tag=tag)))["image"] == result


def test_a_tag_that_looks_like_a_number_stays_text():
    text = "inferenceservice:\n  predictor:\n    model:\n      image: a/b:v1\n"
    assert model(canary.start(text, tag="1.10"))["newImageTag"] == "1.10"


@pytest.mark.parametrize(
    ("text", "how", "message"),
    [
        (ODD, {}, "what should the canary be"),
        (ODD, {"image": "a:1", "tag": "2"}, "give one of the two"),
        (ODD, {"storage": "gs://k/model"}, "the primary's model already"),
        (ODD, {"storage": "Qwen/Qwen3"}, "has no scheme: hf://Qwen/Qwen3"),
        (ODD, {"storage": "gs://k/m", "primary_load": 101}, "0 to 100, not 101"),
        (ODD, {"storage": "gs://k/m", "primary_load": -1}, "0 to 100, not -1"),
        (ODD, {"tag": "v2"}, "a tag of which image?"),
        (ODD, {"image": "not an image"}, "is no image"),
        (SLIDE, {"storage": "gs://x/y"}, "a canary runs already"),
        (CONTAINER, {"image": "x:1"}, "a canary runs already"),
        (RELEASE, {"tag": "v1"}, "the primary's tag already"),
        (RELEASE, {"tag": "v 1"}, "is no tag"),
        (RELEASE, {"image": "a/b:v1"}, "the primary's image already"),
        (ODD.replace("general", "model"), {"storage": "gs://k/m"}, "needs the chart kserve-general"),
        (RELEASE.replace("general", "model"), {"tag": "v2"}, "needs the chart kserve-general"),
        ("replicaCount: 1", {"storage": "gs://k/m"}, "there is no primary's model"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(text, how, message):
    with pytest.raises(OnboardingError, match=message):
        canary.start(text, **how)


@pytest.mark.parametrize("edit", [canary.promote, canary.abort, lambda text: canary.shift(text, 50)])
def test_without_a_canary_there_is_nothing_to_edit(edit):
    with pytest.raises(OnboardingError, match="no canary runs"):
        edit(ODD)


@pytest.mark.parametrize("load", [-1, 101, 1000])
def test_a_load_is_a_percentage(load):
    with pytest.raises(OnboardingError, match="0 to 100"):
        canary.shift(SLIDE, load)


@pytest.mark.parametrize(
    "text",
    [
        "x: &u {storageUri: hf://a/b}\ninferenceservice: {predictor: {model: *u}}",
        "x: &u {storageUri: hf://a/b}\ninferenceservice: {predictor: {model: {<<: *u}}}",
    ],
)
def test_what_an_anchor_shares_is_not_changed_for_others(text):
    with pytest.raises(OnboardingError, match="can't be edited here without changing something else"):
        canary.start(text, storage="hf://a/c")


def test_a_promotion_that_would_break_an_anchor_is_refused():
    text = "inferenceservice:\n  predictor:\n    model:\n      storageUri: &u hf://a/b\nz: *u\n"
    with pytest.raises(OnboardingError, match="can't be edited here"):
        canary.promote(canary.start(text, storage="hf://a/c"))


def test_a_merged_model_gets_its_canary_beside_the_merge():
    text = "x: &u {storageUri: hf://a/b}\ninferenceservice: {predictor: {model: {<<: *u, runtime: r}}}\n"
    assert model(canary.start(text, storage="hf://a/c"))["newStorageUri"] == "hf://a/c"


def test_a_patch_of_a_helmrelease_is_edited_though_its_base_has_the_model():
    patch = "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: q}\nspec:\n  values:\n    inferenceservice:\n      predictor:\n        model:\n          newStorageUri: hf://a/c\n"
    assert model(canary.promote(patch)) == {"storageUri": "hf://a/c"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{newStorageUri: hf://a/c, storageUri: hf://a/b}", "{storageUri: hf://a/c}"),
        ("{storageUri: hf://a/b, newStorageUri: hf://a/c, runtime: r}", "{storageUri: hf://a/c, runtime: r}"),
        ("{newStorageUri: hf://a/c}", "{storageUri: hf://a/c}"),
        ("\n      storageUri:\n      newStorageUri: hf://a/c", "\n      storageUri: hf://a/c"),
        ("\n      newStorageUri: hf://a/c\n      runtime: r", "\n      storageUri: hf://a/c\n      runtime: r"),
        ("\n      newStorageUri: >-\n        hf://a/c\n      storageUri: |-\n        hf://a/b\n\n      runtime: r",
         "\n      storageUri: hf://a/c\n\n      runtime: r"),
    ],
)  # fmt: skip
def test_a_promotion_in_any_shape_of_yaml(before, after):
    text = "inferenceservice:\n  predictor:\n    model: {}\n# end\n"
    assert canary.promote(text.replace("{}", before)) == text.replace("{}", after)


def test_an_abort_that_leaves_nothing_takes_nothing_away_beneath():
    """A patch that only has the canary; a null would delete the chart's values, an empty map none."""
    text = "inferenceservice:\n  predictor:\n    model:\n      newStorageUri: hf://a/c # try\n"
    assert canary.abort(text) == "inferenceservice:\n  predictor:\n    model:\n      {} # try\n"
    listed = "inferenceservice:\n  predictor:\n    containers:\n      - newImage: a:2\n      - name: b\n"
    assert canary.abort(listed) == listed.replace("newImage: a:2", "{}")
    text = text.replace(" # try", "")
    assert canary.abort(text.replace("\n      newStorageUri: hf://a/c", " {newStorageUri: hf://a/c}")) == (
        "inferenceservice:\n  predictor:\n    model: {}\n"
    )


@pytest.mark.parametrize(
    "model",
    [
        "{newStorageUri: hf://a/c, # why\n      storageUri: hf://a/b,}",
        "{storageUri: hf://a/b, # why\n      newStorageUri: hf://a/c}",
        "{storageUri: hf://a/b # why\n      , newStorageUri: hf://a/c, runtime: r}",
    ],
)
def test_a_comment_inside_a_flow_map_stays(model):
    text = f"inferenceservice:\n  predictor:\n    model: {model}\n"
    assert "# why\n" in canary.abort(text)
    assert "# why\n" in canary.promote(text)


def test_a_tag_of_an_image_that_is_elsewhere_can_not_be_promoted_here():
    patch = "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: q}\nspec: {values: {inferenceservice: {predictor: {model: {newImageTag: v2}}}}}\n"
    with pytest.raises(OnboardingError, match="a tag of which image"):
        canary.promote(patch)


URIS = st.from_regex(r"\A(s3|gs|hf)://[a-z0-9]{1,6}/[a-zA-Z0-9 '\"#:,&*\[\]{}_.-]{1,12}\Z").filter(
    lambda uri: not uri.startswith("hf://") or ":" not in uri[5:]
)


@settings(deadline=None)
@given(first=URIS, second=URIS, quote=st.sampled_from(["", "'", '"']), flow=st.booleans())
def test_whatever_the_address_the_file_says_it(first, second, quote, flow):
    written = {"": first, "'": "'" + first.replace("'", "''") + "'", '"': '"' + first.replace('"', '\\"') + '"'}[
        quote
    ]
    body = f"{{storageUri: {written}}}" if flow else f"\n      storageUri: {written}  # c"
    text = f"inferenceservice:\n  predictor:\n    model: {body}\n"
    try:
        if model(text) != {"storageUri": first}:
            return  # plain text that is something else in YAML
        started = canary.start(text, storage=second)
    except OnboardingError:
        return
    assert model(started) == {"storageUri": first, "newStorageUri": second}
    assert model(canary.promote(started)) == {"storageUri": second}
    assert model(canary.abort(started)) == {"storageUri": first}
