import json
import xml.etree.ElementTree as ET
from zoneinfo import ZoneInfo

import pytest

from benchmarks.__main__ import CANNOT_RUN, COUNTS, main
from benchmarks.accounting import Used
from benchmarks.counts import Wire
from benchmarks.documents import BEGIN, DOCS, END, written_into
from benchmarks.errors import CannotRunError
from benchmarks.forms import FORMS, FULL, QUICK, RATE_KEY, Phase, request_bytes
from benchmarks.machine import Machine
from benchmarks.measuring import Sample
from benchmarks.picture import Bar, Panel, picture, svg
from benchmarks.report import Results, as_json, by_reason, markdown
from benchmarks.variants import Kind, Variant, choose, tenant_documents
from extproc.core.quota.policies import Defaults, policy_from

MACHINE = Machine("a processor", 2, "6.1", "3.11", {"tokenweir": "0"})
VARIANTS = (
    Variant("envoy", "Envoy alone", Kind.ALONE, "envoy"),
    Variant("tokenweir-grpc-reserve-2", "Tokenweir", Kind.TOKENWEIR, "tokenweir-grpc"),
    Variant("talk-redis", "talk <1>", Kind.TALK, "talk-redis"),
)
EMPTY = ("first_token", "way", "gap", "lag")


def sample(variant, step, *, ok=100, chunks=0, number=0, **further):
    load = {"begun": ok, "ok": ok, "failed": 0, "seconds": 1.0, "chunks": chunks, "open_most": ok}
    load |= {"latency": [[1500.0, ok]]} | {name: [[250.0, ok]] for name in EMPTY}
    used = {"envoy": Used(0.01, 1 << 20, 1, 2)}
    if variant != "envoy":
        used |= {"load": Used(0.004, 0, 0, 0), "upstream": Used(0.002, 0, 0, 0)}
        used |= {"processor": Used(0.2, 1 << 20, 3, 4), "redis": Used(0.02, 0, 0, 0)}
    wire = None if variant == "envoy" else Wire(200, 210, 100_000, 9_000, 0.01)
    messages = 8 * ok if "tokenweir" in variant else 0
    return Sample(variant, number, step, load, used, wire, messages=messages, **further)


def results(*further, left_out=None):
    samples = [
        sample(variant.name, step, number=number, chunks=50 if step == Phase.STREAM else 0)
        for number in range(2)
        for variant in VARIANTS
        for step in (Phase.PEAK, RATE_KEY, Phase.STREAM)
        if not (variant.kind is Kind.TALK and step == Phase.STREAM)
    ]
    return Results("make bench", QUICK, MACHINE, VARIANTS, left_out or {}, [*samples, *further])


def test_the_tables_name_the_command_and_have_a_row_for_each_variant():
    text = markdown(results())
    assert "`make bench`" in text
    assert all(f"| {variant.title} |" in text for variant in VARIANTS)
    assert "| Tokenweir | 100 | 100 | 2,000 | 200 | 1.50 | 1.50 | 1.50 | 8.0 | 0.1 | 60 |" in text


def test_ratios_are_a_row_each_with_their_spread():
    text = markdown(results())
    assert "| requests/s, to Envoy alone | more | 1.00 (1.00 to 1.00) |" in text
    assert "| requests/s, to the talk's design on Redis | more | 1.00 (1.00 to 1.00) |" in text


def test_a_figure_that_does_not_count_is_not_shown_and_its_reason_is():
    wrong = sample("talk-redis", Phase.STREAM, chunks=50, problems=["3 of 50 answers were wrong"])
    run = results(wrong)
    assert not run.counts
    (row,) = [line for line in markdown(run).split("### Streams")[1].splitlines() if line.startswith("| talk")][:1]
    assert set(row.split("|")[2:-1]) == {" - "}
    assert "- stream: 3 of 50 answers were wrong. talk <1>" in markdown(run)


def test_a_figure_that_a_design_can_not_have_stands_in_brackets():
    known = sample("talk-redis", Phase.STREAM, chunks=50, problems=["counts no tokens"], expected=True)
    run = results(known)
    assert run.counts
    assert "| talk <1> | (0.25) |" in markdown(run)


