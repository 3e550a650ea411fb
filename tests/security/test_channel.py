"""Who may talk to the processor: whoever reaches it can claim any identity, so nobody but the Envoys."""

import asyncio
import json
import os
import socket
import stat
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.cli import app
from extproc.core.phase import ExchangeRules
from extproc.core.request.identity import IdentityRules
from extproc.envoy.codec import Codec, MetadataKeys
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.envoy.pb import tokenweir_rate_limit_pb2 as rls
from extproc.envoy.rate_limit import SERVICE as RATE_LIMITS
from extproc.envoy.rate_limit import RateLimitServicer
from extproc.envoy.servicer import Servicer
from extproc.envoy.serving import SERVICE, BindError, ServerOptions
from extproc.envoy.streams import Streams
from extproc.envoy.tls import Certificates, TLSOptions
from extproc.envoy.transports import Transport, build_server
from extproc.local.envoy_config import ProcessorTLS
from extproc.observe.metrics import Metrics
from extproc.settings.load import load
from extproc.settings.server import ServerSettings
from tests.envoy.messages import NOW, Books, request_body, request_head
from tests.system.callers import Caller
from tests.system.marks import SYSTEM

from .certificates import Authority, dns, uri

GATEWAY = "spiffe://cluster.local/ns/istio-system/sa/gateway"
STRANGER = "spiffe://cluster.local/ns/models/sa/stranger"
RULES = ExchangeRules(IdentityRules())
ENTRY = rls.RateLimitDescriptor.Entry(key="service_account", value="sa")
DESCRIPTOR = rls.RateLimitDescriptor(entries=[ENTRY])


@pytest.fixture(autouse=True, params=list(Transport))
def transport(request):
    """Run each test on every transport."""
    Channel.transport = request.param
    return request.param


class Channel:
    """A server with mTLS, and clients of it."""

    transport = Transport.GRPC

    def __init__(self, folder, *allowed):
        self.folder, self.ca, self.metrics, self.books = folder, Authority(), Metrics(), Books()
        self.own = self.ca.sign(dns("processor"))
        self.own.written(folder, "server")
        (folder / "ca.crt").write_bytes(self.ca.pem)
        files = (folder / name for name in ("server.crt", "server.key", "ca.crt"))
        self.tls = TLSOptions(*files, frozenset(allowed or [GATEWAY]))
        servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), self.books, self.metrics, lambda: NOW)
        self.server = build_server(
            self.transport,
            Streams(servicer, self.metrics),
            RateLimitServicer(self.books.hit, self.metrics, lambda: NOW),
            ServerOptions("127.0.0.1:0", 1 << 20, 100, self.tls),
            self.metrics,
        )

    @asynccontextmanager
    async def serving(self):
        self.address = self.server.bind()
        await self.server.start()
        try:
            yield self
        finally:
            await self.server.stop(0.0)

    def client(self, signed=None, *, roots=None):
        """A channel that shows `signed`, if anything."""
        pair = (signed.key, signed.certificate) if signed is not None else (None, None)
        credentials = grpc.ssl_channel_credentials(roots or self.ca.pem, *pair)
        options = [("grpc.ssl_target_name_override", "processor"), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    @property
    def refused(self):
        return self.metrics.registry.get_sample_value("tokenweir_stream_faults_total", {"kind": "caller"})


async def streamed(channel):
    """The code of a stream that asks for a decision."""
    call = channel.stream_stream(
        f"/{SERVICE}/Process",
        request_serializer=pb.ProcessingRequest.SerializeToString,
        response_deserializer=pb.ProcessingResponse.FromString,
    )()
    try:
        await call.write(request_head())
        await call.write(request_body())
        if await call.read() is not grpc.aio.EOF:
            return grpc.StatusCode.OK
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    return await call.code()


async def asked(channel):
    """The code of a call of the rate limit filter."""
    try:
        await channel.unary_unary(
            f"/{RATE_LIMITS}/ShouldRateLimit", request_serializer=rls.RateLimitRequest.SerializeToString
        )(rls.RateLimitRequest(domain="d", descriptors=[DESCRIPTOR]))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def healthy(channel):
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


OK, REFUSED, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([uri(GATEWAY)], OK),
        ([dns("envoy.example")], OK),
        ([dns("other.example"), uri(GATEWAY)], OK),
        ([uri(GATEWAY + "2")], REFUSED),
        ([uri(GATEWAY[:-1])], REFUSED),
        ([uri(GATEWAY.upper())], REFUSED),
        ([uri(STRANGER)], REFUSED),
        ([dns(GATEWAY)], REFUSED),  # a DNS name that looks like a URI
        ([uri("https://envoy.example")], REFUSED),
        ([dns("x.envoy.example")], REFUSED),
        ([], REFUSED),
    ],
)
async def test_only_a_name_that_is_listed_may_call_and_both_services_ask_for_it(tmp_path, names, code):
    async with Channel(tmp_path, GATEWAY, "envoy.example").serving() as served:
        async with served.client(served.ca.sign(*names)) as channel:
            # Who writes while he is refused may see the end of the stream before the reason.
            assert (await streamed(channel) is OK) == (code is OK)
            assert (await asked(channel) is REFUSED) == (code is REFUSED)
            assert await healthy(channel) is OK  # any certificate of the CA will do
        assert served.refused == (0 if code is OK else 2)
        assert len(served.books.asked) == (2 if code is OK else 0)


