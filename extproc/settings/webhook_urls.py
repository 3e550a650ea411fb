"""Check the URLs of the webhook and its proxy, and mask them in output."""

from typing import Final

from pydantic import Secret

from extproc.stores.urls import masked

_MAX_CHARS: Final = 2048
_MAX_PORT: Final = 65_535
_SCHEMES: Final = ("https", "http")


class WebhookURL(Secret[str]):
    """Hold a URL that prints as scheme and host only, because the path of many receivers is a password."""

    def _display(self) -> str:
        import httpx

        try:
            url = httpx.URL(self.get_secret_value())
        except httpx.InvalidURL:
            return "***"
        return f"{url.scheme}://{url.netloc.decode()}/***" if url.raw_host else "***"


class ProxyURL(Secret[str]):
    """Hold a URL that prints with its password masked."""

    def _display(self) -> str:
        return masked(self.get_secret_value())


def webhook_url(url: WebhookURL) -> WebhookURL:
    """Return the URL. Raise ValueError if alerts can't be posted to it. Connect to nothing."""
    _check(url.get_secret_value())
    return url


def proxy_url(url: ProxyURL) -> ProxyURL:
    """Return the URL. Raise ValueError if it names no HTTP proxy. Connect to nothing."""
    _check(url.get_secret_value(), login=True)
    return url


def plain_url(text: str) -> str:
    """Return the URL. Raise ValueError if nothing can be fetched from it, or if it has a login: it is shown."""
    _check(text)
    return text


def _check(text: str, *, login: bool = False) -> None:
    # Imported here, because most processes have no webhook.
    import httpx

    if len(text) > _MAX_CHARS:
        raise ValueError(f"must have at most {_MAX_CHARS} characters")
    try:
        url = httpx.URL(text)
        host, port = url.host, url.port or 0
    except (httpx.InvalidURL, ValueError):  # the error may quote the URL
        raise ValueError("is no URL") from None
    if port > _MAX_PORT:
        raise ValueError(f"must have a port of at most {_MAX_PORT}")
    if url.scheme not in _SCHEMES or not host:
        raise ValueError("must start with https:// (or http://, inside a mesh that encrypts) and a host")
    if url.userinfo and not login:
        raise ValueError("must hold no user or password: the receiver checks the signature")
    if url.fragment:
        raise ValueError("must hold no fragment (#): it would not be sent")
