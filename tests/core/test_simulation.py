"""A replay decides as the rule itself does, on the past as it was."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core import simulation
from extproc.core.binding import Policy, Terms, TopUp, bind
from extproc.core.costs import EVEN, Bound, Cost, Costing, Weights
from extproc.core.endpoints import Endpoint
from extproc.core.identity import Identity
from extproc.core.ledger import Entry, closed_entry, denied_entry
from extproc.core.limits import Limit, Mode, Scope, Subject, Unit, Window
from extproc.core.models import ModelProfile, Models
from extproc.core.quota import Admitted, Count, Reservation, decide
from extproc.core.settlement import Estimates, Outcome, charges, expiry, released
from extproc.core.simulation import Report, Simulation, Toll, Who, shadow_report
from extproc.core.usage import NO_USAGE, Usage

from .samples import FEWER, usages

START = datetime(2026, 3, 27, 22, 50, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
DAY = Limit(Scope.SERVICE_ACCOUNT, Window.DAY, 100)
HARMLESS = 10**9


def who(account="sa", ip="10.0.0.1", tenant="acme"):
    return Identity(tenant, account, ip)


def entry(tokens=10, *, at=0.0, took=1.0, identity=None, outcome=Outcome.SETTLED, **further):
    """An entry `at` seconds after the start that was expected to need what it used."""
    denied = outcome is Outcome.DENIED
    admitted_at = START + timedelta(seconds=at)
    fields = {
        "id": f"r{at}",
        "request_id": "q",
        "identity": identity or who(),
        "date": "2026-03-27",
        "endpoint": Endpoint.CHAT_COMPLETIONS.value,
        "model": "m",
        "stream": False,
        "outcome": outcome,
        "reason": "usage",
        "held": 0 if denied else tokens,
        "charge": 0 if denied else tokens,
        "usage": NO_USAGE if denied else Usage(tokens - tokens // 2, tokens // 2, total=tokens),
        "status": 200,
        "admitted_at": admitted_at,
        "ended_at": admitted_at + timedelta(seconds=0 if denied else took),
        "cost": Cost(tokens - tokens // 2, tokens // 2),
    }
    return Entry(**(fields | further))


def under(*limits, **further):
    return lambda tenant: Policy(tenant, limits, BERLIN, **further)


def replayed(entries, policy, models=None):
    run = Simulation(policy, models)
    for each in entries:
        run.take(each)
    return run.finish()


def denied(report):
    return {(key.service_account, key.limit): toll.requests for key, toll in report.tolls.items()}


# ---------------------------------------------------------------- rules


def test_what_the_proposed_limit_has_no_room_for_is_denied_and_uses_nothing():
    report = replayed([entry(60, at=0), entry(50, at=10), entry(40, at=20)], under(DAY))
    assert (report.requests, report.tokens, report.denied, report.denied_tokens) == (3, 150, 1, 50)
    at = START + timedelta(seconds=10)
    assert report.tolls == {
        Who("acme", "sa", "10.0.0.1", "service_account:day"): Toll(at, at, requests=1, tokens=50)
    }


def test_who_was_denied_is_told_with_the_first_and_the_last_time():
    report = replayed([entry(60 + n, at=n * 60) for n in range(4)], under(DAY))
    (toll,) = report.tolls.values()
    assert (toll.requests, toll.tokens) == (3, 61 + 62 + 63)
    assert (toll.first, toll.last) == (START + timedelta(seconds=60), START + timedelta(seconds=180))


def test_what_is_in_flight_is_held_until_it_ended():
    overlapping = [entry(60, at=0, took=30), entry(60, at=29), entry(30, at=30)]
    assert denied(replayed(overlapping, under(DAY))) == {("sa", "service_account:day"): 1}
    gone = replace(overlapping[0], outcome=Outcome.RELEASED, charge=0, usage=NO_USAGE, reason="upstream_error")
    assert replayed([gone, entry(60, at=29)], under(DAY)).denied == 1
    assert replayed([gone, entry(60, at=30)], under(DAY)).denied == 0


def test_a_window_that_is_over_gives_back_its_room():
    # Midnight in Berlin is ten minutes after the start.
    assert replayed([entry(80, at=0), entry(80, at=599)], under(DAY)).denied == 1
    assert replayed([entry(80, at=0), entry(80, at=600)], under(DAY)).denied == 0


def test_a_request_that_was_denied_in_truth_and_would_not_be_counts_as_much_as_was_expected_of_it():
    past = [entry(60, at=0), entry(30, at=1, outcome=Outcome.DENIED), entry(20, at=2)]
    report = replayed(past, under(DAY))
    assert (report.requests, report.tokens) == (2, 80)
    assert (report.newly_admitted, report.newly_admitted_tokens) == (1, 30)
    assert denied(report) == {("sa", "service_account:day"): 1}


def test_a_request_that_was_denied_and_would_be_again_is_not_told_of():
    report = replayed([entry(101, outcome=Outcome.DENIED)], under(DAY))
    assert report == Report()


def test_a_suspended_caller_is_denied_all():
    report = replayed([entry(1), entry(2, at=1)], under(DAY, accounts={"sa": Terms(suspended="unpaid")}))
    assert denied(report) == {("sa", "suspended"): 2}


def test_a_shadow_limit_denies_nobody():
    report = replayed([entry(60), entry(60, at=1)], under(replace(DAY, shadow=True)))
    assert (report.denied, report.tolls) == (0, {})


def test_a_soft_limit_denies_once_it_is_used_up():
    soft = replace(DAY, mode=Mode.SOFT)
    report = replayed([entry(60), entry(60, at=10), entry(1, at=20)], under(soft))
    assert (report.denied, report.denied_tokens) == (1, 1)


def test_a_limit_on_requests_counts_requests_but_none_that_the_upstream_never_had():
    three = Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, 2, Unit.REQUESTS)
    lost = entry(0, at=1, outcome=Outcome.RELEASED, reason="not_forwarded")
    failed = entry(0, at=3, outcome=Outcome.RELEASED, reason="upstream_error")
    report = replayed([entry(), lost, failed, entry(at=6)], under(three))
    assert denied(report) == {("sa", "service_account:minute~requests"): 1}
    assert replayed([entry(), lost, entry(at=6)], under(three)).denied == 0


def test_a_top_up_counts_until_it_ends():
    more = TopUp(Scope.SERVICE_ACCOUNT, Window.DAY, Unit.TOKENS, 50, (START + timedelta(seconds=100)).timestamp())
    policy = under(DAY, top_ups=(more,))
    assert replayed([entry(90), entry(50, at=99)], policy).denied == 0
    assert replayed([entry(90), entry(50, at=100)], policy).denied == 1


def test_each_of_several_top_ups_ends_in_its_time():
    ends = (START + timedelta(seconds=seconds) for seconds in (100, 200))
    more = [TopUp(Scope.SERVICE_ACCOUNT, Window.DAY, Unit.TOKENS, 50, end.timestamp()) for end in ends]
    policy = under(DAY, top_ups=tuple(more))
    past = [entry(140), entry(20, at=100), entry(10, at=110), entry(1, at=120), entry(1, at=200)]
    assert denied(replayed(past, policy)) == {("sa", "service_account:day"): 3}
    assert replayed(past[:1] + past[2:3], policy).denied == 0


def test_of_several_limits_the_one_that_denies_the_longest_is_told_of_then_the_one_with_the_least_left():
    hour, month = replace(DAY, window=Window.HOUR, amount=0), replace(DAY, window=Window.MONTH)
    whole = replace(month, scope=Scope.TENANT, amount=50)
    for limits in ((hour, month), (month, hour)):
        assert denied(replayed([entry(101)], under(*limits))) == {("sa", "service_account:month"): 1}
    for limits in ((month, whole), (whole, month)):
        assert denied(replayed([entry(101)], under(*limits))) == {("sa", "tenant:month"): 1}


@pytest.mark.parametrize(
    ("unit", "held"), [(Unit.TOKENS, 10), (Unit.INPUT_TOKENS, 4), (Unit.OUTPUT_TOKENS, 6), (Unit.REQUESTS, 1)]
)
@pytest.mark.parametrize("beside", [(), (replace(DAY, mode=Mode.STRICT, amount=HARMLESS, scope=Scope.TENANT),)])
def test_who_was_cut_off_is_charged_no_more_than_was_held_as_in_truth(unit, held, beside):
    limit = replace(DAY, unit=unit, amount=HARMLESS)
    cut_off = entry(100, cost=Cost(4, 6), reason="cut_off")
    estimated = replace(cut_off, outcome=Outcome.ESTIMATED, reason="no_usage")
    for past in (cut_off, estimated):
        run = Simulation(under(limit, *beside))
        run.take(past)
        run.finish()
        (count,) = (count for (_, key), count in run.counts().items() if key.startswith("service_account"))
        # Beside a strict limit nothing was held for less than what was used.
        most = {Unit.TOKENS: 100, Unit.INPUT_TOKENS: 4, Unit.OUTPUT_TOKENS: 6, Unit.REQUESTS: 1} if beside else {}
        assert count == Count(most.get(unit, held), 0)


def test_a_top_up_of_one_account_gives_the_others_in_its_bucket_nothing():
    whole = Limit(Scope.TENANT, Window.DAY, 100)
    more = TopUp(Scope.TENANT, Window.DAY, Unit.TOKENS, 50, START.timestamp() + 1e6, service_account="rich")
    past = [entry(60, identity=who("rich")), entry(50, at=10), entry(80, at=20, identity=who("rich"))]
    assert denied(replayed(past, under(whole, top_ups=(more,)))) == {("sa", "tenant:day"): 1}


def test_models_weigh_as_the_settings_say_where_the_tenant_says_nothing():
    double = Models(ModelProfile(), [("big*", ModelProfile(weights=Weights(2000, 2000, 2000, 2000)))])
    past = [entry(30, model="big-1"), entry(30, at=10, model="big-1"), entry(40, at=20)]
    assert denied(replayed(past, under(DAY), double)) == {("sa", "service_account:day"): 1}
    assert replayed(past, under(DAY, weights=(("*", EVEN),)), double).denied == 0


def test_an_endpoint_that_is_no_longer_known_is_replayed_all_the_same():
    narrow = replace(DAY, endpoints=(Endpoint.EMBEDDINGS,), amount=0)
    assert replayed([entry(endpoint="of-old"), entry(200, at=1)], under(DAY, narrow)).denied == 1
    assert replayed([entry(endpoint="of-old")], under(replace(DAY, mode=Mode.STRICT))).denied == 0


def test_nothing_binds_who_is_unlimited():
    assert replayed([entry(10**9)], under()).denied == 0


@pytest.mark.parametrize(("least", "refused"), [(10, 0), (11, 1)])
def test_a_strict_limit_lowers_the_output_to_what_is_left_but_not_below_the_least(least, refused):
    strict = replace(DAY, mode=Mode.STRICT)
    past = [entry(80), entry(0, at=10, cost=Cost(10, 50), usage=Usage(10, 5, total=15), charge=15)]
    assert replayed(past, under(strict, min_output_tokens=least)).denied == refused
    models = Models(ModelProfile(Costing(min_output_tokens=least)))
    assert replayed(past, under(strict), models).denied == refused


def test_a_strict_limit_charges_what_was_used_though_the_estimate_was_lower():
    strict = replace(DAY, mode=Mode.STRICT)
    low = entry(60, cost=Cost(1, 1))
    assert replayed([low, entry(41, at=10)], under(strict, min_output_tokens=20)).denied == 1
    # Output that outgrew what was written into the request would be cut again.
    overran = replace(low, reason="overran", cost=Cost(30, 1))
    assert replayed([overran, entry(41, at=10)], under(strict, min_output_tokens=20)).denied == 0


def test_entries_out_of_their_order_do_no_harm():
    past = [entry(60, at=700), entry(60, at=0), entry(60, at=800), entry(60, at=1)]
    assert replayed(past, under(DAY)).denied == 2


# ---------------------------------------------------------------- memory


def test_windows_that_are_over_are_forgotten(monkeypatch):
    monkeypatch.setattr(simulation, "_MANY", 10)
    run = Simulation(under(Limit(Scope.SERVICE_ACCOUNT, Window.MINUTE, HARMLESS)))
    for n in range(200):
        run.take(entry(at=n * 60.0, identity=who(f"sa{n % 3}")))
    assert len(run.counts()) <= 10


def test_windows_that_are_not_over_are_kept_however_many_there_are(monkeypatch):
    monkeypatch.setattr(simulation, "_MANY", 10)
    run = Simulation(under(DAY))
    for n in range(100):
        run.take(entry(60, at=n * 0.01, identity=who(f"sa{n}")))
    for n in range(100):
        run.take(entry(60, at=100 + n * 0.01, identity=who(f"sa{n}")))
    assert run.finish().denied == 100


# ---------------------------------------------------------------- shadow limits' own counts


def test_what_shadow_limits_said_is_reported_in_the_same_form():
    report = Report()
    for each in (
        entry(10, shadow=("a", "b")),
        entry(20, at=1, shadow=("b",)),
        entry(30, at=2),
        entry(99, at=3, outcome=Outcome.DENIED, shadow=("b",)),
    ):
        shadow_report(report, each)
    assert (report.requests, report.tokens, report.denied, report.denied_tokens) == (3, 60, 2, 30)
    assert {key.limit: (toll.requests, toll.tokens) for key, toll in report.tolls.items()} == {
        "a": (1, 10),
        "b": (2, 30),
    }


# ---------------------------------------------------------------- as the rule itself decides

# Beside a strict limit that lowered the output others hold the estimate, which the ledger does not have then.
_MODES = ([Mode.SOFT, Mode.RESERVE], [Mode.STRICT])


def _limits(modes):
    limit = st.builds(
        Limit,
        st.sampled_from(list(Scope)),
        st.sampled_from(list(Window)),
        st.integers(0, 250),
        st.sampled_from(list(Unit)),
        st.sampled_from(modes),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([None, None, "a*"]),
        st.sampled_from([(), (), (Endpoint.EMBEDDINGS,)]),
    )
    return st.lists(limit, max_size=3, unique_by=lambda limit: limit.kind).map(tuple)


_LIMITS = tuple(map(_limits, _MODES))
_WEIGHTS = st.sampled_from([EVEN, Weights(500, 0, 2500, 1000), Weights(1000, 100, 1000, 3000)])


@st.composite
def policies(draw):
    some = _LIMITS[draw(st.integers(0, 1))]
    limits = draw(some)
    top_ups = tuple(
        TopUp(
            limit.scope,
            limit.window,
            limit.unit,
            draw(st.integers(0, 100)),
            START.timestamp() + draw(st.integers(-100, 4000)),
            draw(st.sampled_from([None, "sa1"])),
            limit.model,
        )
        for limit in limits
        if draw(st.booleans())
    )
    return Policy(
        "acme",
        limits,
        BERLIN,
        accounts={"sa2": Terms(draw(some), unlimited=draw(st.booleans()))} if draw(st.booleans()) else {},
        top_ups=top_ups,
        weights=(("*", draw(_WEIGHTS)),),
        min_output_tokens=draw(st.sampled_from([None, 1, 20])),
    )


@st.composite
def requests(draw):
    """Requests in the order of their coming: who, for what, what was expected, how long it took, how it ended."""
    at, made = 0.0, []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0.0, 1.0, 20.0, 70.0, 3600.0, 86400.0]))
        usage = draw(usages(40))
        further = draw(st.integers(0, 30)), draw(st.integers(0, 30))
        made.append(
            {
                "at": at,
                "identity": who(draw(st.sampled_from(["sa1", "sa2"])), draw(st.sampled_from(["1", "2"]))),
                "model": draw(st.sampled_from(["ab", "b"])),
                "endpoint": draw(st.sampled_from([Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS])),
                # No less than what is used, as a bound would be.
                "cost": Cost(usage.input + further[0], usage.total - usage.input + further[1]),
                "usage": usage,
                "took": draw(st.sampled_from([0.0, 0.5, 30.0, 7200.0])),
                "end": draw(
                    st.sampled_from(["usage", "cut_off", "estimated", "failed", "not_forwarded", "expired"])
                ),
            }
        )
    return made


def held_for(policy, request, number):
    """As accounting makes it."""
    at = START + timedelta(seconds=request["at"])
    subject = Subject(request["model"], request["endpoint"])
    buckets = bind(policy, request["identity"], at, subject)
    cost = request["cost"]
    least = 16 if policy.min_output_tokens is None else policy.min_output_tokens
    strict = any(bucket.limit.mode is Mode.STRICT for bucket in buckets)
    return Reservation(
        id=f"r{number}",
        request_id="q",
        identity=request["identity"],
        endpoint=request["endpoint"],
        model=request["model"],
        stream=False,
        cost=cost,
        buckets=buckets,
        admitted_at=at,
        date="2026-03-27",
        deadline=0.0,
        weights=policy.weights_for(request["model"]),
        bound=Bound(cost.prompt, cost.output, min(max(1, least), cost.output), writable=cost.output > 0)
        if strict
        else None,
    )


def ending(reservation, request):
    estimates = Estimates.of(reservation, 4)
    output = min(request["usage"].output, reservation.output_held)
    usage = Usage(min(request["usage"].input, reservation.cost.prompt), output, total=0)
    usage = replace(usage, total=usage.input + output)
    match request["end"]:
        case "usage" | "cut_off":
            return estimates.settle(usage, complete=request["end"] == "usage")
        case "estimated":
            return estimates.estimate(output * 4, 1, "no_usage")
        case "expired":
            return expiry(reservation)
        case reason:
            return released(reason, forwarded=reason != "not_forwarded")


def lived(policy, made):
    """The truth: what was decided one after the other, and the ledger and counts that came of it."""
    counts, opened, ledger = {}, [], []

    def settle(until):
        for due in sorted((o for o in opened if o[0] <= until), key=lambda o: o[0]):
            opened.remove(due)
            _, reservation, settlement = due
            for bucket, charge in zip(reservation.buckets, charges(reservation, settlement), strict=True):
                count = counts[bucket.key]
                counts[bucket.key] = Count(count.used + charge, count.held - reservation.hold(bucket.limit))

    for number, request in enumerate(made):
        settle(request["at"])
        reservation = held_for(policy, request, number)
        decision = decide(reservation, [counts.get(b.key, Count(0, 0)) for b in reservation.buckets])
        if not isinstance(decision, Admitted):
            ledger.append(denied_entry(reservation, decision.state.bucket.limit.kind))
            continue
        for state in decision.states:
            counts[state.bucket.key] = state.count
        settlement = ending(decision.reservation, request)
        opened.append((request["at"] + request["took"], decision.reservation, settlement))
        ended_at = START + timedelta(seconds=request["at"] + request["took"])
        ledger.append(closed_entry(decision.reservation, settlement, ended_at))
    settle(float("inf"))
    return ledger, counts


@FEWER
@given(policies(), requests())
def test_a_replay_of_the_limits_that_were_in_force_decides_as_they_did(policy, made):
    ledger, counts = lived(policy, made)
    run = Simulation(lambda tenant: policy)
    for each in ledger:
        run.take(each)
    report = run.finish()
    assert (report.denied, report.newly_admitted, report.tolls) == (0, 0, {})
    assert report.requests == sum(each.outcome is not Outcome.DENIED for each in ledger)
    assert report.tokens == sum(each.charge for each in ledger)
    found = {key: count for (_, key), count in run.counts().items()}
    # A bucket that only denied has a count of nothing here, and none in truth.
    assert {key: count for key, count in found.items() if count != Count(0, 0)} == {
        key: count for key, count in counts.items() if count != Count(0, 0)
    }


@FEWER
@given(policies(), policies(), requests())
def test_a_replay_of_other_limits_decides_as_they_would_have(truth, proposed, made):
    made = [request | {"end": request["end"] if request["end"] != "estimated" else "usage"} for request in made]
    ledger, _ = lived(truth, made)
    # What came of each request in truth, lived again under the proposed limits.
    again = [
        request
        | {
            "cost": Cost(max(e.cost.prompt, e.usage.input), max(e.cost.output, e.usage.total - e.usage.input)),
            "usage": e.usage,
            "took": (e.ended_at - e.admitted_at).total_seconds(),
            "end": "expired" if e.outcome is Outcome.DENIED else request["end"],
        }
        for request, e in zip(made, ledger, strict=True)
    ]
    expected, _ = lived(proposed, again)
    report = replayed(ledger, lambda tenant: proposed)
    outcomes = [
        (was.outcome is Outcome.DENIED, would.outcome is Outcome.DENIED)
        for was, would in zip(ledger, expected, strict=True)
    ]
    assert report.denied == outcomes.count((False, True))
    assert report.newly_admitted == outcomes.count((True, False))
    told = Counter(
        (would.identity, would.reason)
        for was, would in zip(ledger, expected, strict=True)
        if was.outcome is not Outcome.DENIED and would.outcome is Outcome.DENIED
    )
    assert {
        (Identity(k.tenant, k.service_account, k.client_ip), k.limit): t.requests for k, t in report.tolls.items()
    } == told
