"""The ends of certificates: of chains and of several CAs, of files that are replaced, and of what is no certificate."""

import contextlib
import math
import os
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from extproc.observe.certificates import CertificateFile, certificate_gauge, ends_of

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)])
YEARS = [1951, 1999, 2026, 2049, 2050, 2051, 9999]


def ending(year, *, serial=2**150):
    """A certificate that ends with a year, as PEM. From 2050 on its time is of the long kind."""
    end = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    builder = x509.CertificateBuilder(NAME, NAME, KEY.public_key(), serial)
    made = (
        builder.not_valid_before(datetime(1950, 1, 1, tzinfo=UTC)).not_valid_after(end).sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), end.timestamp()


MADE, _ = ending(2027)


@pytest.mark.parametrize("year", YEARS)
def test_the_end_is_that_of_the_certificate(year):
    pem, end = ending(year, serial=1)
    assert ends_of(pem) == [end]


def test_of_a_chain_the_first_end_counts_and_of_several_cas_the_last(tmp_path):
    path = tmp_path / "chain.crt"
    path.write_bytes(b"a comment\n" + b"\n".join(ending(year)[0] for year in (2030, 2027, 2040)))
    assert CertificateFile(path).expires_at() == ending(2027)[1]
    assert CertificateFile(path, max).expires_at() == ending(2040)[1]


def test_a_file_that_is_replaced_counts_at_once_and_one_that_can_not_be_read_leaves_the_last_end(tmp_path):
    path, fresh = tmp_path / "server.crt", tmp_path / "new"
    file = CertificateFile(path)
    assert math.isnan(file.expires_at())
    for year in (2027, 2028):
        fresh.write_bytes(ending(year)[0])
        fresh.replace(path)
        assert file.expires_at() == ending(year)[1]
    fresh.write_bytes(b"no certificate")
    fresh.replace(path)
    assert file.expires_at() == ending(2028)[1]
    path.unlink()
    assert file.expires_at() == ending(2028)[1]
    os.mkfifo(path)
    assert file.expires_at() == ending(2028)[1]
    path.unlink()
    path.write_bytes(ending(2029)[0])
    assert file.expires_at() == ending(2029)[1]


@given(st.data())
def test_what_is_cut_off_or_changed_is_refused_or_read_and_nothing_else(data):
    lines = MADE.decode().splitlines()
    body = "".join(lines[1:-1])
    cut = data.draw(st.integers(0, len(body)))
    put = data.draw(st.text("ABCDEFabcdef0123456789+/=", max_size=8))
    text = "\n".join(
        [lines[0], body[:cut] + put + body[cut + len(put) :][: data.draw(st.integers(0, 2000))], lines[-1]]
    )
    with contextlib.suppress(ValueError):  # any other error would end a scrape
        assert all(math.isfinite(end) for end in ends_of(text.encode()))


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(ValueError):
        ends_of(text)


def test_the_metric_tells_the_end_by_the_setting_that_names_the_file(tmp_path):
    path = tmp_path / "server.crt"
    path.write_bytes(ending(2030)[0])
    registry = CollectorRegistry()
    gauge = certificate_gauge(registry)
    gauge.labels("server.tls.certificate_file").set_function(CertificateFile(path).expires_at)
    shown = registry.get_sample_value(
        "tokenweir_certificate_expiry_timestamp_seconds", {"setting": "server.tls.certificate_file"}
    )
    assert shown == ending(2030)[1]
