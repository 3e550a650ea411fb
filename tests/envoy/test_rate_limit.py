"""Envoy's rate limit protocol over a real socket: what is asked of the decision, and what Envoy is told of it."""

import asyncio
import json
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.wrappers_pb2 import UInt64Value

from extproc.core.quota.hits import Hit
from extproc.core.quota.limits import Bucket, Interval, Limit, Scope, Unit, Window
from extproc.core.quota.reservation import Admitted, BucketState, Count, Denied, Suspended, Unavailable
from extproc.core.rejections import DeniedStyle
from extproc.core.request.identity import Identity
from extproc.core.request.in_flight import InFlight
from extproc.envoy.pb import tokenweir_rate_limit_pb2 as pb
from extproc.envoy.rate_limit import SERVICE, RateLimitServicer
from extproc.envoy.serving import ServerOptions
from extproc.envoy.transports import Transport, build_server
from extproc.observe.metrics import Metrics
from tests.system.waiting import until

NOW = datetime(2026, 3, 1, 12, 0, 15, tzinfo=UTC)
NOON = int(NOW.replace(second=0).timestamp())
OK, OVER_LIMIT = pb.RateLimitResponse.OK, pb.RateLimitResponse.OVER_LIMIT
CALLER = {"remote_address": "10.0.0.7", "service_account": "console", "tenant": "acme"}


def state(amount=60, used=0, *, window=Window.MINUTE, length=60, unit=Unit.REQUESTS, scope=Scope.CLIENT_IP):
    limit = Limit(scope, window, amount, unit)
    return BucketState(Bucket(limit, ("10.0.0.7",), Interval(NOON, NOON + length)), Count(used, 0))


def admitted(*states):
    return Admitted(None, states)


@pytest.fixture(autouse=True, params=list(Transport))
def transport(request):
    """Run each test on every transport."""
    Service.transport = request.param
    return request.param


class Service:
    transport = Transport.GRPC

    def __init__(self, decision, options):
        self.decision = decision
        self.metrics = Metrics()
        self.hits = []
        self.servicer = RateLimitServicer(self.decide, self.metrics, lambda: NOW, **options)

    async def decide(self, hit):
        self.hits.append(hit)
        if callable(self.decision):
            return await self.decision()
        return self.decision

    def counted(self, name, label):
        return self.metrics.registry.get_sample_value(name, label) or 0

    def faults(self, kind):
        return self.counted("tokenweir_stream_faults_total", {"kind": kind})

    def rejections(self, reason):
        return self.counted("tokenweir_rejections_total", {"reason": reason})


@asynccontextmanager
async def serving(decision=None, **options):
    service = Service(decision if decision is not None else admitted(state()), options)
    options = ServerOptions("127.0.0.1:0", 1 << 20, 100)
    server = build_server(Service.transport, None, service.servicer, options, service.metrics)
    address = server.bind()
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            service.channel = channel
            service.ask = channel.unary_unary(
                f"/{SERVICE}/ShouldRateLimit",
                request_serializer=pb.RateLimitRequest.SerializeToString,
                response_deserializer=pb.RateLimitResponse.FromString,
            )
            yield service
    finally:
        await server.stop(0.0)


def descriptor(pairs, **fields):
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    entries = [pb.RateLimitDescriptor.Entry(key=key, value=value) for key, value in pairs]
    return pb.RateLimitDescriptor(entries=entries, **fields)


def request(*descriptors, domain="tokenweir", hits_addend=0):
    return pb.RateLimitRequest(
        domain=domain, descriptors=descriptors or [descriptor(CALLER)], hits_addend=hits_addend
    )


def headers(answer):
    names = [header.key for header in answer.response_headers_to_add]
    assert len(set(names)) == len(names)  # Envoy adds, it does not replace
    assert all(name == name.lower() and not name.startswith(":") for name in names)
    return {header.key: header.value for header in answer.response_headers_to_add}


def told(status):
    limit = status.current_limit
    return (
        status.code,
        limit.requests_per_unit,
        limit.unit,
        status.limit_remaining,
        status.duration_until_reset.seconds,
    )


async def failure(service, message):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.ask(message)
    return caught.value


# ---------------------------------------------------------------- what is asked


async def test_descriptors_become_one_hit():
    async with serving() as service:
        await service.ask(
            request(descriptor({"remote_address": "10.0.0.7"}), descriptor({"service_account": "a"}))
        )
        await service.ask(request(descriptor(CALLER | {"model": "m"}), hits_addend=4))
    assert service.hits == [
        Hit(Identity("anonymous", "a", "10.0.0.7"), None, 1),
        Hit(Identity("acme", "console", "10.0.0.7"), "m", 4),
    ]


@pytest.mark.parametrize(("own", "hits"), [(None, 4), (UInt64Value(value=9), 9), (UInt64Value(value=0), 1)])
async def test_a_descriptors_own_hits_are_told_from_none(own, hits):
    async with serving() as service:
        await service.ask(request(descriptor(CALLER, hits_addend=own), hits_addend=4))
    assert service.hits[0].hits == hits


