"""A values file with other values: what stays the same stays byte for byte."""

import copy
import random

import pytest

from extproc.onboarding import files
from extproc.onboarding.dumping import dump, means, same
from extproc.onboarding.editing import Editor
from extproc.onboarding.errors import OnboardingError
from tests.sizes import sized

TEXT = """\
# Our model
replicaCount: 2   # two
autoscaling:
  maxReplicaCount: 3 # most

# publishing
exposeModel:
  enabled: yes
  jwtVerify:
    Audiences:
    - a # first
    - b
metrics: null
labels: {a: b}
tokenLimit:
  limits:
    # the day
    - scope: tenant
      window: day  # long
      amount: 5
    - {scope: client_ip, window: minute, amount: 3}
resources: {}  # none

text: |
  a
  b
"""


def rewritten(text, model, new):
    editor = Editor(text, model.source, model.chart, model.release)
    try:
        editor.become(new)
    except OnboardingError:
        return None
    return editor.text


def edited(text, change):
    new = copy.deepcopy(means(text))
    change(new)
    return rewritten(text, files.one(text, "file"), new), new


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        (lambda v: v.update(replicaCount=3), "replicaCount: 2 ", "replicaCount: 3 "),
        (lambda v: v["exposeModel"].update(enabled=False), "enabled: yes", "enabled: false"),
        (lambda v: v["autoscaling"].update(targetRequestRate=5), "# most\n", "# most\n  targetRequestRate: 5\n"),
        (lambda v: v["exposeModel"]["jwtVerify"]["Audiences"].append("c"), "    - b\n", "    - b\n    - c\n"),
        (lambda v: v["exposeModel"]["jwtVerify"]["Audiences"].pop(0), "    - a # first\n", ""),
        (lambda v: v.pop("metrics"), "metrics: null\n", ""),
        (lambda v: v.pop("autoscaling"), "autoscaling:\n  maxReplicaCount: 3 # most\n", ""),
        (lambda v: v["labels"].update(c="y"), "labels: {a: b}", 'labels: {a: b, c: "y"}'),
        (
            lambda v: v.update(resources={"limitGPU": 1}),
            "resources: {}  # none\n",
            "resources:  # none\n  limitGPU: 1\n",
        ),
        (
            lambda v: v["tokenLimit"]["limits"].insert(1, {"scope": "tenant"}),
            "      amount: 5\n",
            "      amount: 5\n    - scope: tenant\n",
        ),
        (
            lambda v: v["exposeModel"]["jwtVerify"].update(Audiences=[]),
            "Audiences:\n    - a # first\n    - b\n",
            "Audiences: []\n",
        ),
        (lambda v: v.update(text="c"), "text: |\n  a\n  b\n", "text: c\n"),
        (lambda v: v.update(env="on"), "  a\n  b\n", '  a\n  b\nenv: "on"\n'),
    ],
)
def test_an_edit_touches_its_own_lines_alone(change, old, new):
    text, values = edited(TEXT, change)
    assert text == TEXT.replace(old, new)
    assert same(means(text), values)


def test_nothing_changed_is_nothing_touched():
    odd = "a:   1\n\n\n\n# end without a line's end\nb: [1,\n  2]"
    assert edited(odd, lambda v: None)[0] == odd


def test_windows_line_ends_and_a_missing_last_one_stay_as_they_are():
    text, _ = edited("a: 1\r\n# two\r\nb: 2\r\n", lambda v: v.update(a=3, c="x"))
    assert text == "a: 3\r\n# two\r\nb: 2\r\nc: x\r\n"
    assert edited("# é 🤖\na: 1", lambda v: v.update(b=2))[0] == "# é 🤖\na: 1\nb: 2\n"


def test_what_cannot_be_edited_is_not_given():
    assert edited("base: &base {x: 1}\na: *base\n", lambda v: v["a"].update(x=2))[0] is None
    assert edited("base: &base {x: 1}\na:\n  <<: *base\n", lambda v: v["a"].pop("x"))[0] is None


def test_one_of_several_helmreleases_is_edited_in_its_values():
    one = (
        "---\napiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {{name: {0}}}\nspec:\n"
        "  chart: {{spec: {{chart: kserve-model}}}}\n  values:\n    # the pods\n    replicaCount: 1\n"
    )
    text = one.format("a") + one.format("b")
    model = files.one(text, "file", release="b")
    assert rewritten(text, model, {"replicaCount": 2}) == one.format("a") + one.format("b").replace(": 1", ": 2")


def some(draw, depth):
    kind = draw.randrange(9 if depth < 3 else 6)
    if kind < 6:
        return [1, "x y", "on", None, "l1\nl2\n", 2.5][kind]
    if kind == 6:
        return [some(draw, depth + 1) for _ in range(draw.randrange(3))]
    return {f"k{number}": some(draw, depth + 1) for number in range(draw.randrange(3))}


def other(draw, value, depth=0):
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if draw.random() > 0.15}
        found = {key: other(draw, each, depth + 1) if draw.random() < 0.4 else each for key, each in kept.items()}
        return found | ({f"n{draw.randrange(9)}": some(draw, depth)} if draw.random() < 0.3 else {})
    if isinstance(value, list):
        kept = [each for each in value if draw.random() > 0.15] + (
            [some(draw, depth)] if draw.random() < 0.3 else []
        )
        return [other(draw, each, depth + 1) if draw.random() < 0.3 else each for each in kept]
    return some(draw, depth)


def test_any_edit_says_what_it_should_or_is_not_given():
    draw = random.Random(4)
    given, text = 0, TEXT
    rounds = sized(400, 1200)
    for number in range(rounds):
        text = TEXT if number % 6 == 0 else text
        new = other(draw, means(text))
        result = rewritten(text, files.one(text, "file"), new)
        given += result is not None
        if result is not None:
            assert same(means(result), new)
        text = result or dump(new) or "{}\n"
    assert given > rounds - 10
