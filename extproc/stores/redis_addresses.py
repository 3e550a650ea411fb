"""Parse a Redis URL: one server, some nodes of a Cluster, or Sentinels and the name of their master.

    redis://user:pass@host:6379/0                          rediss://: TLS; unix:///path
    redis+cluster://user:pass@host:6379,host:6379          rediss+cluster://
    redis+sentinel://user:pass@host:26379,host/name/0      rediss+sentinel://: both Sentinels and Redis by TLS

User and password are those of Redis. The options `sentinel_username` and `sentinel_password` log in to Sentinels.
All other options are redis-py's, and apply to every connection.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from redis.asyncio.connection import ConnectionPool, parse_url

_SENTINEL_PORT: Final = 26379
_OF_SENTINELS: Final = ("sentinel_username", "sentinel_password")
SCHEMES: Final = ("redis+cluster://", "rediss+cluster://", "redis+sentinel://", "rediss+sentinel://")


class Kind(StrEnum):
    """List the ways to find servers."""

    ONE = "one"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True)
class Address:
    """Hold the first addresses to contact, and redis-py's other connection options in `options`.

    `hosts` are servers, nodes or Sentinels; `service` is the Sentinels' name of the master.
    """

    kind: Kind
    options: dict[str, Any]
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: dict[str, Any] | None = None


def parse_address(url: str) -> Address:
    """Return the address in a URL. Raise ValueError, TypeError or a RedisError, whose message may quote the
    URL.
    """
    if not url.startswith(SCHEMES):
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
        return Address(Kind.ONE, dict(parse_url(url)))
    scheme, _, rest = url.partition("://")
    tls, _, kind = scheme.partition("+")
    place, _, query = rest.partition("?")
    login, at, place = place.rpartition("@")
    names, _, path = place.partition("/")
    options = [(name, value) for name, value in parse_qsl(query) if name not in _OF_SENTINELS]
    suffix = f"?{urlencode(options)}" if options else ""
    port = _SENTINEL_PORT if kind == Kind.SENTINEL else 6379
    hosts = tuple(_host(name, port) for name in names.split(","))
    if kind == Kind.CLUSTER:
        if path not in ("", "0"):
            raise ValueError("a Cluster has no databases")
        found = _options(f"{tls}://{login}{at}h{suffix}")
        if found.get("db"):
            raise ValueError("a Cluster has no databases")
        return Address(Kind.CLUSTER, found, hosts)
    service, _, database = path.partition("/")
    if not service or not (database or "0").isdecimal():
        raise ValueError("no name of a service, or no number of a database")
    wanted = dict(parse_qsl(query))
    sentinel_login = ":".join(quote(wanted.get(name, ""), safe="") for name in _OF_SENTINELS)
    sentinels = _options(f"{tls}://{sentinel_login.removesuffix(':')}@h{suffix}")
    sentinels.pop("db", None)
    found = _options(f"{tls}://{login}{at}h/{database}{suffix}")
    return Address(Kind.SENTINEL, found, hosts, unquote(service), sentinels)


def _options(url: str) -> dict[str, Any]:
    ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    options = dict(parse_url(url))
    del options["host"]
    return options


def _host(text: str, port: int) -> tuple[str, int]:
    parsed = dict(parse_url(f"redis://{text}"))
    if not parsed.get("host") or text.strip() != text:
        raise ValueError("a host is missing")
    return str(parsed["host"]), int(str(parsed.get("port", port)))