def test_a_run_that_was_disturbed_says_so():
    assert not results().disturbed
    quiet = [each.foreign_cores for each in results().samples]
    disturbed = results(*(sample("envoy", Phase.FLOOD, foreign_cores=0.5) for _ in range(len(quiet) + 1)))
    assert disturbed.disturbed
    assert "Other programs took 0.50 of the cores" in markdown(disturbed)


def test_variants_that_were_not_run_are_listed_by_reason():
    assert by_reason({"a": "x", "b": "y", "c": "x"}) == {"x": ["a", "c"], "y": ["b"]}
    assert "- Not run (no such part): `litellm`." in markdown(results(left_out={"litellm": "no such part"}))


def test_everything_is_in_the_json_with_the_reasons():
    run = results(sample("envoy", Phase.FLOOD, problems=["why not"]))
    data = json.loads(json.dumps(as_json(run)))
    assert {each["variant"] for each in data["samples"]} == {variant.name for variant in VARIANTS}
    assert [each["problems"] for each in data["samples"] if not each["counts"]] == [["why not"]]
    assert data["samples"][0]["times"]["latency"] == {"p50_us": 1500.0, "p90_us": 1500.0, "p99_us": 1500.0}


def test_the_picture_is_svg_whose_bars_are_to_scale():
    bars = [Bar("a & b", [("#000", 50.0)], "50"), Bar("c", [("#000", 100.0)], "100")]
    root = ET.fromstring(svg([Panel("title", (), bars)]))
    widths = [float(each.get("width")) for each in root.iter() if each.tag.endswith("rect")]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert "a & b" in [each.text for each in root.iter()]
    assert "talk <1>" in [each.text for each in ET.fromstring(picture(results())).iter()]


def test_the_tables_of_a_page_are_replaced_and_the_rest_stays():
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert written_into(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"
    with pytest.raises(ValueError, match="has no"):
        written_into("a page without marks", "new")


def test_the_page_of_figures_has_its_marks_and_the_command():
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    tables = page.partition(BEGIN)[2].partition(END)[0]
    assert "Made by `make bench" in tables


# Variants and forms.


def test_no_variant_is_run_without_being_listed_or_left_out():
    every = choose(["*"], quick=False)
    quick = choose([], quick=True)
    assert {each.name for each in quick.run} < {each.name for each in every.run}
    assert "litellm" in quick.left_out
    assert len(every.run) + len(every.left_out) == len(quick.run) + len(quick.left_out)


def test_a_variant_that_there_is_not_is_refused_with_the_names():
    with pytest.raises(CannotRunError, match="tokenweir-store"):
        choose(["nothing-like-it"], quick=True)


@pytest.mark.parametrize("document", tenant_documents(), ids=lambda document: document["tenant_id"])
def test_each_tenant_has_so_many_limits_of_its_mode_and_no_others(document):
    policy = policy_from(document, Defaults((), ZoneInfo("UTC")))
    assert len(policy.limits) == int(document["tenant_id"].rpartition("-")[2])


def test_the_forms_measure_the_rate_that_the_tables_show():
    for form in (QUICK, FULL):
        assert RATE_KEY in {step.key for step in form.steps}


def test_a_request_is_whole_http():
    for form in FORMS.values():
        for step in form.steps:
            head, _, body = request_bytes(step, "token").partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
            assert json.loads(body).get("stream", False) == bool(step.chunks)


# The command.


def test_a_wrong_name_ends_with_the_status_of_what_can_not_run(capsys):
    assert main(["--variants", "nothing-like-it"]) == CANNOT_RUN
    assert "nothing-like-it" in capsys.readouterr().err


def test_the_list_names_all_variants(capsys):
    assert main(["--list"]) == COUNTS
    assert "tokenweir-grpc-strict-10" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--rounds", "0"], ["--rounds", "x"], ["--no-such-option"]])
def test_a_wrong_argument_is_a_usage_error(given):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2


def test_help_has_examples_and_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit status:" in text
