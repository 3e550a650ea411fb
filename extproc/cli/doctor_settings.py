"""Judge settings that are valid, and yet not safe, or without effect."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from extproc.admin.findings import Finding, error, note, ok, warning
from extproc.core.quota.binding import StoreFailure
from extproc.settings.model import Settings

PART: Final = "settings"
# They use mTLS, or TLS, of their own accord.
_SAFE_SCHEMES: Final = frozenset({"rediss", "mongodb+srv", "rediss+sentinel", "unix"})


def judged_settings(settings: Settings) -> Iterator[Finding]:
    """Judge the settings in effect."""
    found = [*_channel(settings), *_stores(settings), *_identity(settings), *_records(settings)]
    yield from found or [ok(PART, "valid, and none of them is known to be unsafe")]


def _channel(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if (exposed := server.exposed()) is not None:
        what, _, fix = exposed.partition(". ")
        yield error(PART, what, "`serve` refuses to start", fix)
    if server.allow_plaintext:
        yield note(
            PART,
            "server.allow_plaintext is true",
            "whoever reaches the port can claim any identity, unless the mesh keeps others away",
            "keep it only behind a sidecar that ends mTLS, with a policy that admits the gateway alone",
        )


def _stores(settings: Settings) -> Iterator[Finding]:
    urls = {"redis.url": settings.redis.url, "mongo.url": settings.mongo.url}
    for name, url in urls.items():
        if url.in_memory:
            continue
        text = url.get_secret_value()
        parts = urlsplit(text)
        if parts.scheme not in _SAFE_SCHEMES and "tls=true" not in text and not _only_here(text):
            yield warning(
                PART,
                f"{name}: the connection is in plaintext, to another machine",
                "whoever reads it sees names of callers, and the password",
                "use rediss:// or tls=true, or keep it inside a mesh or a private network",
            )
        if "@" not in text and not _only_here(text) and parts.scheme != "unix":
            yield warning(
                PART,
                f"{name}: no user or password",
                "whoever reaches the server can change counters or limits",
                "give Tokenweir a user of its own, with a password from a secret (redis.url_file, mongo.url_file)",
            )
    if settings.redis.max_connections != type(settings.redis)().max_connections:
        yield note(PART, "redis.max_connections has no effect any more", "", "remove it")


def _identity(settings: Settings) -> Iterator[Finding]:
    identity = settings.identity
    for name in ("service_account_header", "tenant_header"):
        header = getattr(identity, name)
        if header is not None:
            yield note(
                PART,
                f"identity.{name} is {header}",
                "a client that can send the header to Envoy is taken for whom it names",
                "let Envoy remove clients' copies; `doctor --envoy-admin URL` checks it",
            )
    if identity.tenant_claim is None and identity.tenant_header is None and identity.tenant_pattern is None:
        yield warning(
            PART,
            "nothing names a tenant",
            "all callers belong to one tenant, with one set of limits",
            "set identity.tenant_claim, identity.tenant_header or identity.tenant_pattern",
        )


def _records(settings: Settings) -> Iterator[Finding]:
    if not settings.denied.record:
        yield note(PART, "denied.record is false", "denied requests can't be looked up", "set denied.record: true")
    if settings.limits.default.on_store_failure is StoreFailure.ALLOW and settings.spool.directory is None:
        yield warning(
            PART,
            "on_store_failure is allow, and spool.directory is not set",
            "without a spool nothing is admitted without Redis: it is as with deny",
            "set spool.directory, on a disk that outlives the process",
        )
    if not settings.cost.refuse_unbounded:
        yield warning(
            PART,
            "cost.refuse_unbounded is false",
            "strict limits may be exceeded by requests whose size nothing bounds",
            "set cost.refuse_unbounded: true",
        )
    if settings.alerts.webhook_url is None and not settings.alerts.thresholds:
        yield note(PART, "alerts.thresholds is empty", "nobody is told of a limit that fills up", "")


def _only_here(url: str) -> bool:
    """Return whether all hosts of a URL are this machine."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    return all(_is_loopback(host.rpartition(":")[0] or host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