async def test_the_limits_of_a_route_come_along():
    pairs = [*CALLER.items(), ("route", "search"), ("limit", "client_ip:60/minute"), ("limit", "tenant:9/hour")]
    async with serving() as service:
        await service.ask(request(descriptor(pairs)))
    assert [(e.limit.scope, e.limit.amount, e.parts) for e in service.hits[0].extra] == [
        (Scope.CLIENT_IP, 60, ("10.0.0.7", "tokenweir", "route", "search")),
        (Scope.TENANT, 9, ("tokenweir", "route", "search")),
    ]


async def test_tenants_are_derived_as_they_are_for_the_processor():
    async with serving(tenant_pattern=re.compile("@(.+)")) as service:
        await service.ask(request(descriptor({"service_account": "console@zone"})))
    assert service.hits[0].identity.tenant == "zone"


# ---------------------------------------------------------------- what is answered


async def test_a_tenant_with_too_many_calls_at_once_is_refused_and_nobody_is_asked():
    decided, in_flight = asyncio.Event(), InFlight(1)

    async def waiting():
        await decided.wait()
        raise RuntimeError

    async with serving(waiting, in_flight=in_flight) as service:
        first = asyncio.ensure_future(service.ask(request()))
        await until(lambda: service.hits, "the first call is being decided")
        answer = await service.ask(request())
        assert (answer.overall_code, headers(answer)["retry-after"]) == (OVER_LIMIT, "1")
        assert json.loads(answer.raw_body)["error"]["code"] == "too_many_in_flight"
        assert (len(service.hits), service.rejections("in_flight")) == (1, 1)
        decided.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await first
        assert in_flight.tenants == 0


async def test_an_admitted_request_is_told_the_tightest_bucket_once_and_each_descriptor_its_code():
    tight = state(60, 45, window=Window.HOUR, length=3600)
    async with serving(admitted(state(100, 1), tight, state(5, 5, unit=Unit.TOKENS))) as service:
        answer = await service.ask(request(descriptor(CALLER), descriptor(CALLER)))
    assert answer.overall_code == OK
    hour = pb.RateLimitResponse.RateLimit.HOUR
    assert [told(status) for status in answer.statuses] == [(OK, 60, hour, 15, 3585), (OK, 0, 0, 0, 0)]
    assert answer.statuses[0].current_limit.name == "client_ip"
    assert headers(answer) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "15",
        "x-ratelimit-reset-requests": "59m45s",
    }
    assert answer.raw_body == b""
    assert service.rejections("over_limit:client_ip") == 0


@pytest.mark.parametrize("states", [(), (state(5, 5, unit=Unit.TOKENS),)])
async def test_where_no_limit_counts_requests_there_is_nothing_to_tell(states):
    async with serving(admitted(*states)) as service:
        answer = await service.ask(request())
    assert answer.overall_code == OK
    assert [told(status) for status in answer.statuses] == [(OK, 0, 0, 0, 0)]
    assert not answer.statuses[0].HasField("current_limit")
    assert headers(answer) == {}


async def test_a_denied_request_gets_the_answer_that_the_processor_would_give():
    async with serving(Denied(state(60, 60), 1)) as service:
        answer = await service.ask(request(descriptor(CALLER), descriptor(CALLER)))
    assert answer.overall_code == OVER_LIMIT
    minute = pb.RateLimitResponse.RateLimit.MINUTE
    assert [told(status) for status in answer.statuses] == [
        (OVER_LIMIT, 60, minute, 0, 45),
        (OVER_LIMIT, 0, 0, 0, 0),
    ]
    assert headers(answer) == {
        "content-type": "application/json",
        "retry-after": "45",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "45s",
    }
    error = json.loads(answer.raw_body)["error"]
    assert error["message"].startswith("Usage over limit -- IP. Limit 60 requests per minute: 60 used.")
    assert error["code"] == "rate_limit_exceeded"
    assert service.rejections("over_limit:client_ip") == 1


async def test_the_talks_answer_is_given_to_the_letter():
    async with serving(
        Denied(state(60, 60, scope=Scope.SERVICE_ACCOUNT_IP), 1), style=DeniedStyle.TALK
    ) as service:
        answer = await service.ask(request())
    assert answer.raw_body == b"Usage over limit -- serviceAccount + IP."
    assert headers(answer) == {"content-type": "text/plain"}


async def test_a_suspended_caller_is_told_why_and_not_to_come_back():
    async with serving(Suspended("the contract has ended")) as service:
        answer = await service.ask(request())
    assert answer.overall_code == OVER_LIMIT
    assert [told(status) for status in answer.statuses] == [(OVER_LIMIT, 0, 0, 0, 0)]
    assert "the contract has ended" in json.loads(answer.raw_body)["error"]["message"]
    assert headers(answer) == {"content-type": "application/json", "x-should-retry": "false"}
    assert service.rejections("suspended") == 1