async def test_without_a_certificate_or_with_a_strangers_there_is_no_handshake(tmp_path):
    other = Authority("another")
    async with Channel(tmp_path).serving() as served:
        for signed in (None, other.sign(uri(GATEWAY))):
            async with served.client(signed) as channel:
                for call in (streamed, asked, healthy):
                    assert await call(channel) is UNAVAILABLE
        async with grpc.aio.insecure_channel(served.address) as channel:
            assert await streamed(channel) is UNAVAILABLE
        assert served.books.asked == []


async def test_certificates_that_are_replaced_count_from_the_next_connection_on(tmp_path):
    async with Channel(tmp_path).serving() as served:
        mine = served.ca.sign(uri(GATEWAY))
        async with served.client(mine) as old:
            assert await streamed(old) is OK
            new = Authority("new")
            new.sign(dns("processor")).written(tmp_path, "server")
            (tmp_path / "ca.crt").write_bytes(new.pem + served.ca.pem)
            async with served.client(mine) as channel:
                assert await streamed(channel) is UNAVAILABLE  # it does not know the new authority
            async with served.client(mine, roots=new.pem) as channel:
                assert await streamed(channel) is OK
            assert await streamed(old) is OK


async def test_a_replacement_that_is_no_certificate_leaves_the_old_one(tmp_path, caplog):
    async with Channel(tmp_path).serving() as served:
        mine = served.ca.sign(uri(GATEWAY))
        for name, data in (("server.key", served.ca.sign().key), ("server.crt", b"nonsense"), ("ca.crt", b"")):
            (tmp_path / name).write_bytes(data)
            async with served.client(mine) as channel:
                assert await streamed(channel) is OK
        (tmp_path / "server.crt").unlink()
        async with served.client(mine) as channel:
            assert await streamed(channel) is OK
        assert "the old ones stay" in caplog.text
        assert "PRIVATE" not in caplog.text
        served.own.written(tmp_path, "server")
        (tmp_path / "ca.crt").write_bytes(served.ca.pem)
        assert Certificates(served.tls)


@pytest.mark.parametrize(
    ("missing", "named"), [("server.crt", "server.crt"), ("ca.crt", "ca.crt"), ("server.key", "key")]
)
@pytest.mark.parametrize("data", [None, b"", b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"])
def test_files_that_are_no_certificates_stop_the_start_and_are_named(tmp_path, missing, named, data):
    async def start():
        served = Channel(tmp_path)
        (tmp_path / missing).unlink() if data is None else (tmp_path / missing).write_bytes(data)
        with pytest.raises(BindError, match=f"server.tls: .*{named}"):
            served.server.bind()

    asyncio.run(start())


async def test_a_flood_of_refused_names_does_not_flood_the_log(tmp_path, caplog):
    async with Channel(tmp_path).serving() as served:
        async with served.client(served.ca.sign(uri("spiffe://stranger"))) as channel:
            for _ in range(20):
                assert await asked(channel) is REFUSED
        assert served.refused == 20
    assert len([record for record in caplog.records if "refused a client" in record.message]) == 1


# ---------------------------------------------------------------- plaintext


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "processor:1", "[::ffff:10.0.0.1]:1", "*:1"]
)
def test_off_loopback_plaintext_is_refused_and_the_way_out_is_named(address):
    problem = ServerSettings(address=address).exposed()
    assert problem.startswith(f"server.address: {address} is open to others")
    assert "server.allow_plaintext" in problem
    assert "server.tls.certificate_file" in problem
    assert ServerSettings(address=address, allow_plaintext=True).exposed() is None
    tls = {"certificate_file": "a", "key_file": "b", "client_ca_file": "c", "allowed_sans": ["d"]}
    assert ServerSettings(address=address, tls=tls).exposed() is None


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/a", "[::ffff:127.0.0.1]:1"]
)
def test_loopback_and_unix_sockets_need_no_tls(address):
    assert ServerSettings(address=address).exposed() is None


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_the_processor_does_not_start_where_everybody_could_reach_it(command, monkeypatch, capsys):
    monkeypatch.setenv("TOKENWEIR_SERVER__ADDRESS", "0.0.0.0:0")
    with pytest.raises(Exception, match="is open to others, in plaintext"):
        app(command, standalone_mode=False)
    capsys.readouterr()


