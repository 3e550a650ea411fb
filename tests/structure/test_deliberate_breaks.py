"""Each promise still has a test that sees it broken: the product is broken on purpose, in a copy.

The simulation has breaks of its own (tests/simulation/mutations.py), for what must survive faults.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Break:
    """A text of a file of the package that is replaced, and the tests of which one at least must fail then."""

    path: str
    old: str
    new: str
    tests: tuple[str, ...]


BREAKS = {
    "a bucket admits more than its limit": Break(
        "stores/redis/lua/reserve.lua",
        "local fits = used[i] + held[i] + hold[i] <= amount",
        "local fits = used[i] + hold[i] <= amount",
        ("contract/test_counters.py::test_concurrent_reservations_are_admitted_up_to_the_limit_and_not_one_more",),
    ),
    "a request that does not fit in one bucket is held in the others": Break(
        "stores/redis/lua/reserve.lua",
        "if reply[1] == 0 then return reply end",
        "",
        ("contract/test_counters.py::test_what_does_not_fit_in_one_bucket_is_held_in_none",),
    ),
    "an answer with trailers ends no hold": Break(
        "core/answer_phases.py",
        "return phase, [TrailersReply(), *effects]",
        "return phase, [TrailersReply()]",
        (
            "core/test_exchange.py::test_any_course_of_events_ends_each_hold_exactly_once_and_nothing_follows_the_end",
        ),
    ),
    "a client that leaves pays nothing": Break(
        "core/answer_phases.py",
        "return self.settled(complete=False)",
        'return self._request.close(released("left"), self._status)',
        ("envoy/test_servicer.py", "core/test_exchange.py"),
    ),
    "usage that the client asked for is hidden": Break(
        "core/answer_phases.py",
        "and not facts.wants_usage\n",
        "\n",
        ("core/test_exchange.py::test_any_stream_reaches_the_client_and_the_ledger_the_same_however_it_is_cut",),
    ),
    "a decision waits for counters that hang": Break(
        "metering/admission.py",
        "with timeouts.wait():",
        "if True:",
        ("metering/test_service.py::test_counters_that_hang_make_no_decision_in_bounded_time",),
    ),
    "a strict bucket is charged more than it held": Break(
        "core/quota/settlement.py",
        "return min(charge, held) if settlement.capped or strict else charge",
        "return charge",
        ("core/quota/test_settlement.py",),
    ),
    "a window follows another time zone": Break(
        "core/quota/limits.py",
        "start, end = _midnight(first, zone), _midnight(last, zone)",
        'start, end = _midnight(first, ZoneInfo("UTC")), _midnight(last, ZoneInfo("UTC"))',
        ("core/quota/test_windows_over_years.py::test_each_window_resets_once_as_time_goes_on",),
    ),
    "nobody renews the lease of a long stream": Break(
        "metering/leases.py",
        "if opened.reservation.deadline < soon]",
        "if opened.reservation.deadline < 0]",
        ("metering/test_limits_in_force.py::test_a_reservation_lives_as_long_as_its_stream",),
    ),
    "a threshold is reported at each end": Break(
        "stores/memory/counters.py",
        "crossed += _cross(life, key, bucket, used, thresholds)",
        "crossed += [Crossed(bucket, used, t) for t in thresholds if used * 100 >= bucket.limit.amount * t]",
        ("contract/test_thresholds.py",),
    ),
    "an entry that comes twice counts twice": Break(
        "stores/memory/ledger.py",
        "self._entries.setdefault(entry.id, entry)",
        'self._entries[f"{entry.id}{len(self._entries)}"] = entry',
        ("contract/test_ledger.py::test_appending_twice_counts_once",),
    ),
    "a denied request is admitted": Break(
        "core/quota/reservation.py",
        "return admitted(reservation, counts, output) if fits else denied(reservation, counts)",
        "return admitted(reservation, counts, output)",
        ("contract/test_counters.py", "core/quota/test_reservation.py"),
    ),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "main"
    left_out = shutil.ignore_patterns("__pycache__", "static", "golden", ".*")
    for folder in ("extproc", "tests", "docs", "charts"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=left_out, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def failed(copy, tests):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"tests/{each}" for each in tests]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in {0, 1}, run.stdout + run.stderr
    return run.returncode == 1


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BREAKS)
def test_a_deliberate_break_is_found(copied, name):
    of = BREAKS[name]
    path = copied / "extproc" / of.path
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(of.old, of.new), encoding="utf-8")
    try:
        assert failed(copied, of.tests), f"no test of {of.tests} failed"
    finally:
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("name", BREAKS)
def test_a_deliberate_break_still_fits_the_code(name):
    of = BREAKS[name]
    assert (ROOT / "extproc" / of.path).read_text(encoding="utf-8").count(of.old) == 1
    for test in of.tests:
        file, _, function = test.partition("::")
        assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