async def test_who_can_not_be_named_is_refused_whatever_the_filter_does_on_errors():
    async with serving() as service:
        answer = await service.ask(request(descriptor(CALLER | {"service_account": "a\nb"})))
    assert answer.overall_code == OVER_LIMIT
    assert len(answer.statuses) == 1
    assert json.loads(answer.raw_body)["error"]["param"] == "service_account"
    assert headers(answer) == {"content-type": "application/json", "x-should-retry": "false"}
    assert service.hits == []
    assert service.rejections("identity") == 1


@pytest.mark.parametrize(
    ("window", "unit"), [(each, pb.RateLimitResponse.RateLimit.Unit.Value(each.name)) for each in Window]
)
async def test_every_window_has_its_unit(window, unit):
    async with serving(admitted(state(window=window))) as service:
        answer = await service.ask(request())
    assert answer.statuses[0].current_limit.unit == unit


async def test_numbers_that_envoy_has_no_room_for_are_told_as_the_largest():
    async with serving(admitted(state(10**12, 1))) as service:
        answer = await service.ask(request())
    assert told(answer.statuses[0])[1] == told(answer.statuses[0])[3] == 2**32 - 1
    assert headers(answer)["x-ratelimit-limit-requests"] == "1000000000000"


async def test_a_window_that_has_just_ended_resets_now():
    async with serving(admitted(state(length=1))) as service:
        answer = await service.ask(request())
    assert answer.statuses[0].duration_until_reset.seconds == 0


# ---------------------------------------------------------------- no answer


async def test_without_a_decision_the_filters_failure_mode_decides():
    async with serving(Unavailable()) as service:
        error = await failure(service, request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert service.faults("unexpected") == service.faults("protocol") == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (request(descriptor([*CALLER.items(), ("limit", "client_ip:60/second")])), "client_ip:60/second"),
        (request(descriptor(CALLER, is_negative_hits=True)), "Negative hits"),
        (request(descriptor(CALLER, limit=pb.RateLimitDescriptor.RateLimitOverride())), "Envoy's own 'limit'"),
        (request(domain=""), "domain"),
        (pb.RateLimitRequest(domain="tokenweir"), "descriptor"),
    ],
)
async def test_a_mistake_of_the_operators_is_an_error_that_says_which(message, words, caplog):
    async with serving() as service:
        error = await failure(service, message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.details()
    assert service.faults("protocol") == 1
    assert service.hits == []
    (record,) = (record for record in caplog.records if record.name == "extproc.envoy.rate_limit")
    assert words in record.error


async def test_a_mistake_is_logged_once_and_counted_always(caplog):
    async with serving() as service:
        for _ in range(3):
            await failure(service, request(domain=""))
        for number in range(150):
            await failure(service, request(descriptor({"limit": f"x{number}"})))
    assert service.faults("protocol") == 153
    logged = [record for record in caplog.records if record.name == "extproc.envoy.rate_limit"]
    assert len(logged) == 100
    assert sum("domain" in record.error for record in logged) == 1


async def test_a_fault_that_nobody_foresaw_ends_its_call_only_and_is_counted(caplog):
    broken = True

    async def decide():
        if broken:
            raise RuntimeError("a bug")
        return admitted(state())

    async with serving(decide) as service:
        assert (await failure(service, request())).code() is grpc.StatusCode.UNKNOWN
        assert service.faults("unexpected") == 1
        assert "rate limit call failed" in caplog.text
        broken = False
        assert (await service.ask(request())).overall_code == OK


async def test_a_call_that_envoy_gives_up_is_cancelled_where_it_waits(caplog):
    waiting, left = asyncio.Event(), asyncio.Event()

    async def decide():
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serving(decide) as service:
        call = service.ask(request())
        async with asyncio.timeout(5):
            await waiting.wait()
            call.cancel()
            await left.wait()
        assert service.faults("unexpected") == 0
        assert not [record for record in caplog.records if record.name.startswith("extproc")]


async def test_calls_do_not_wait_for_each_other():
    gate = asyncio.Event()
    first = True

    async def decide():
        nonlocal first
        waits, first = first, False
        if waits:
            await gate.wait()
        return admitted(state())

    async with serving(decide) as service:
        slow = asyncio.ensure_future(service.ask(request()))
        async with asyncio.timeout(5):
            while not service.hits:  # noqa: ASYNC110  the first call has no event of its own
                await asyncio.sleep(0.002)
            await asyncio.gather(*(service.ask(request()) for _ in range(20)))
            assert not slow.done()
            gate.set()
            assert (await slow).overall_code == OK


async def test_it_is_served_under_envoys_own_name_and_nothing_else_is():
    async with serving() as service:
        assert SERVICE == "envoy.service.ratelimit.v3.RateLimitService"
        assert (await service.ask(request())).overall_code == OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.channel.unary_unary(f"/{SERVICE}/Other")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
