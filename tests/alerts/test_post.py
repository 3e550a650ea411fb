"""One attempt: what goes over the wire, and what each answer means."""

import asyncio
import base64
import datetime as dt
import gc
import hashlib
import hmac
import logging
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from extproc.alerts.document import document_of, id_of, payload_of
from extproc.alerts.post import Delivered, Failed, Post, PostOptions, Refused, retry_after_s
from extproc.settings.webhook_secret import WebhookSecret

from .webhook_receiver import (
    CLOSE,
    ECHO,
    FLOOD,
    GARBAGE,
    HANG,
    NOW,
    SECRET,
    TRICKLE,
    Receiver,
    StoppedClock,
    alert,
    until,
)


def post_to(receiver, *, url=None, tls=None, clock=None, **options):
    options = {"timeout_s": 60.0} | options  # a busy machine takes its time
    return Post(PostOptions(url or receiver.url, SECRET, **options), clock or StoppedClock(), tls)


async def verdict_on(step, **options):
    async with Receiver(step).listening() as receiver:
        verdict = await post_to(receiver, **options)(alert())
        assert len(receiver.requests) == 1
        return verdict


def verified(key, headers, body, now, tolerance_s=300):
    """Do by hand what the scheme tells receivers to do."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(now - int(headers["webhook-timestamp"])) <= tolerance_s
    return hmac.compare_digest(f"v1,{expected}", headers["webhook-signature"]) and fresh


# ---------------------------------------------------------------- what is sent


async def test_an_alert_arrives_as_one_json_post_at_the_whole_url():
    async with Receiver().listening() as receiver:
        assert await post_to(receiver)(alert()) == Delivered()
    (request,) = receiver.requests
    assert request.line == "POST /hooks/path-that-is-a-password?key=also-secret HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("tokenweir/")
    assert request.headers["webhook-id"] == id_of(alert())
    assert request.body == payload_of(alert())


async def test_a_receiver_can_verify_who_sent_it_and_that_nobody_changed_or_kept_it():
    async with Receiver().listening() as receiver:
        await post_to(receiver)(alert())
    (request,) = receiver.requests
    headers, now = request.headers, NOW.timestamp()
    assert verified(SECRET, headers, request.body, now)
    assert not verified(b"another secret", headers, request.body, now)
    assert not verified(SECRET, headers, request.body.replace(b"800", b"100"), now)
    assert not verified(SECRET, headers | {"webhook-id": "another"}, request.body, now)
    later = headers | {"webhook-timestamp": str(int(now) + 301)}
    assert not verified(SECRET, later, request.body, now + 301)
    assert not verified(SECRET, headers, request.body, now + 301)


@pytest.mark.parametrize("text", ["whsec_" + base64.b64encode(bytes(range(32))).decode(), "a plain text secret"])
async def test_the_public_library_of_the_scheme_verifies_the_signature(text):
    key = WebhookSecret(text).key()
    clock = StoppedClock(datetime.now(UTC))  # the library refuses what is older than five minutes
    async with Receiver().listening() as receiver:
        await Post(PostOptions(receiver.url, key), clock)(alert())
    (request,) = receiver.requests
    library = standardwebhooks.Webhook(text if text.startswith("whsec_") else text.encode())
    assert library.verify(request.body, request.headers) == document_of(alert())
    for changed in (request.body.replace(b"800", b"100"), request.body + b" "):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            library.verify(changed, request.headers)
    second = int(request.headers["webhook-timestamp"]) + 1
    for changed in ({"webhook-id": "another"}, {"webhook-timestamp": str(second)}):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            library.verify(request.body, request.headers | changed)


async def test_each_attempt_is_signed_at_its_own_time_with_the_same_body_and_id():
    clock = StoppedClock()
    async with Receiver(500).listening() as receiver:
        post = post_to(receiver, clock=clock)
        await post(alert())
        clock.at += timedelta(hours=1)
        await post(alert())
    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert verified(SECRET, second.headers, second.body, clock.at.timestamp())
    assert not verified(SECRET, first.headers, first.body, clock.at.timestamp())


async def test_a_key_that_rotates_signs_the_next_attempt():
    keys = [b"the first key, 24 bytes.", b"the second key, 24 bytes"]
    async with Receiver().listening() as receiver:
        post = post_to(receiver, current_key=lambda: keys[len(receiver.requests)])
        await post(alert())
        await post(alert())
    for key, request in zip(keys, receiver.requests, strict=True):
        assert verified(key, request.headers, request.body, StoppedClock().at.timestamp())


async def test_nothing_but_the_url_decides_where_it_goes(monkeypatch, tmp_path):
    logins = tmp_path / "netrc"
    logins.write_text("machine 127.0.0.1 login somebody password secret")
    monkeypatch.setenv("NETRC", str(logins))
    async with Receiver().listening() as elsewhere, Receiver().listening() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
        assert await post_to(receiver)(alert()) == Delivered()
        assert not elsewhere.requests
        assert "authorization" not in receiver.requests[0].headers


async def test_a_proxy_is_used_where_one_is_set():
    async with Receiver().listening() as proxy:
        proxied = post_to(proxy, url="http://alerts.example/x", proxy_url=f"http://me:word@127.0.0.1:{proxy.port}")
        assert await proxied(alert()) == Delivered()
    (request,) = proxy.requests
    assert request.line == "POST http://alerts.example/x HTTP/1.1"
    assert request.headers["proxy-authorization"].startswith("Basic ")


# ---------------------------------------------------------------- what answers mean


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_a_success_is_a_delivery(status):
    assert await verdict_on(status) == Delivered()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
async def test_an_answer_that_says_later_is_a_failure(status):
    assert await verdict_on(status) == Failed(f"status {status}")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 422, 499])
async def test_an_answer_that_would_be_the_same_again_is_a_refusal(status):
    assert await verdict_on(status) == Refused(f"status {status}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status):
    async with Receiver().listening() as elsewhere:
        assert await verdict_on((status, {"location": elsewhere.url})) == Refused(f"status {status}")
        assert not elsewhere.connections


@pytest.mark.parametrize("status", [429, 503])
async def test_a_receiver_may_say_when_it_wants_to_be_asked_again(status):
    assert await verdict_on((status, {"retry-after": "7"})) == Failed(f"status {status}", "", 7.0)


@pytest.mark.parametrize("step", [CLOSE, GARBAGE])
async def test_a_connection_that_breaks_off_or_speaks_no_http_is_a_failure(step):
    assert await verdict_on(step) == Failed("connection", "RemoteProtocolError")


async def test_a_receiver_that_is_not_there_is_a_failure():
    async with Receiver().listening() as receiver:
        pass
    verdict = await post_to(receiver)(alert())
    assert verdict.cause == "connect"


async def test_a_host_that_can_not_be_a_name_is_a_failure():
    verdict = await post_to(None, url=f"http://{'a' * 70}.invalid/")(alert())
    assert verdict == Failed("connection", "UnicodeError") or verdict.cause == "connect"


@pytest.mark.parametrize("step", [HANG, TRICKLE])
async def test_an_attempt_ends_in_time_also_where_the_answer_trickles(step):
    started = time.monotonic()
    async with Receiver(step).listening() as receiver:  # a busy machine may reach it too late
        assert await post_to(receiver, timeout_s=0.05)(alert()) == Failed("timeout", "no answer within 0.05 s")
    assert time.monotonic() - started < 30


async def test_an_answer_without_an_end_is_not_read():
    async with Receiver(FLOOD).listening() as receiver:
        assert await post_to(receiver)(alert()) == Delivered()
        async with asyncio.timeout(30):
            await until(lambda: not receiver.open_connections)


@pytest.mark.parametrize("step", [200, 500, HANG, CLOSE])
async def test_no_connection_stays_open_after_an_attempt(step):
    async with Receiver(*[step] * 5).listening() as receiver:
        post = post_to(receiver, timeout_s=0.05)
        for _ in range(5):
            await post(alert())
        async with asyncio.timeout(30):
            await until(lambda: receiver.connections == 5 and not receiver.open_connections)


@pytest.mark.parametrize("step", [200, 500, 400, HANG, CLOSE, GARBAGE, ECHO, (302, {"location": "/x"})])
async def test_neither_the_url_nor_the_secret_is_in_a_verdict_or_a_log_line(step, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="httpcore")  # logs what a peer sent; logs.set_up keeps it silent
    async with Receiver(step).listening() as receiver:
        post = post_to(receiver, timeout_s=0.05)
        told = f"{await post(alert())!r} {post.host}"
        told += repr(PostOptions(receiver.url, SECRET, proxy_url="http://me:word@proxy"))
    told += "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "127.0.0.1" in told
    for secret in ("password", "also-secret", SECRET.decode(), "me:word"):
        assert secret not in told


async def test_no_connection_stays_open_where_the_other_side_does_not_answer_tls():
    async with Receiver().listening() as receiver:
        url = receiver.url.replace("http:", "https:")  # it waits for an HTTP head that never comes
        verdict = await post_to(receiver, url=url, timeout_s=0.05)(alert())
        assert verdict.cause == "timeout"

        def closed():
            gc.collect()  # a handshake that is cancelled in its first step leaves the socket to the collector
            return not receiver.open_connections

        async with asyncio.timeout(30):
            await until(closed)
        assert receiver.connections == 1


# ---------------------------------------------------------------- retry-after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Wed, 04 Mar 2026 11:31:15 GMT", 60.0),
        ("Wed, 04 Mar 2026 11:30:00 GMT", 0.0),  # over
        ("", 0.0),
        ("soon", 0.0),
        ("-1", 0.0),
        ("1.5", 0.0),
        ("٣", 0.0),
        ("Wed, 99 Mar 2026 11:31:15 GMT", 0.0),
        ("Wed, 04 Mar 99999 11:31:15 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(value, seconds):
    assert retry_after_s(value, NOW) == seconds


def test_a_retry_after_of_thousands_of_digits_is_a_long_time():
    assert retry_after_s("9" * 5000, NOW) > 1e15
    assert retry_after_s("9" * 15, NOW) == 999_999_999_999_999.0


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody vouches for, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("receiver.invalid")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    certificate = folder / "certificate.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, private)
    return certificate, server


async def test_a_certificate_that_nobody_vouches_for_is_a_failure_and_nothing_is_sent(certificate):
    _, server = certificate
    async with Receiver().listening(tls=server) as receiver:
        verdict = await post_to(receiver, url=receiver.url.replace("http:", "https:"))(alert())
        assert verdict.cause == "connect"
        assert "CERTIFICATE_VERIFY_FAILED" in verdict.detail
        assert not receiver.requests


async def test_a_certificate_for_another_host_is_a_failure_and_nothing_is_sent(certificate):
    path, server = certificate
    async with Receiver().listening(tls=server) as receiver:
        post = post_to(
            receiver, url=receiver.url.replace("http:", "https:"), tls=ssl.create_default_context(cafile=path)
        )
        verdict = await post(alert())
        assert verdict.cause == "connect"
        assert "IP address mismatch" in verdict.detail
        assert not receiver.requests


async def test_a_certificate_of_a_trusted_authority_is_taken(certificate, monkeypatch):
    path, server = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))  # how an authority of one's own is made known
    tls = ssl.create_default_context()
    tls.check_hostname = False  # the test's receiver has no name
    async with Receiver().listening(tls=server) as receiver:
        post = post_to(receiver, url=receiver.url.replace("http:", "https:"), tls=tls)
        assert await post(alert()) == Delivered()
