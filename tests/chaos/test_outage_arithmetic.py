"""Try the measures and excuses of the pairs of faults on made-up runs: each rule can be broken, and is noticed."""

from types import SimpleNamespace

import pytest

from .accounts import Account
from .books import Count
from .clients import Caller
from .excuses import may_be_charged, may_be_lost, may_count_late
from .figures import lines_of
from .outages import available, outages, slowest_refusal
from .pairs import Case, Fault, Known, cases
from .timeline import Timeline, Window
from .traffic import Asked, Control, Traffic

CALLER = Caller("tenant")


def asked(sent_at, decided_at=None, *, outcome="admitted", ended_at=None, replica=0, **fields):
    tokens = 10 if outcome == "admitted" else None
    return Asked(
        "r",
        CALLER,
        replica,
        sent_at,
        True,
        outcome,
        decided_at=decided_at,
        ended_at=ended_at,
        tokens=tokens,
        **fields,
    )


def traffic(*requests, timeline=None, controls=(), replicas=1):
    return Traffic(
        [None] * replicas,
        None,
        10,
        [],
        [CALLER],
        timeline or Timeline(),
        asked=list(requests),
        controls=list(controls),
    )


def decided(*moments, replica=0):
    return [asked(moment, moment, replica=replica) for moment in moments]


# Outages.


def lasted(timeline, *moments, ended_at=30.0):
    (outage,) = outages(traffic(*decided(*moments), timeline=timeline), ended_at)
    return round(outage.lasted_s, 3)


def test_without_a_fault_an_outage_is_the_longest_time_between_two_decisions():
    assert lasted(Timeline(), 1.0, 1.5, 4.0, 4.1, ended_at=4.2) == 2.5


def test_a_replica_that_never_decides_again_is_out_until_the_end():
    assert lasted(Timeline(), 1.0, 2.0) == 28.0


def test_an_outage_is_measured_from_the_last_answer_of_redis():
    assert lasted(Timeline(redis_away=[Window(1.0, 3.0)]), 1.0, 3.5, ended_at=3.6) == 0.5


def test_an_outage_after_a_flush_is_measured_from_the_flush():
    assert lasted(Timeline(lost=[2.0]), 1.9, 3.0, ended_at=3.1) == 1.0


def test_mongodb_is_waited_for_only_where_counters_were_lost():
    away = [Window(1.5, 5.0)]
    assert lasted(Timeline(mongo_away=away), 1.4, 5.5, ended_at=5.6) == pytest.approx(4.1)
    assert lasted(Timeline(mongo_away=away, lost=[1.45]), 1.4, 5.5, ended_at=5.6) == 0.5


def test_an_outage_of_mongodb_after_the_rebuild_excuses_nothing():
    assert lasted(Timeline(mongo_away=[Window(4.0, 6.0)], lost=[1.45]), 1.4, 2.0, 4.0, 6.0, ended_at=6.1) == 2.0


def test_a_dead_or_paused_replica_is_waited_for_and_no_other_one():
    window = {0: [Window(1.0, 9.0)]}
    for timeline in (Timeline(dead=window), Timeline(paused=window)):
        assert available(1.0, 9.2, 0, timeline) == 9.0
        assert available(1.0, 9.2, 1, timeline) == 1.0


def test_each_replica_has_an_outage_of_its_own():
    both = [*decided(1.0, 2.0, replica=0), *decided(1.0, 1.5, 2.0, replica=1)]
    found = outages(traffic(*both, replicas=2), 2.0)
    assert [(outage.replica, outage.lasted_s) for outage in found] == [(0, 1.0), (1, 0.5)]


# Refusals.


def test_a_refusal_is_compared_with_the_control_requests_of_its_moment_and_replica():
    controls = [Control(0, 0.8, 0.15), Control(0, 5.0, 0.9), Control(1, 1.0, 0.9)]
    refused = [asked(1.0, 1.4, outcome="unavailable"), asked(2.0, 2.1, outcome="unavailable")]
    took_s, beyond_s = slowest_refusal(traffic(*refused, controls=controls))
    assert (round(took_s, 3), round(beyond_s, 3)) == (0.4, 0.25)


def test_where_nothing_is_refused_nothing_is_slow():
    assert slowest_refusal(traffic(*decided(1.0))) == (0.0, 0.0)


