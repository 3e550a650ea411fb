"""One spelling per client: an IPv4 address, or an IPv6 network that one customer is given as a whole."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request.addresses import UNKNOWN_IP, client_ip, client_network
from tests.core.samples import FUZZ


@FUZZ
@given(st.ip_addresses(), st.integers(0, 65_535), st.integers(1, 128))
def test_port_and_brackets_make_no_difference(address, port, prefix):
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    assert client_ip(f"{bracketed}:{port}", prefix) == client_ip(str(address), prefix) != UNKNOWN_IP


@FUZZ
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_network_are_one_client(network, one, other):
    first, second = (str(IPv6Address(network << 64 | host)) for host in (one, other))
    if not first.startswith(("64:ff9b:", "2001::", "2001:0:", "::")):
        assert client_ip(first) == client_ip(second)


@pytest.mark.parametrize(
    ("address", "prefix", "expected"),
    [
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", 56, "2001:db8:1::/56"),
        ("2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::/48"),
        ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
        ("2001:db8:1:2::", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", 64, "2001:db8:1:3::/64"),
        ("192.0.2.7", 1, "192.0.2.7"),
    ],
)
def test_an_ipv6_client_is_its_network_and_an_ipv4_client_its_address(address, prefix, expected):
    assert client_ip(address, prefix) == expected


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:192.0.2.7",
        "::ffff:c000:207",
        "64:ff9b::192.0.2.7",
        "2002:c000:207::1",
        "2002:c000:207:ffff:1:2:3:4",
        "2001:0:4136:e378:8000:63bf:3fff:fdf8",
        "2001:0:102:304:0:1:3fff:fdf8",
    ],
)
@pytest.mark.parametrize("prefix", [48, 64, 128])
def test_an_ipv4_client_in_the_clothes_of_ipv6_is_that_ipv4_client(address, prefix):
    assert client_ip(address, prefix) == "192.0.2.7"


@pytest.mark.parametrize(
    ("network", "prefix", "expected"),
    [
        ("10.0.0.9/24", 64, "10.0.0.0/24"),
        ("10.0.0.9/32", 64, "10.0.0.9/32"),
        ("2001:db8::/56", 64, "2001:db8::/56"),
        ("2001:db8::/64", 64, "2001:db8::/64"),
        ("2001:db8::1/128", 64, "2001:db8::/64"),
        ("2001:db8::ff00/120", 56, "2001:db8::/56"),
        ("::ffff:10.0.0.9/120", 64, "10.0.0.0/24"),
        ("::ffff:10.0.0.9/95", 64, "::/64"),
        ("64:ff9b::10.0.0.9/128", 64, "10.0.0.9"),
        ("nowhere/8", 64, UNKNOWN_IP),
        ("", 64, UNKNOWN_IP),
    ],
)
def test_a_network_is_never_smaller_than_a_client(network, prefix, expected):
    assert client_network(network, prefix) == expected


@FUZZ
@given(st.text() | st.text("0123456789abcdef:.[]%/ ", max_size=30), st.integers(1, 128))
def test_any_source_gives_a_client_or_unknown(source, prefix):
    found = client_ip(source, prefix)
    if found != UNKNOWN_IP:
        assert str(ip_network(found) if "/" in found else ip_address(found)) == found
    assert (client_network(found, prefix) if "/" in found else client_ip(found, prefix)) == found


@FUZZ
@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_itself(address):
    assert client_ip(str(address)) == str(address) == str(IPv4Address(client_ip(f"::ffff:{address}")))
