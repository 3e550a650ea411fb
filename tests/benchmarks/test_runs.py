"""Very short runs of the benchmark on real processes."""

import pytest

from benchmarks.errors import CannotRunError
from benchmarks.fleet import running
from benchmarks.forms import TINY
from benchmarks.machine import two_cores
from benchmarks.measuring import Meter
from benchmarks.variants import choose
from tests.missing import missing, needing_parts

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


async def turn(programs, tmp_path, name, **options):
    try:
        cores = two_cores()
    except CannotRunError as error:
        missing(str(error))
    (variant,) = choose([name], quick=True).run
    with needing_parts():
        async with running([variant], programs, cores, tmp_path, **options) as fleet:
            return {sample.step: sample for sample in await Meter(fleet).turn(variant, TINY.steps, 0)}


async def test_envoy_with_token_check_passes_every_answer(programs, tmp_path):
    samples = await turn(programs, tmp_path, "jwt")
    assert set(samples) >= {"peak", "stream"}
    assert all(not sample.problems or sample.expected for sample in samples.values()), samples
    peak = samples["peak"]
    assert peak.load["ok"] > 0
    assert peak.used["envoy"].cpu_s > 0


async def test_an_upstream_that_leaves_something_out_makes_no_figure_count(programs, tmp_path):
    samples = await turn(programs, tmp_path, "envoy", broken_upstream=True)
    for step in ("peak", "stream"):
        assert any("answers were wrong" in why for why in samples[step].problems)
        assert not samples[step].expected


async def test_the_compared_design_counts_every_request_and_no_token_of_a_stream(programs, tmp_path):
    samples = await turn(programs, tmp_path, "talk-memory")
    assert not any("ledger" in why or "tokens are recorded" in why for why in samples["peak"].problems)
    assert samples["stream"].problems == ["this design counts no tokens of a stream"]


async def test_the_ledger_of_tokenweir_equals_what_the_upstream_served(programs, tmp_path):
    # On a busy machine requests may be refused; then the figures do not count, and the ledger is right all the same.
    samples = await turn(programs, tmp_path, "tokenweir-grpc-reserve-2")
    for step in ("peak", "stream"):
        assert not any("ledger" in why or "recorded" in why for why in samples[step].problems), samples[
            step
        ].problems
        assert samples[step].redis.scripts > 0
        assert samples[step].operations > 0
        assert samples[step].messages > 0


@pytest.mark.parametrize(
    ("name", "messages"), [("noop-native", 10), ("noop-native-skip", 8), ("noop-native-request", 4)]
)
async def test_a_no_op_has_as_many_messages_as_its_envoy_is_told_to_send(programs, tmp_path, name, messages):
    peak = (await turn(programs, tmp_path, name))["peak"]
    assert not peak.problems
    assert peak.messages == messages * peak.load["ok"] > 0
