"""What one process keeps is bounded, whoever is at the other end: stalled bodies, endless streams, streams of nothing."""

import asyncio
import contextlib
import json
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from extproc.core.answer.sse import MAX_EVENT_BYTES
from extproc.core.phase import ExchangeRules
from extproc.core.request.buffers import Buffers
from extproc.core.request.identity import IdentityRules
from extproc.core.request.in_flight import InFlight
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.patience import Waits
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.servicer import Servicer
from extproc.envoy.serving import SERVICE, ServerOptions
from extproc.envoy.streams import Streams
from extproc.envoy.transports import Transport, build_server
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Command, start
from extproc.observe.metrics import Metrics
from tests.envoy.messages import (
    CHAT,
    EXCHANGE,
    NOW,
    Books,
    request_body,
    request_head,
    response_body,
    response_head,
)
from tests.plaintext import plaintext_client
from tests.system.marks import SYSTEM
from tests.system.waiting import NEVER_S, until

MIB = 1 << 20
STREAMS = 1000
HALF = 4  # MiB of a body of 8
GONE = (grpc.aio.AioRpcError, asyncio.InvalidStateError)  # the other side has ended the stream
LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def process_of(channel):
    return channel.stream_stream(
        f"/{SERVICE}/Process",
        request_serializer=pb.ProcessingRequest.SerializeToString,
        response_deserializer=pb.ProcessingResponse.FromString,
    )


@pytest.fixture(autouse=True, params=list(Transport))
def transport(request):
    """Run each test on every transport."""
    Service.transport = request.param
    return request.param


class Service:
    """A server in this process, with the bounds that a test wants."""

    transport = Transport.GRPC

    def __init__(
        self, *, request_s=30.0, idle_s=3600.0, buffered=1 << 30, max_streams=100, max_body=1 * MIB, cap=100
    ):
        self.books, self.metrics, self.buffers = Books(), Metrics(), Buffers(buffered)
        in_flight = InFlight(cap)
        self.rules = ExchangeRules(
            IdentityRules(), max_body_bytes=max_body, buffers=self.buffers, in_flight=in_flight
        )
        waits = Waits(request_s, idle_s)
        codec = Codec(self.rules.identity, MetadataKeys())
        servicer = Servicer(self.rules, codec, self.books, self.metrics, lambda: NOW, waits=waits)
        rate_limits = RateLimitServicer(self.books.hit, self.metrics, lambda: NOW)
        options = ServerOptions(f"{HOST}:0", max_body, 1000, None)
        streams = Streams(servicer, self.metrics, max_streams)
        self.server = build_server(self.transport, streams, rate_limits, options, self.metrics)

    @asynccontextmanager
    async def serving(self):
        address = self.server.bind()
        await self.server.start()
        try:
            async with grpc.aio.insecure_channel(address, options=LARGE) as channel:
                self.process = process_of(channel)
                yield self
        finally:
            await self.server.stop(0.0)

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0

    async def idle(self):
        await until(lambda: not self.value("tokenweir_streams"), "no stream is open")
        assert self.buffers.kept_bytes == 0
        assert self.rules.in_flight.tenants == 0


async def refusal(call, status):
    """The body of the only answer, which is of this status."""
    async with asyncio.timeout(NEVER_S):
        reply = await call.read()
        assert reply.immediate_response.status.code == status
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    return json.loads(reply.immediate_response.body)["error"]


# ---------------------------------------------------------------- time


async def test_a_body_that_does_not_come_to_its_end_is_answered_with_408_and_forgotten():
    async with Service(request_s=0.2).serving() as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body(b'{"model":', end=False))
        assert (await refusal(call, 408))["code"] == "request_timeout"
        await service.idle()
        assert service.value("tokenweir_rejections_total", reason="too_slow") == 1
        assert service.books.asked == []


async def test_a_body_that_trickles_does_not_win_time():
    async with Service(request_s=0.3).serving() as service:
        call = service.process()
        await call.write(request_head())

        async def trickle():
            # Not beyond the refusal: to gRPC, a message after the end of a stream is an error of its own.
            while not service.value("tokenweir_rejections_total", reason="too_slow"):
                await call.write(request_body(b" ", end=False))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert (await refusal(call, 408))["code"] == "request_timeout"
        await trickling
        await service.idle()


async def test_a_stream_that_says_nothing_at_all_is_ended_too():
    async with Service(request_s=0.2).serving() as service:
        call = service.process()
        await refusal(call, 408)
        await service.idle()


async def test_a_stream_that_falls_silent_after_its_request_is_ended_and_what_it_held_is_charged():
    async with Service(request_s=3.0, idle_s=0.3).serving() as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body())
        await call.read()
        await call.read()
        async with asyncio.timeout(NEVER_S):
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.idle()
        assert service.books.ends == [("estimated", "left_before_answer")]
        assert service.value("tokenweir_stream_faults_total", kind="idle") == 1