@pytest.mark.parametrize("name", ["certificate_file", "key_file", "client_ca_file", "allowed_sans"])
def test_tls_is_all_or_nothing(name):
    tls = {"certificate_file": "a", "key_file": "b", "client_ca_file": "c", "allowed_sans": ["d"]}
    del tls[name]
    with pytest.raises(ValueError, match=f"set {name} too"):
        ServerSettings(tls=tls)
    tls[name] = ["d"] if name == "allowed_sans" else "a"
    with pytest.raises(ValueError, match="not possible on a Unix socket"):
        ServerSettings(address="unix:/a", tls=tls)


def test_names_may_be_given_by_variable():
    given = {f"TOKENWEIR_SERVER__TLS__{name}_FILE": "/f" for name in ("CERTIFICATE", "KEY", "CLIENT_CA")}
    settings = load(None, given | {"TOKENWEIR_SERVER__TLS__ALLOWED_SANS": f"[{GATEWAY}, b]"})
    assert settings.server.tls.allowed_sans == (GATEWAY, "b")


# ---------------------------------------------------------------- Unix sockets


def server_at(path):
    metrics, books = Metrics(), Books()
    servicer = Servicer(RULES, Codec(RULES.identity, MetadataKeys()), books, metrics, lambda: NOW)
    rate_limits = RateLimitServicer(books.hit, metrics, lambda: NOW)
    options = ServerOptions(f"unix:{path}", 1 << 20, 100)
    return build_server(Channel.transport, Streams(servicer, metrics), rate_limits, options, metrics)


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


async def test_a_unix_socket_is_its_owners_alone_whatever_the_umask_is(tmp_path):
    path, before = tmp_path / "own" / "s", os.umask(0)
    try:
        server = server_at(path)
        server.bind()
        assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
        assert os.umask(0) == 0  # as it was
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert await streamed(channel) is OK
        await server.stop(0.0)
    finally:
        os.umask(before)


async def test_the_socket_of_a_processor_that_is_gone_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    live = server_at(path)
    live.bind()
    await live.start()
    with pytest.raises(BindError, match="it is in use"):
        server_at(path).bind()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert await streamed(channel) is OK
    await live.stop(0.0)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_what_is_no_socket_stays_where_it_is(tmp_path, kind):
    path = tmp_path / "s"
    (tmp_path / "precious").write_text("data")
    {"file": lambda: path.write_text("data"), "folder": path.mkdir, "link": lambda: path.symlink_to("precious")}[
        kind
    ]()
    with pytest.raises(BindError, match="that is no socket"):
        server_at(path).bind()
    assert path.exists()
    assert (tmp_path / "precious").read_text() == "data"


async def test_a_path_that_can_not_be_is_named(tmp_path):
    for path, why in (
        (tmp_path / ("x" * 120), "longer than 107 bytes"),
        (tmp_path / "a" / "b" / "s", "No such file"),
    ):
        with pytest.raises(BindError, match=why):
            server_at(path).bind()


# ---------------------------------------------------------------- the real Envoy


@pytest.fixture
def mutual(tmp_path):
    """Return the settings of a processor, and how an Envoy with the right and one with another name reach it."""
    ca = Authority()
    (tmp_path / "ca.crt").write_bytes(ca.pem)
    certificate, key = ca.sign(dns("processor")).written(tmp_path, "processor")
    names = {"CERTIFICATE_FILE": certificate, "KEY_FILE": key, "CLIENT_CA_FILE": str(tmp_path / "ca.crt")}
    settings = {f"TOKENWEIR_SERVER__TLS__{name}": value for name, value in names.items()}

    settings |= {"TOKENWEIR_SERVER__TLS__ALLOWED_SANS": f"[{GATEWAY}]"}
    files = str(tmp_path / "ca.crt"), "processor"
    shown = [ca.sign(uri(name)).written(tmp_path, f"envoy-{n}") for n, name in enumerate((GATEWAY, STRANGER))]
    return settings, *(ProcessorTLS(*pair, *files) for pair in shown)


class TestRealEnvoy:
    pytestmark = SYSTEM

    async def test_an_envoy_with_another_name_serves_nobody(self, mutual, beside, before, records):
        """One processor serves the Envoy with the right name over mTLS, and refuses the one with another."""
        settings, right, wrong = mutual

        def other_name(configuration):
            cluster = json.dumps(configuration.cluster("tokenweir"))
            for mine, others in zip(right_files, wrong_files, strict=True):
                assert mine in cluster
                cluster = cluster.replace(mine, others)
            configuration.cluster("tokenweir").update(json.loads(cluster))

        right_files, wrong_files = ((tls.certificate_file, tls.key_file) for tls in (right, wrong))
        settings = settings | {"TOKENWEIR_SERVER__TRANSPORT": Channel.transport.value}
        async with beside(settings=settings, envoy={"processor_tls": right}) as stack:
            caller = Caller(stack, records)
            assert (await caller.post()).status_code == 200
            assert (await caller.entry())["state"] == "settled"
            async with before(stack, change=other_name) as refused:
                stranger = Caller(refused, records)
                assert (await stranger.post()).status_code in {500, 503}
                assert await records.entries(stranger.account) == []
