"""One attempt to hand an alert to a receiver over HTTP, and what became of it.

One attempt is one connection: alerts are rare, a kept connection would mostly be a stale one, and nothing of an
attempt that was cut off is left in a pool. It runs on httpx's transport instead of its client, which follows
redirects, keeps cookies, reads proxies and logins from the environment and logs whole URLs; none of it is wanted.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from extproc import __version__
from extproc.alerts.document import id_of, payload_of
from extproc.alerts.signing import signed_headers
from extproc.core.quota.alerting import Alert
from extproc.ports.base import Clock

# Answers that say "later"; 5xx too. All else under 500 would say the same the next time.
_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_MAX_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it (2xx)."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Not now: it may be tried again, where the receiver said so not before `retry_after_s` (0 or more).

    `cause` is one of few values; `detail` says more, for people. Neither holds a part of the URL but its host.
    """

    cause: str
    detail: str = ""
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: the same alert would be answered the same way again."""

    cause: str


Verdict = Delivered | Failed | Refused


@dataclass(frozen=True, slots=True)
class PostOptions:
    """`timeout_s` bounds a whole attempt, half of it connecting, with name resolution. `proxy_url`: or None.

    URLs must have passed `extproc.settings.webhook_urls`. No field that may hold a secret is shown.
    """

    url: str = field(repr=False)
    key: bytes = field(repr=False)
    timeout_s: float = 5.0
    proxy_url: str | None = field(default=None, repr=False)


class Post:
    """Posts alerts as signed JSON to one URL."""

    def __init__(self, options: PostOptions, clock: Clock, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: what certificates are checked with; None: against the host's authorities (`SSL_CERT_FILE`)."""
        self._url = httpx.URL(options.url)
        self._key = options.key
        self._timeout_s = options.timeout_s
        self._proxy = None if options.proxy_url is None else httpx.Proxy(options.proxy_url)
        self._clock = clock
        # Made once: reading all authorities takes some 20 ms.
        self._tls = ssl.create_default_context() if tls is None else tls

    @property
    def host(self) -> str:
        """The receiver's host: all of its URL that may be shown."""
        return self._url.host

    async def __call__(self, alert: Alert) -> Verdict:
        """Tries once. Raises nothing but a cancellation."""
        try:
            async with asyncio.timeout(self._timeout_s), self._transport() as transport:
                response = await transport.handle_async_request(self._request(alert))
                # The body is of no interest: whatever its size, it is not read.
                await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            return Failed("timeout", f"no answer within {self._timeout_s:g} s")
        except httpx.ConnectError as error:  # also: a certificate that is not trusted
            return Failed("connect", str(error)[:_MAX_DETAIL_CHARS])
        except (httpx.TransportError, OSError, ValueError) as error:
            # Only the type: what a peer that speaks no HTTP sent may echo the request. ValueError: h11, IDNA.
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
            **signed_headers(self._key, id_of(alert), int(self._clock.now().timestamp()), payload),
        }
        # Connecting and the TLS handshake get half of the time each: httpcore closes the socket where its own
        # timeout ends a handshake, and leaves it to the garbage collector where a cancellation does.
        bounds = {"connect": self._timeout_s / 2}
        return httpx.Request("POST", self._url, headers=headers, content=payload, extensions={"timeout": bounds})


def retry_after_s(value: str, now: datetime) -> float:
    """What a `retry-after` header asks for (RFC 9110, 10.2.3: seconds or a date); 0: nothing. No bound."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, at.timestamp() - now.timestamp())
    except (ValueError, OverflowError):
        return 0.0
