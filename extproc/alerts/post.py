"""Post an alert to a receiver over HTTP: one attempt, and its verdict.

Each attempt has its own connection. Alerts are rare, so a pooled connection would usually be stale. The attempt
uses httpx's transport instead of its client: the client follows redirects, keeps cookies, reads proxies and logins
from the environment and logs whole URLs.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from extproc import __version__
from extproc.alerts.document import id_of, payload_of
from extproc.alerts.signing import signed_headers
from extproc.ports.alerts import Alert
from extproc.ports.base import Clock

# Transient refusals, beside 5xx. Any other status below 500 is permanent.
_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_MAX_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Delivered:
    """Report that the receiver has the alert (2xx)."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Report a transient failure: the alert may be posted again.

    `retry_after_s` (0 or more) is the wait that the receiver asked for. `cause` is one of few values; `detail` is
    for people. Of the URL, both contain at most the host.
    """

    cause: str
    detail: str = ""
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """Report a permanent failure: the same alert would get the same answer again."""

    cause: str


Verdict = Delivered | Failed | Refused


@dataclass(frozen=True, slots=True)
class PostOptions:
    """Say where to post, and how.

    `timeout_s` bounds a whole attempt, and half of it the connecting with name resolution. `url` and `proxy_url`
    must have passed `extproc.settings.webhook_urls`. `key` is the HMAC key. `current_key`, if given,
    returns the key at each attempt. Fields that may contain a secret have no repr.
    """

    url: str = field(repr=False)
    key: bytes = field(repr=False)
    timeout_s: float = 5.0
    proxy_url: str | None = field(default=None, repr=False)
    current_key: Callable[[], bytes] | None = field(default=None, repr=False)


class Post:
    """Post alerts as signed JSON to one URL."""

    def __init__(self, options: PostOptions, clock: Clock, tls: ssl.SSLContext | None = None) -> None:
        """Check certificates with `tls`; None: with the host's authorities (`SSL_CERT_FILE`)."""
        self._url = httpx.URL(options.url)
        self._key = options.current_key or (lambda: options.key)
        self._timeout_s = options.timeout_s
        self._proxy = None if options.proxy_url is None else httpx.Proxy(options.proxy_url)
        self._clock = clock
        # Once, because reading all authorities takes about 20 ms.
        self._tls = ssl.create_default_context() if tls is None else tls

    @property
    def host(self) -> str:
        """Return the receiver's host, the only part of its URL that may be shown."""
        return self._url.host

    async def __call__(self, alert: Alert) -> Verdict:
        """Post the alert once. Raise nothing but a cancellation."""
        try:
            async with asyncio.timeout(self._timeout_s), self._transport() as transport:
                response = await transport.handle_async_request(self._request(alert))
                # The body is not read, whatever its size.
                await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            return Failed("timeout", f"no answer within {self._timeout_s:g} s")
        except httpx.ConnectError as error:  # also: a certificate that is not trusted
            return Failed("connect", str(error)[:_MAX_DETAIL_CHARS])
        except (httpx.TransportError, OSError, ValueError) as error:
            # Only the type: the message may quote an answer that echoes the request. ValueError: h11, IDNA.
            return Failed("connection", type(error).__name__)
        return self._verdict(response)

    def _verdict(self, response: httpx.Response) -> Verdict:
        status = response.status_code
        if response.is_success:
            return Delivered()
        cause = f"status {status}"
        if status in _LATER or response.is_server_error:
            return Failed(cause, "", retry_after_s(response.headers.get("retry-after", ""), self._clock.now()))
        return Refused(cause)

    def _transport(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, proxy=self._proxy)

    def _request(self, alert: Alert) -> httpx.Request:
        payload = payload_of(alert)
        headers = {
            "content-type": "application/json",
            "user-agent": f"tokenweir/{__version__}",
            # Each attempt has its own time and signature: receivers refuse old ones.
            **signed_headers(self._key(), id_of(alert), int(self._clock.now().timestamp()), payload),
        }
        # Connecting and the TLS handshake get half of the time each: if httpcore's own timeout ends a handshake,
        # httpcore closes the socket; after a cancellation it leaves the socket to the garbage collector.
        bounds = {"connect": self._timeout_s / 2}
        return httpx.Request("POST", self._url, headers=headers, content=payload, extensions={"timeout": bounds})


def retry_after_s(value: str, now: datetime) -> float:
    """Return the seconds that a `retry-after` header asks for (RFC 9110, 10.2.3); 0 if it is invalid."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, at.timestamp() - now.timestamp())
    except (ValueError, OverflowError):
        return 0.0