@pytest.mark.parametrize("request_s", [0.2])
async def test_an_upstream_may_think_for_longer_than_a_request_may_take(request_s):
    async with Service(request_s=request_s, idle_s=30).serving() as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body())
        reply = await call.read()
        if reply.WhichOneof("response") == "immediate_response":
            # The machine was too busy for a request in this time.
            await test_an_upstream_may_think_for_longer_than_a_request_may_take(4 * request_s)
            return
        await call.read()
        await asyncio.sleep(1.5 * request_s)
        await call.write(response_head())
        await call.write(response_body())
        assert (await call.read()).WhichOneof("response") == "response_headers"
        assert (await call.read()).WhichOneof("response") == "response_body"
        await service.idle()
        assert service.books.ends == [("settled", "usage")]


# ---------------------------------------------------------------- room


async def test_what_all_bodies_together_may_take_is_bounded_and_the_rest_is_told_to_come_back():
    async with Service(buffered=2_300_000, max_body=2 * MIB).serving() as service:
        stalled = [service.process() for _ in range(2)]
        for call in stalled:
            await call.write(request_head())
            await call.write(request_body(b" " * 900_000, end=False))
        await until(lambda: service.buffers.kept_bytes >= 1_800_000, "both are kept")
        late = service.process()
        await late.write(request_head())
        await late.write(request_body(b" " * 900_000, end=False))
        assert (await refusal(late, 503))["code"] == "overloaded"
        assert service.value("tokenweir_rejections_total", reason="overloaded") == 1
        small = service.process()
        await small.write(request_head())
        await small.write(request_body())
        assert (await small.read()).WhichOneof("response") == "request_headers"
        for call in (*stalled, small):
            call.cancel()
        await service.idle()


async def test_pieces_of_nothing_take_room_too():
    async with Service(buffered=64_000).serving() as service:
        call = service.process()
        await call.write(request_head())
        with contextlib.suppress(*GONE):
            for _ in range(5000):
                await call.write(request_body(b"", end=False))
        await service.idle()
        assert service.value("tokenweir_rejections_total", reason="overloaded") == 1


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_answers_that_stall_take_no_more_room_than_there_is_and_pass_all_the_same(kind):
    async with Service(buffered=3 * MIB, max_body=2 * MIB).serving() as service:
        calls = [service.process() for _ in range(8)]
        start_of_one = b'{"choices": [{"message": {"content": "' if "json" in kind else b"data: {"
        pieces = [start_of_one + b"x" * MIB, b"y" * MIB]
        for call in calls:
            await call.write(request_head())
            await call.write(request_body(CHAT | {"stream": "event" in kind}))
            await call.read()
            await call.read()
            await call.write(response_head(content_type=kind))
            await call.read()
            got = b""
            for piece in pieces:
                await call.write(response_body(piece, end=False))
                reply = (await call.read()).response_body.response
                got += reply.body_mutation.body if reply.HasField("body_mutation") else piece
                assert service.buffers.kept_bytes <= 3 * MIB
            # Of a stream that hides the usage, the end of an event is kept, which no client can read yet.
            assert len(got) >= 2 * MIB - MAX_EVENT_BYTES
        for call in calls:
            call.cancel()
        await service.idle()
        assert {outcome for outcome, _ in service.books.ends} == {"estimated"}