# Excuses.

KILLED = 100.0


@pytest.fixture(autouse=True)
def windows_of_the_full_form(monkeypatch):
    monkeypatch.setattr("tests.chaos.excuses.ENDED_S", 0.1)
    monkeypatch.setattr("tests.chaos.excuses.DECIDING_S", 0.15)


def killed_and_lost(lost_at, **fields):
    return Timeline(dead={0: [Window(KILLED, 120.0)]}, lost=[lost_at], **fields)


@pytest.mark.parametrize("lost_at", [KILLED - 1.9, KILLED + 0.1, KILLED + 1.9])
def test_what_was_only_in_a_replica_and_redis_that_die_together_may_be_lost(lost_at):
    first = min(KILLED, lost_at)
    timeline = killed_and_lost(lost_at)
    assert may_be_lost(asked(first - 5, first - 4.9, ended_at=first - 0.05), timeline)
    assert may_be_lost(asked(first - 0.9, first - 0.8), timeline)


@pytest.mark.parametrize("lost_at", [KILLED - 2.1, KILLED + 2.1, KILLED + 5.6])
def test_nothing_may_be_lost_where_the_two_are_further_apart(lost_at):
    first = min(KILLED, lost_at)
    assert not may_be_lost(asked(first - 5, first - 4.9, ended_at=first - 0.05), killed_and_lost(lost_at))
    assert not may_be_lost(asked(first - 0.9, first - 0.8), killed_and_lost(lost_at))


def test_what_is_in_mongodb_or_saved_there_may_not_be_lost():
    timeline = killed_and_lost(KILLED + 1)
    assert not may_be_lost(asked(98, 98.1, ended_at=99.8), timeline)
    assert not may_be_lost(asked(97, 97.1), timeline)


def test_what_another_replica_had_or_what_came_after_may_not_be_lost():
    timeline = killed_and_lost(KILLED - 1)
    assert not may_be_lost(asked(98.5, 98.6, replica=1), timeline)
    assert not may_be_lost(asked(99.2, 99.3), timeline)


def test_without_mongodb_nothing_is_safe_since_it_went_away():
    away = [Window(90.0, 101.0)]
    timeline = killed_and_lost(KILLED + 2.5, mongo_away=away)
    assert may_be_lost(asked(91, 91.1, ended_at=95.0), timeline)
    assert not may_be_lost(asked(80, 80.1, ended_at=85.0), timeline)
    assert not may_be_lost(asked(91, 91.1, ended_at=95.0), killed_and_lost(KILLED + 3.5, mongo_away=away))


def test_a_failover_loses_no_more_than_the_last_moment():
    timeline = Timeline(dead={0: [Window(KILLED)]}, failed_over=[KILLED + 1])
    assert not may_be_lost(asked(98.5, 98.6), timeline)
    assert not may_be_lost(asked(98, 98.1, ended_at=99.95), timeline)
    timeline = Timeline(dead={0: [Window(KILLED)]}, failed_over=[KILLED - 1])
    assert may_be_lost(asked(98.9, 98.95), timeline)


def test_redis_that_keeps_what_it_knew_excuses_nothing():
    assert not may_be_lost(asked(99, 99.9), Timeline(dead={0: [Window(KILLED)]}, restarted=[KILLED]))


def test_only_what_a_replica_was_deciding_when_it_was_killed_or_paused_may_be_charged_unserved():
    timeline = Timeline(dead={0: [Window(KILLED)]}, paused={1: [Window(KILLED)]})
    assert may_be_charged(asked(99.9, outcome="broken"), timeline)
    assert not may_be_charged(asked(99.8, outcome="broken"), timeline)
    assert may_be_charged(asked(99.9, 99.95, outcome="unavailable"), timeline)
    assert not may_be_charged(asked(99.8, 99.9, outcome="unavailable"), timeline)
    assert may_be_charged(asked(99.9, outcome="given up", replica=1), timeline)
    assert not may_be_charged(asked(100.1, outcome="given up", replica=1), timeline)
    assert not may_be_charged(asked(99.9, outcome="broken", replica=1), timeline)


def stood_still(until, lost_at):
    return Timeline(paused={0: [Window(KILLED, until)]}, lost=[lost_at])


