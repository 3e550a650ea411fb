"""A replay decides as the rule itself does, on the past as it was."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota import simulation
from extproc.core.quota.binding import Policy, Terms, TopUp, bind
from extproc.core.quota.costs import EVEN, Bound, Cost, Costing, Weights
from extproc.core.quota.ledger import Entry, closed_entry, denied_entry
from extproc.core.quota.limits import Limit, Mode, Scope, Subject, Unit, Window
from extproc.core.quota.models import ModelProfile, Models
from extproc.core.quota.reservation import Admitted, Count, Reservation, decide
from extproc.core.quota.settlement import Estimates, Outcome, charges, expiry, released
from extproc.core.quota.simulation import Simulation
from extproc.core.quota.simulation_report import Report, Toll, Who, shadow_report
from extproc.core.quota.usage import NO_USAGE, Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from tests.changing import replace
from tests.core.samples import FEWER, usages

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


@pytest.mark.parametrize("limit", [DAY, replace(DAY, mode=Mode.STRICT)])
def test_what_is_in_flight_is_held_until_it_ended(limit):
    overlapping = [entry(60, at=0, took=30), entry(60, at=29), entry(30, at=30)]
    assert denied(replayed(overlapping, under(limit))) == {("sa", "service_account:day"): 1}
    gone = replace(overlapping[0], outcome=Outcome.RELEASED, charge=0, usage=NO_USAGE, reason="upstream_error")
    assert replayed([gone, entry(60, at=29)], under(limit)).denied == 1
    assert replayed([gone, entry(60, at=30)], under(limit)).denied == 0


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
    estimated = replace(cut_off, outcome=Outcome.ESTIMATED)
    # Beside a strict limit nothing was held for less than what was used.
    strict = {Unit.TOKENS: 100, Unit.INPUT_TOKENS: 4, Unit.OUTPUT_TOKENS: 6, Unit.REQUESTS: 1}
    assert {charged(past, limit, *beside) for past in (cut_off, estimated)} == {strict[unit] if beside else held}


@pytest.mark.parametrize(("unit", "held"), [(Unit.TOKENS, 100), (Unit.INPUT_TOKENS, 50), (Unit.OUTPUT_TOKENS, 50)])
def test_an_estimate_of_a_complete_answer_may_be_more_than_was_held_but_where_a_limit_is_strict(unit, held):
    limit = replace(DAY, unit=unit, amount=HARMLESS)
    estimated = entry(100, cost=Cost(4, 6), outcome=Outcome.ESTIMATED, reason="no_usage")
    assert charged(estimated, limit) == held
    beside = replace(DAY, mode=Mode.STRICT, amount=HARMLESS, scope=Scope.TENANT)
    assert charged(estimated, limit, beside) == {100: 100, 50: 4 if unit is Unit.INPUT_TOKENS else 6}[held]


def charged(past, *limits, **further):
    """What the bucket of the one limit by service account has for the entry."""
    run = Simulation(under(*limits, **further))
    run.take(past)
    run.finish()
    (count,) = (count for (_, key), count in run.counts().items() if key.startswith("service_account"))
    assert count.held == 0
    return count.used


# A stream that was expected to need 4 + 6, whose hold had grown to 4 + 36 when it ended.
GROWN = entry(60, cost=Cost(4, 6), usage=Usage(4, 56, total=60), held=40, stream=True, reason="cut_off")
INPUT_STRICT = Limit(Scope.TENANT, Window.DAY, HARMLESS, Unit.INPUT_TOKENS, Mode.STRICT)


@pytest.mark.parametrize(("unit", "most"), [(Unit.TOKENS, 40), (Unit.INPUT_TOKENS, 4), (Unit.OUTPUT_TOKENS, 36)])
@pytest.mark.parametrize("beside", [(), (INPUT_STRICT,)])
def test_a_hold_that_grew_is_the_most_that_is_charged_for_a_stream_that_was_cut_off_or_expired(unit, most, beside):
    limit = replace(DAY, unit=unit, amount=HARMLESS)
    assert charged(GROWN, limit, *beside) == most
    expired = replace(GROWN, outcome=Outcome.EXPIRED, reason="expired", usage=Usage(4, 36, total=40))
    assert charged(expired, limit, *beside) == most
    # Only who is cut off pays no more than that, and no strict limit here bounds the output.
    assert charged(replace(GROWN, reason="usage"), limit, *beside) == {40: 60, 4: 4, 36: 56}[most]
    # What is held for an answer that is no stream does not grow.
    assert charged(replace(GROWN, stream=False), limit, *beside) == min(most, 10 if unit is Unit.TOKENS else 6)


@pytest.mark.parametrize(
    ("weights", "held", "most"),
    [
        (Weights(1000, 1000, 2000, 3000), 4 + 3 * 36, {Unit.OUTPUT_TOKENS: 36}),
        (Weights(500, 1000, 2500, 1000), 94, {Unit.OUTPUT_TOKENS: 36}),
        (Weights(1000, 1000, 0, 0), 4, {Unit.TOKENS: 4, Unit.OUTPUT_TOKENS: 6}),  # the sum says nothing of output
    ],
)
def test_a_hold_that_grew_is_known_by_its_weighted_sum(weights, held, most):
    past = replace(GROWN, held=held)
    for unit, expected in most.items():
        limit = replace(DAY, unit=unit, amount=HARMLESS)
        assert charged(past, limit, weights=(("*", weights),)) == expected


def test_a_strict_limit_that_bounds_the_output_holds_what_it_would_have_whatever_grew_in_truth():
    strict = replace(DAY, mode=Mode.STRICT, amount=HARMLESS)
    beside = Limit(Scope.SERVICE_ACCOUNT_IP, Window.DAY, HARMLESS, Unit.OUTPUT_TOKENS)
    run = Simulation(under(strict, beside))
    run.take(GROWN)
    run.finish()
    used = {key.partition(":")[0]: count.used for (_, key), count in run.counts().items()}
    assert used == {"service_account": 60, "service_account+client_ip": 6}


def test_when_a_hold_grew_is_not_known_so_what_came_meanwhile_may_be_admitted_anew():
    long = replace(GROWN, reason="usage", ended_at=GROWN.admitted_at + timedelta(seconds=100))
    meanwhile = entry(50, at=50, outcome=Outcome.DENIED)
    report = replayed([long, meanwhile], under(replace(DAY, amount=70)))
    assert (report.denied, report.newly_admitted) == (0, 1)
    after = replace(meanwhile, admitted_at=long.ended_at, ended_at=long.ended_at)
    assert replayed([long, after], under(replace(DAY, amount=70))).newly_admitted == 0


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


@pytest.mark.parametrize(("reason", "beside"), [("usage", 80 + 20), ("cut_off", 80 + 20), ("overran", 80 + 90)])
def test_an_output_beyond_what_a_strict_limit_leaves_is_not_used_unless_its_upstream_keeps_to_no_bound(
    reason, beside
):
    strict, other = replace(DAY, mode=Mode.STRICT), Limit(Scope.TENANT, Window.DAY, HARMLESS)
    weights = (("*", Weights(1000, 1000, 1000, 2000)),)
    run = Simulation(under(strict, other, min_output_tokens=5, weights=weights))
    run.take(entry(80, cost=Cost(80, 0), usage=Usage(80, 0, total=80)))
    # 20 are left: 10 for the prompt, and 5 of output, which may be reasoning.
    used = Usage(10, 50, reasoning=30, total=60)
    run.take(entry(60, at=10, cost=Cost(10, 50), usage=used, reason=reason))
    run.finish()
    counts = {key.partition(":")[0]: count.used for (_, key), count in run.counts().items()}
    assert counts == {"service_account": 100, "tenant": beside}


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


def _limits():
    limit = st.builds(
        Limit,
        st.sampled_from(list(Scope)),
        st.sampled_from(list(Window)),
        st.integers(0, 250),
        st.sampled_from(list(Unit)),
        st.sampled_from(list(Mode)),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([None, None, "a*"]),
        st.sampled_from([(), (), (Endpoint.EMBEDDINGS,)]),
    )
    return st.lists(limit, max_size=3, unique_by=lambda limit: limit.kind).map(tuple)


_LIMITS = _limits()
_WEIGHTS = st.sampled_from([EVEN, Weights(500, 0, 2500, 1000), Weights(1000, 100, 1000, 3000)])


@st.composite
def policies(draw):
    limits = draw(_LIMITS)
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
        accounts={"sa2": Terms(draw(_LIMITS), unlimited=draw(st.booleans()))} if draw(st.booleans()) else {},
        top_ups=top_ups,
        weights=(("*", draw(_WEIGHTS)),),
        min_output_tokens=draw(st.sampled_from([None, 1, 20])),
    )


@st.composite
def requests(draw):
    """Requests in the order of their coming: who, for what, what was expected, how long it took, how it ended."""
    at, made = 0.0, []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([1.0, 0.0, 20.0, 70.0, 3600.0, 86400.0]))
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
                "took": draw(st.sampled_from([30.0, 0.0, 0.5, 7200.0])),
                # A stream's hold grows by so much soon after it began.
                "grows": draw(st.sampled_from([25, None, 1, 80])),
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
        stream=request["grows"] is not None,
        cost=cost,
        buckets=buckets,
        admitted_at=at,
        date="2026-03-27",
        deadline=0.0,
        weights=policy.own_weights(request["model"]) or EVEN,
        bound=Bound(cost.prompt, cost.output, min(max(1, least), cost.output), writable=cost.output > 0)
        if strict
        else None,
    )


def ending(reservation, request):
    estimates = Estimates.of(reservation, 4)
    output = min(request["usage"].output + 2 * reservation.extra_output, reservation.output_held)
    if reservation.extra_output and request["end"] == "cut_off":
        output += 10  # more than was held: nobody pays for that
    usage = Usage(min(request["usage"].input, reservation.cost.prompt), output, total=0)
    usage = replace(usage, total=usage.input + output)
    match request["end"]:
        case "usage" | "cut_off":
            return estimates.settle(usage, complete=request["end"] == "usage")
        case "estimated":
            return estimates.estimate(output * 4, 1, "no_usage", complete=True)
        case "expired":
            return expiry(reservation)
        case reason:
            return released(reason, forwarded=reason != "not_forwarded")


class Life:
    """The truth: what was decided one after the other, and the ledger and counts that came of it.

    `unknowable` is the first request for which it mattered that a hold had grown and not ended: nobody can tell
    from the ledger when it grew.
    """

    def __init__(self, policy, made):
        self.policy = policy
        self.counts = {}
        self.extra = Counter()
        self.ledger = []
        self.unknowable = None
        self._open = []
        for number, request in enumerate(made):
            self._until(request["at"])
            self._come(number, request)
        self._until(float("inf"))

    def _come(self, number, request):
        reservation = held_for(self.policy, request, number)
        counts = [self.counts.get(bucket.key, Count(0, 0)) for bucket in reservation.buckets]
        decision = decide(reservation, counts)
        known = [
            Count(count.used, count.held - self.extra[bucket.key])
            for bucket, count in zip(reservation.buckets, counts, strict=True)
        ]
        if self.unknowable is None and not alike(decision, decide(reservation, known)):
            self.unknowable = number
        if not isinstance(decision, Admitted):
            self.ledger.append(denied_entry(reservation, decision.state.bucket.limit.kind))
            return
        for state in decision.states:
            self.counts[state.bucket.key] = state.count
        self.ledger.append(None)
        self._open.append((request["at"], number, request, decision.reservation))

    def _until(self, now):
        """Holds grow and end in the order in which that happened."""
        while due := [each for each in map(self._next, self._open) if each[0] <= now]:
            at, grows, opened = min(due, key=lambda each: each[:2] + each[2][:2])
            self._open.remove(opened)
            if grows:
                self._grow(at, opened)
            else:
                self._settle(at, opened)

    def _next(self, opened):
        at, _, request, reservation = opened
        # Beside a shadow of a strict limit the replay takes what was used for its bound: that would be another one.
        bounded = any(
            bucket.limit.mode is Mode.STRICT and bucket.limit.unit in (Unit.TOKENS, Unit.OUTPUT_TOKENS)
            for bucket in reservation.buckets
        )
        grows = request["grows"] is not None and not reservation.extra_output and not bounded
        return (at + request["took"] / (100 if grows else 1), grows, opened)

    def _grow(self, at, opened):
        _, number, request, before = opened
        after = replace(before, extra_output=request["grows"])
        self._change(before, after)
        self._open.append((opened[0], number, request, after))

    def _settle(self, at, opened):
        _, number, request, reservation = opened
        settlement = ending(reservation, request)
        for bucket, charge in zip(reservation.buckets, charges(reservation, settlement), strict=True):
            count = self.counts[bucket.key]
            self.counts[bucket.key] = Count(count.used + charge, count.held - reservation.hold(bucket.limit))
            self.extra[bucket.key] -= grown_by(reservation, bucket.limit)
        self.ledger[number] = closed_entry(reservation, settlement, START + timedelta(seconds=at))

    def _change(self, before, after):
        for bucket in before.buckets:
            more = grown_by(after, bucket.limit)
            count = self.counts[bucket.key]
            self.counts[bucket.key] = Count(count.used, count.held + more)
            self.extra[bucket.key] += more


def grown_by(reservation, limit):
    return reservation.hold(limit) - replace(reservation, extra_output=0).hold(limit)


def alike(first, second):
    if isinstance(first, Admitted) and isinstance(second, Admitted):
        return first.reservation == second.reservation
    return type(first) is type(second)


def replay_of(ledger, policy):
    run = Simulation(lambda tenant: policy)
    for each in ledger:
        run.take(each)
    return run


@FEWER
@given(policies(), requests())
def test_a_replay_of_the_limits_that_were_in_force_decides_as_they_did(policy, made):
    life = Life(policy, made)
    known = life.ledger[: life.unknowable]
    run = replay_of(known, policy)
    report = run.finish()
    assert (report.denied, report.newly_admitted, report.tolls) == (0, 0, {})
    assert report.requests == sum(each.outcome is not Outcome.DENIED for each in known)
    assert report.tokens == sum(each.charge for each in known)
    if life.unknowable is not None:
        # What the ledger can't tell denies nobody who was admitted.
        first = life.ledger[life.unknowable]
        run = replay_of([*known, first], policy)
        denied = first.outcome is Outcome.DENIED
        assert (run.report.denied, run.report.newly_admitted) == (0, int(denied))
        return
    found = {key: count for (_, key), count in run.counts().items()}
    # A bucket that only denied has a count of nothing here, and none in truth.
    assert {key: count for key, count in found.items() if count != Count(0, 0)} == {
        key: count for key, count in life.counts.items() if count != Count(0, 0)
    }


@FEWER
@given(policies(), policies(), requests())
def test_a_replay_of_other_limits_decides_as_they_would_have(truth, proposed, made):
    end = {"estimated": "usage"}
    made = [request | {"end": end.get(request["end"], request["end"]), "grows": None} for request in made]
    ledger = Life(truth, made).ledger
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
    expected = Life(proposed, again).ledger
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


def test_denied_requests_that_were_counted_together_are_decided_one_by_one():
    together = entry(45, outcome=Outcome.DENIED, count=4, cost=Cost(20, 21))
    report = replayed([together], under(DAY))
    assert (report.newly_admitted, report.newly_admitted_tokens) == (4, 40)
    few = replayed([together], under(replace(DAY, amount=25)))
    assert (few.newly_admitted, few.newly_admitted_tokens) == (2, 20)