async def test_a_large_answer_without_room_is_settled_on_the_usage_at_its_end():
    async with Service(buffered=MIB // 2, max_body=2 * MIB).serving() as service:
        call = service.process()
        await call.write(request_head())
        await call.write(request_body())
        await call.read()
        await call.read()
        await call.write(response_head())
        await call.write(response_body(b'{"data": "' + b"x" * MIB, end=False))
        await call.write(response_body(b'", "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'))
        for _ in range(3):
            await call.read()
        await service.idle()
        assert service.books.ends == [("settled", "usage")]


async def test_streams_beyond_the_most_are_sent_away_and_there_is_room_again_when_one_ends():
    async with Service(max_streams=3).serving() as service:
        calls = [service.process() for _ in range(3)]
        for call in calls:
            await call.write(request_head())
        await until(lambda: service.value("tokenweir_streams") == 3, "three are open")
        beyond = service.process()
        assert await beyond.code() is grpc.StatusCode.UNAVAILABLE
        assert service.value("tokenweir_stream_faults_total", kind="too_many") == 1
        calls[0].cancel()
        await until(lambda: service.value("tokenweir_streams") == 2, "one has ended")
        again = service.process()
        await again.write(request_head(path="/tokenize"))
        assert (await again.read()).WhichOneof("response") == "request_headers"
        for call in calls:
            call.cancel()
        await service.idle()


async def test_a_tenant_at_its_cap_has_room_again_however_its_streams_end():
    async with Service(cap=4, request_s=0.3).serving() as service:

        async def opened(count):
            calls = [service.process() for _ in range(count)]
            for call in calls:
                await call.write(request_head())
            await until(lambda: service.rules.in_flight.most() == 4, "the tenant is at its cap")
            return calls

        left, denied, answered, late = await opened(4)
        beyond = service.process()
        await beyond.write(request_head())
        error = await refusal(beyond, 429)
        assert (error["code"], "at most 4 at once" in error["message"]) == ("too_many_in_flight", True)
        assert service.books.asked == []
        left.cancel()  # its client is gone: Envoy resets the stream
        await denied.write(request_body(b"{"))
        await refusal(denied, 400)
        for message in EXCHANGE[1:]:
            await answered.write(message)
        assert [await answered.read() is not grpc.aio.EOF for _ in EXCHANGE] == [True] * 4
        assert (await refusal(late, 408))["code"] == "request_timeout"
        await service.idle()
        for call in await opened(4):
            call.cancel()
        await service.idle()


async def test_a_drain_that_cuts_streams_off_takes_them_out_of_the_count():
    service = Service(cap=2)
    async with service.serving():
        calls = [service.process() for _ in range(2)]
        for call in calls:
            await call.write(request_head())
        await until(lambda: service.rules.in_flight.most() == 2, "two are open")
    await service.idle()


OUT_OF_ORDER = {
    "a body first": [request_body()],
    "two heads": [request_head(), request_head()],
    "an answer's body before its head": [request_head(), request_body(), response_body()],
    "a head within a body": [request_head(), request_body(b"{", end=False), request_head()],
    "two answers": [request_head(), request_body(), response_head(), response_head()],
    "a body after the request": [request_head(), request_body(), request_body(b"more")],
    "an endless head": [request_head(), request_body(), *[request_head()] * 3],
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
async def test_messages_out_of_order_end_the_stream_and_nothing_is_left_held(name):
    async with Service().serving() as service:
        call = service.process()
        with contextlib.suppress(*GONE):
            for message in OUT_OF_ORDER[name]:
                await call.write(message)
            while await call.read() is not grpc.aio.EOF:
                pass
        async with asyncio.timeout(NEVER_S):
            assert await call.code() is not grpc.StatusCode.OK
        await service.idle()
        assert service.value("tokenweir_stream_faults_total", kind="protocol") == 1
        assert len(service.books.closed) == len(service.books.admitted)


# ---------------------------------------------------------------- a real process


def memory_of(pid):
    """Resident now, and at the most, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return tuple(
        int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024 for name in ("VmRSS", "VmHWM")
    )


@asynccontextmanager
async def processor(run_dir, **settings):
    port, metrics = free_ports(2)
    names = {"SERVER__ADDRESS": f"{HOST}:{port}", "METRICS__ADDRESS": f"{HOST}:{metrics}"}
    names |= {"REDIS__URL": "memory://", "MONGO__URL": "memory://"} | settings

    async def page():
        async with plaintext_client() as client:
            try:
                return (await client.get(f"http://{HOST}:{metrics}/metrics")).text
            except httpx.TransportError:
                return ""

    async def ready():
        return "\ntokenweir_ready 1.0" in await page()

    environment = {f"TOKENWEIR_{name}": value for name, value in names.items()}
    command = Command(
        "tokenweir", (sys.executable, "-m", "extproc", "serve"), run_dir, env=environment, stop_grace_s=1
    )
    child = await start(command, ready)
    try:
        yield child, f"{HOST}:{port}", page
    finally:
        await child.stop()


class TestRealProcess:
    pytestmark = SYSTEM

    async def test_a_thousand_streams_stalled_in_mid_body_take_a_bounded_amount_of_memory(self, tmp_path, capsys):
        """Bound: what it takes idle, 3 x a tenant's half of server.max_large_buffered_bytes, 100 kB a stream."""
        settings = {"SERVER__MAX_BODY_BYTES": str(8 * MIB), "SERVER__REQUEST_TIMEOUT_S": "120"}
        async with processor(tmp_path, **settings) as (child, address, page):
            idle, _ = memory_of(child.pid)
            async with grpc.aio.insecure_channel(address, options=LARGE) as channel:
                process = process_of(channel)
                gate = asyncio.Semaphore(20)

                async def stall():
                    call = process()
                    async with gate:
                        try:
                            await call.write(request_head([("content-length", str(8 * MIB))]))
                            for _ in range(HALF):
                                await call.write(request_body(b" " * MIB, end=False))
                        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                            pass  # refused
                    return call

                calls = await asyncio.gather(*(stall() for _ in range(STREAMS)))
                text = await page()
                kept = float(re.search(r"^tokenweir_buffered_bytes (\S+)", text, re.MULTILINE)[1])
                refused = float(
                    re.search(r'^tokenweir_rejections_total\{reason="overloaded"\} (\S+)', text, re.MULTILINE)[1]
                )
                now, most = memory_of(child.pid)
                for call in calls:
                    call.cancel()
            with capsys.disabled():
                print(  # noqa: T201 - the figure
                    f"\n{STREAMS} streams stalled at {HALF} of 8 MiB: {refused:.0f} refused, {kept / MIB:.0f} MiB kept; "
                    f"RSS {idle:.0f} MiB idle, {now:.0f} MiB then, {most:.0f} MiB at the most"
                )
            assert refused >= STREAMS - 64
            assert kept <= 80 * MIB
            assert most <= idle + 3 * 80 + STREAMS * 0.1
