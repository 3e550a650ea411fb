"""Addresses of clients: from what Envoy writes to the one spelling that buckets and the ledger know a client by.

An IPv4 client is its address. An IPv6 client is its network: whoever is given one IPv6 address is given at least
a /64 (RFC 6177), so a count by single addresses is a count that nobody needs to stay within.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NewType

ClientIP = NewType("ClientIP", str)

UNKNOWN_IP: Final = ClientIP("unknown")
IPV6_PREFIX: Final = 64
_IPV6_BITS: Final = 128
# RFC 6052, section 2.1: the prefix of translators. A translator's own prefix is not known here.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# RFC 4291, section 2.5.5.2: IPv4-mapped, as a network. Its last 32 bits are the address.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_EMBEDDED_FROM: Final = 96


def client_ip(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """One spelling per client: `192.0.2.7`, or `2001:db8:1:2::/64` for whoever is in that network.

    No port, no brackets, no zone; compressed, in lower case, with the network's bits alone. With a prefix of 128
    the whole address, without `/128`. An IPv6 address that carries its client's IPv4 address is that IPv4 client:
    mapped, NAT64 (64:ff9b::/96), 6to4 and Teredo. What is no IP address (a Unix socket, garbage) is `UNKNOWN_IP`:
    all such callers share one bucket.
    """
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return UNKNOWN_IP
    if isinstance(address, IPv6Address):
        embedded = _ipv4_of(address)
        return _network(address, ipv6_prefix) if embedded is None else ClientIP(str(embedded))
    return ClientIP(str(address))


def client_network(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """The same for a network (`10.0.0.0/24`, `2001:db8::/56`): never a smaller one than `client_ip` would give."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return UNKNOWN_IP
    if isinstance(network, IPv6Network):
        if network.prefixlen >= _EMBEDDED_FROM and network.subnet_of(_MAPPED):
            last = IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
            return ClientIP(str(IPv4Network((last, network.prefixlen - _EMBEDDED_FROM))))
        if network.prefixlen > ipv6_prefix:
            return client_ip(str(network.network_address), ipv6_prefix)
    return ClientIP(str(network))


def _network(address: IPv6Address, prefix: int) -> ClientIP:
    if prefix == _IPV6_BITS:
        return ClientIP(str(address))
    return ClientIP(str(IPv6Network((int(address), prefix), strict=False)))


def _ipv4_of(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None
