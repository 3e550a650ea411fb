"""The gRPC adapter over a real socket: whole exchanges, clients that leave, health, and the drain."""

import asyncio
import logging
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.core.phase import ExchangeRules
from extproc.core.quota.routes import NO_ROUTE, read_route
from extproc.core.request.identity import IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.servicer import Servicer
from extproc.envoy.serving import SERVICE, BindError, ServerOptions
from extproc.envoy.streams import PeerGoneError, Streams
from extproc.envoy.transports import Transport, build_server
from extproc.observe.metrics import Metrics

from .channels import EachWaits
from .messages import (
    EXCHANGE,
    NOW,
    REPLIES,
    Books,
    kinds,
    request_body,
    request_head,
    response_body,
    response_head,
)

MAX_BODY_BYTES = 4 << 20
RULES = ExchangeRules(IdentityRules(), max_body_bytes=MAX_BODY_BYTES)


@pytest.fixture(autouse=True, params=list(Transport))
def transport(request):
    """Run each test on every transport."""
    Service.transport = request.param
    return request.param


class Service:
    transport = Transport.GRPC

    def __init__(self, books=None, **options):
        self.books, self.metrics = books or Books(), Metrics()
        servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), self.books, self.metrics, lambda: NOW)
        options = {"address": "127.0.0.1:0", "max_body_bytes": MAX_BODY_BYTES, "max_streams": 100} | options
        rate_limits = RateLimitServicer(self.books.hit, self.metrics, lambda: NOW)
        streams = Streams(servicer, self.metrics)
        self.server = build_server(self.transport, streams, rate_limits, ServerOptions(**options), self.metrics)
        self.address = self.server.bind()

    def faults(self, kind):
        return self.metrics.registry.get_sample_value("tokenweir_stream_faults_total", {"kind": kind}) or 0

    @property
    def streams(self):
        return self.metrics.registry.get_sample_value("tokenweir_streams")

    async def idle(self):
        async with asyncio.timeout(5):
            while self.streams:  # noqa: ASYNC110  a gauge has no event
                await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(books=None, **options):
    service = Service(books, **options)
    await service.server.start()
    large = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(service.address, options=large) as channel:
            service.channel = channel
            service.process = channel.stream_stream(
                f"/{SERVICE}/Process",
                request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
                response_deserializer=pb.ProcessingResponse.FromString,
            )
            yield service
    finally:
        await service.server.stop(0.0)


async def said(call, *messages):
    """The replies to messages that are answered one by one."""
    replies = []
    for message in messages:
        await call.write(message)
        replies.append(await call.read())
    return replies


async def admitted(service, *metadata):
    """A stream that has just been admitted."""
    call = service.process(metadata=metadata)
    await call.write(request_head())
    await call.write(request_body())
    assert kinds([await call.read(), await call.read()]) == REPLIES[:2]
    return call


async def test_a_whole_exchange_is_answered_and_ends_the_stream():
    async with serving() as service:
        call = await admitted(service)
        assert kinds(await said(call, *EXCHANGE[2:])) == REPLIES[2:]
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert service.books.ends == [("settled", "usage")]
        await service.idle()
        assert service.faults("unexpected") == service.faults("protocol") == 0


async def test_many_streams_at_once_are_kept_apart():
    async with serving() as service:
        calls = await asyncio.gather(*(admitted(service) for _ in range(20)))
        assert service.streams == 20
        await asyncio.gather(*(said(call, *EXCHANGE[2:]) for call in calls))
        await service.idle()
        assert len({reservation.id for reservation, _ in service.books.closed}) == 20


async def test_a_body_of_the_largest_size_fits_into_a_message():
    async with serving() as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body(b" " * MAX_BODY_BYTES))
        reply = await call.read()
        assert reply.immediate_response.status.code == 400  # read, and found to be empty
        await service.idle()


async def test_a_message_over_the_size_limit_ends_the_stream_and_what_it_held_is_closed():
    async with serving() as service:
        call = await admitted(service)
        await said(call, response_head())
        await call.write(response_body(b"x" * (MAX_BODY_BYTES + (2 << 20))))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await service.idle()
        assert service.books.ends == [("estimated", "cut_off")]


@pytest.mark.parametrize("message", [b"", b"\x5a\x00"])
async def test_a_message_of_an_unknown_kind_ends_the_stream_with_an_explanation(message):
    async with serving() as service:
        call = await admitted(service)
        await call.write(message)
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "no known kind" in await call.details()
        await service.idle()
        assert service.faults("protocol") == 1
        assert service.books.ends == [("estimated", "left_before_answer")]


async def test_a_message_that_is_no_protobuf_ends_the_stream_and_what_it_held_is_closed():
    async with serving() as service:
        call = await admitted(service)
        await call.write(b"\xff\xff\xff")
        assert await call.code() is not grpc.StatusCode.OK
        await service.idle()
        assert len(service.books.closed) == 1


async def test_an_unknown_method_is_refused():
    async with serving() as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.channel.unary_unary(f"/{SERVICE}/Other")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("upto", range(2, 4))
async def test_a_client_that_leaves_is_no_fault_and_is_closed_once(upto, caplog):
    async with serving() as service:
        call = await admitted(service)
        await said(call, *EXCHANGE[2:upto])
        call.cancel()
        await service.idle()
        assert len(service.books.closed) == 1
        assert service.books.ends[0][0] == "estimated"
        assert service.faults("unexpected") == 0
        assert not [record for record in caplog.records if record.name.startswith("extproc")]