def test_what_was_young_when_its_replica_stood_still_and_redis_lost_its_memory_may_count_late():
    timeline = stood_still(KILLED + 12, KILLED + 1.3)
    assert may_count_late(asked(99.1, 99.2), timeline)
    assert may_count_late(asked(99.1, 99.2, ended_at=KILLED + 3), timeline)
    assert may_count_late(asked(99.1, 99.2), Timeline(paused={0: [Window(KILLED)]}, failed_over=[KILLED + 1]))


@pytest.mark.parametrize(
    ("request_", "timeline"),
    [
        (asked(98.5, 98.9), stood_still(KILLED + 12, KILLED + 1.3)),  # saved by then
        (asked(99.1, 99.2, ended_at=99.5), stood_still(KILLED + 12, KILLED + 1.3)),
        (asked(100.5, 100.6), stood_still(KILLED + 12, KILLED + 1.3)),
        (asked(99.1, 99.2), stood_still(KILLED + 1.2, KILLED + 1.1)),  # a rebuild waits for that long
        (asked(99.1, 99.2), stood_still(KILLED + 12, KILLED + 2.1)),  # others have taken over
        (asked(99.1, 99.2), stood_still(KILLED + 12, KILLED - 0.1)),
        (asked(99.1, 99.2, replica=1), stood_still(KILLED + 12, KILLED + 1.3)),
    ],
)
def test_nothing_else_may_count_late(request_, timeline):
    assert not may_count_late(request_, timeline)


# Accounts.


def an_account(**fields):
    exact = {
        "caller": CALLER, "limit": 100, "mode": "strict", "upstream": 90, "ledger": 90, "daily": 90,
        "counters": [Count(90, 0)], "most": 100, "lost": [], "unserved": [], "excused": None,
        "excused_tokens": 0, "late_tokens": 0, "double": [], "wrong": [],
    }  # fmt: skip
    return Account(**exact | fields)


def test_an_exact_account_has_no_failure():
    assert list(an_account().failures()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"lost": ["r"]}, {"unserved": ["r"]}, {"double": ["r"]}, {"wrong": ["r"]}, {"daily": 89},
        {"counters": [Count(90, 1)]}, {"counters": [None]}, {"counters": [Count(90, 0), Count(91, 0)]},
        {"limit": 89, "most": 0}, {"upstream": 101}, {"most": 101},
    ],
)  # fmt: skip
def test_each_deviation_is_a_failure(fields):
    assert len(list(an_account(**fields).failures())) == 1


def test_what_was_lost_by_an_excuse_may_be_admitted_once_more():
    assert not list(an_account(upstream=110, excused_tokens=10).failures())
    assert list(an_account(upstream=110, excused_tokens=9).failures())


def test_what_counted_late_may_be_held_twice_and_no_more():
    assert not list(an_account(upstream=110, late_tokens=10).failures())
    assert list(an_account(upstream=110, late_tokens=9).failures())


# Cases, and the line over all of them.


def test_a_seed_draws_the_same_cases_again_and_known_ones_are_left_out(monkeypatch):
    drawn = cases()
    assert drawn == cases()
    avoided = drawn[0].faults
    monkeypatch.setattr("tests.chaos.pairs.KNOWN", (Known("this one", lambda case: case.faults == avoided),))
    monkeypatch.setattr("tests.chaos.pairs.FULL", False)
    assert all(case.faults != avoided for case in cases())


def test_only_a_loss_of_memory_loses_redis():
    def loses(kind, keeps):
        return Case(0, keeps, (Fault("replica killed", 0, 1, 1), Fault(kind, 1, 1))).loses_redis

    assert loses("redis killed", "nothing")
    assert loses("redis flushed", "aof")
    assert loses("redis failed over", "aof")
    assert not loses("redis killed", "aof")
    assert not loses("redis stopped", "nothing")


def test_the_last_line_tells_percentiles_over_all_cases():
    again = [("serving again", [n / 10, n]) for n in range(1, 11)]
    reports = [SimpleNamespace(when="call", passed=True, user_properties=[each]) for each in again]
    assert lines_of(reports)[-1].endswith(
        "all 10 cases: medians p50 0.50 s, p90 0.90 s, max 1.00 s; worst p50 5.00 s, p90 9.00 s, max 10.00 s"
    )
