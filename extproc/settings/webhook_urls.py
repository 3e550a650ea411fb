"""The webhook's URL and its proxy's: checked before the start, and never shown with what is secret in them."""

from typing import Final

from pydantic import Secret

from extproc.stores.urls import masked

_MAX_CHARS: Final = 2048
_MAX_PORT: Final = 65_535
_SCHEMES: Final = ("https", "http")


class WebhookURL(Secret[str]):
    """A URL that prints as scheme and host alone: for many receivers the path is the password."""

    def _display(self) -> str:
        import httpx

        try:
            url = httpx.URL(self.get_secret_value())
        except httpx.InvalidURL:
            return "***"
        return f"{url.scheme}://{url.netloc.decode()}/***" if url.raw_host else "***"


class ProxyURL(Secret[str]):
    """A URL that prints with its password masked."""

    def _display(self) -> str:
        return masked(self.get_secret_value())


def webhook_url(url: WebhookURL) -> WebhookURL:
    """Raises ValueError where alerts could not be posted to it. Connects to nothing."""
    _check(url.get_secret_value())
    return url


def proxy_url(url: ProxyURL) -> ProxyURL:
    """Raises ValueError where it names no HTTP proxy. Connects to nothing."""
    _check(url.get_secret_value(), login=True)
    return url


def _check(text: str, *, login: bool = False) -> None:
    # Settings are also checked and shown where no webhook is: only one that is set costs the import.
    import httpx

    if len(text) > _MAX_CHARS:
        raise ValueError(f"must have at most {_MAX_CHARS} characters")
    try:
        url = httpx.URL(text)
        host, port = url.host, url.port or 0
    except (httpx.InvalidURL, ValueError):  # it may quote the URL
        raise ValueError("is no URL") from None
    if port > _MAX_PORT:
        raise ValueError(f"must have a port of at most {_MAX_PORT}")
    if url.scheme not in _SCHEMES or not host:
        raise ValueError("must start with https:// (or http://, inside a mesh that encrypts) and a host")
    if url.userinfo and not login:
        raise ValueError("must hold no user or password: the receiver checks the signature")
    if url.fragment:
        raise ValueError("must hold no fragment (#): it would not be sent")