async def test_a_client_that_leaves_before_the_decision_is_no_fault(caplog):
    asked, decided, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def gate():
        asked.set()
        try:
            await decided.wait()
        finally:
            left.set()

    async with serving(Books(gate=gate)) as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body())
        await asked.wait()
        call.cancel()
        await left.wait()
        decided.set()
        await service.idle()
        assert len(service.books.closed) == len(service.books.admitted)
        assert service.faults("unexpected") == 0
        assert not [record for record in caplog.records if record.name.startswith("extproc")]


async def test_a_client_that_leaves_while_it_is_answered_is_no_fault(caplog):
    async with serving() as service:
        for _ in range(10):
            call = await admitted(service)
            await said(call, response_head(content_type="text/event-stream"))
            for _ in range(30):
                await call.write(response_body(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', end=False))
            call.cancel()
        await service.idle()
        assert len(service.books.closed) == 10
        assert service.faults("unexpected") == 0
        assert not [record for record in caplog.records if record.name.startswith("extproc")]


async def test_a_reset_between_our_answer_and_its_write_is_no_fault():
    class Channel(EachWaits):
        """A stream that the peer resets as soon as the request is read."""

        def __init__(self):
            self.messages = list(EXCHANGE)

        async def read(self):
            return self.messages.pop(0).SerializeToString()

        async def write(self, _message):
            raise PeerGoneError

    books, metrics = Books(), Metrics()
    servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), books, metrics, lambda: NOW)
    await Streams(servicer, metrics).serve(Channel(), ())
    assert len(books.closed) == 1
    assert metrics.registry.get_sample_value("tokenweir_stream_faults_total", {"kind": "unexpected"}) == 0


@pytest.mark.parametrize(("error", "logged"), [(grpc.aio.InternalError(), False), (ValueError("x"), True)])
def test_grpcs_own_log_has_no_error_for_a_reset_before_the_status(caplog, error, logged):
    try:
        raise error
    except (grpc.aio.InternalError, ValueError):
        logging.getLogger("grpc._cython.cygrpc").exception("raised in core by servicer method")
    assert bool(caplog.records) is logged


async def test_a_client_that_ends_its_side_early_is_closed_once():
    async with serving() as service:
        call = await admitted(service)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert service.books.ends == [("estimated", "left_before_answer")]


class Broken(Books):
    async def reserve(self, ask):
        raise RuntimeError("a bug")


async def test_a_fault_that_nobody_foresaw_ends_its_stream_only_and_is_counted(caplog):
    async with serving(Broken()) as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body())
        assert await call.code() is grpc.StatusCode.UNKNOWN
        await service.idle()
        assert service.faults("unexpected") == 1
        assert "stream failed" in caplog.text
        other = service.process()
        assert kinds(await said(other, request_head(path="/tokenize"))) == REPLIES[:1]


# ---------------------------------------------------------------- health and drain


async def healthy(service, name=""):
    stub = health_pb2_grpc.HealthStub(service.channel)
    status = (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
    return status == health_pb2.HealthCheckResponse.SERVING


async def test_it_is_healthy_while_it_serves():
    async with serving() as service:
        assert await healthy(service)
        assert await healthy(service, SERVICE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await healthy(service, "other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_its_health_is_told_of_the_drain_and_streams_in_flight_finish():
    async with serving() as service:
        call = await admitted(service)
        watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(service.server.stop(10.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await said(service.process(), request_head())
        assert kinds(await said(call, *EXCHANGE[2:])) == REPLIES[2:]
        async with asyncio.timeout(5):
            await stopping
        assert service.books.ends == [("settled", "usage")]


async def test_what_is_left_after_the_grace_period_is_cut_off_and_closed_before_stop_returns():
    async with serving() as service:
        calls = [await admitted(service) for _ in range(5)]
        await said(calls[0], response_head())
        await service.server.stop(0.05)
        assert len(service.books.closed) == 5


# ---------------------------------------------------------------- addresses


async def test_an_address_in_use_is_a_fault_that_names_it():
    async with serving() as service:
        with pytest.raises(BindError, match=service.address):
            Service(address=service.address)


async def test_a_unix_socket_is_an_address(tmp_path):
    async with serving(address=f"unix:{tmp_path}/s") as service:
        assert service.address == f"unix:{tmp_path}/s"
        assert await healthy(service)


# ---------------------------------------------------------------- the route's metadata


async def test_a_streams_metadata_names_its_route_and_its_limits():
    async with serving() as service:
        await admitted(service, ("tokenweir-route", "models/qwen"), ("tokenweir-limits", "client_ip:10/minute"))
        await admitted(service)
        first, second = service.books.asked
        assert first.route == read_route("models/qwen", "client_ip:10/minute")
        assert second.route == NO_ROUTE


async def test_limits_that_come_in_several_entries_all_count():
    async with serving() as service:
        limits = (("tokenweir-limits", "client_ip:10/minute"), ("tokenweir-limits", "tenant:5/day:tokens"))
        await admitted(service, ("tokenweir-route", "a"), *limits)
        assert len(service.books.asked[0].route.limits) == 2


async def test_metadata_that_can_not_be_read_ends_the_stream_before_anything_is_asked():
    async with serving() as service:
        call = service.process(metadata=(("tokenweir-limits", "client_ip:10/minute"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "needs tokenweir-route" in caught.value.details()
        assert service.books.asked == []
        assert service.faults("protocol") == 1
