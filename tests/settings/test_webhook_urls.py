"""The URLs of webhooks: what is taken, and what is never shown."""

import pytest

from extproc.settings.webhook_urls import ProxyURL, WebhookURL, proxy_url, webhook_url


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example/services/T0/B0/key",
        "http://alerts.monitoring.svc:8080",
        "https://[2001:db8::1]:8443/x?y=z",
        "https://bücher.example/",
        "HTTPS://hooks.example/",
    ],
)
def test_a_url_that_can_be_posted_to_is_taken(url):
    assert webhook_url(WebhookURL(url)).get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://hooks.example/", "must start with https://"),
        ("hooks.example/path", "must start with https://"),
        ("https:///path", "must start with https://"),
        ("", "must start with https://"),
        ("https://me:pa55word@hooks.example/", "must hold no user or password"),
        ("https://me@hooks.example/", "must hold no user or password"),
        ("https://hooks.example/#part", "must hold no fragment"),
        ("https://hooks.example:99999/", "must have a port of at most 65535"),
        ("https://hooks.example:port/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://xn--/", "is no URL"),
        ("https://hooks.example/\n", "is no URL"),
        ("https://hooks.example/" + "x" * 2048, "must have at most 2048 characters"),
    ],
)
def test_a_url_that_can_not_be_posted_to_is_refused_and_not_quoted(url, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        webhook_url(WebhookURL(url))
    for secret in ("pa55word", "hooks.example", "xxx", "99999"):
        assert secret not in str(raised.value)


def test_a_proxy_may_have_a_login_that_is_not_shown():
    url = proxy_url(ProxyURL("http://me:password@proxy.example:3128"))
    assert str(url) == "http://me:***@proxy.example:3128"


@pytest.mark.parametrize("url", ["socks5://proxy.example", "proxy.example:3128", "http://"])
def test_what_is_no_http_proxy_is_refused(url):
    with pytest.raises(ValueError, match="must start with"):
        proxy_url(ProxyURL(url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example/services/key?token=x", "https://hooks.example/***"),
        ("https://hooks.example:8443", "https://hooks.example:8443/***"),
        ("https://me:password@hooks.example/", "https://hooks.example/***"),
        ("https://[::1/key", "***"),
        ("key", "***"),
    ],
)
def test_only_scheme_and_host_of_a_webhook_are_shown(url, shown):
    assert str(WebhookURL(url)) == shown
    assert repr(WebhookURL(url)) == f"WebhookURL('{shown}')"
