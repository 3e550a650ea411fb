"""Normalise client addresses: Envoy's spelling in, the spelling of buckets and ledger out.

An IPv4 client is counted by its address. An IPv6 client is counted by its network: a client gets at least a /64
(RFC 6177), so it could avoid a limit on single addresses by changing its address.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NewType

ClientIP = NewType("ClientIP", str)

UNKNOWN_IP: Final = ClientIP("unknown")
IPV6_PREFIX: Final = 64
_IPV6_BITS: Final = 128
# RFC 6052, section 2.1: the well-known prefix of NAT64. Prefixes that an operator chose are not recognised.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# RFC 4291, section 2.5.5.2: IPv4-mapped, as a network. Its last 32 bits are the address.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_EMBEDDED_FROM: Final = 96


def client_ip(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """Return one spelling per client: `192.0.2.7`, or `2001:db8:1:2::/64` for each client in that network.

    The result has no port, brackets or zone. IPv6 is compressed and in lower case, with the host bits cleared.
    With a prefix of 128 the result is the whole address, without `/128`. An IPv6 address that contains the
    client's IPv4 address (mapped, NAT64 64:ff9b::/96, 6to4 or Teredo) becomes that IPv4 address. Text that is no
    IP address (a Unix socket, garbage) becomes `UNKNOWN_IP`: all such callers share one bucket.
    """
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return _client_of(host.partition("%")[0], ipv6_prefix)


@lru_cache(maxsize=4096)
def _client_of(host: str, ipv6_prefix: int) -> ClientIP:
    try:
        address = ip_address(host)
    except ValueError:
        return UNKNOWN_IP
    if isinstance(address, IPv6Address):
        embedded = _ipv4_of(address)
        return _network(address, ipv6_prefix) if embedded is None else ClientIP(str(embedded))
    return ClientIP(str(address))


def client_network(text: str, ipv6_prefix: int = IPV6_PREFIX) -> ClientIP:
    """Normalise a network (`10.0.0.0/24`, `2001:db8::/56`); never return a smaller network than `client_ip`
    would.
    """
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
