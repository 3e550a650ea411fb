"""One browser per module: the sync driver holds the thread's event loop, which other modules' tests need."""

import shutil
from urllib.parse import urlsplit

import pytest

from .served import DESKTOP, part, serve

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def form():
    """Starts a form with these arguments; it ends with the test."""
    started = []

    def start(*arguments, **environment):
        started.append(serve(*arguments, **environment))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def blank():
    """One form without a file, for tests that keep nothing in it."""
    served = serve()
    yield served
    code, said = served.end()
    assert code == 0, said


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        part("playwright", None, "pip install playwright")
    path = part(
        "chromium", shutil.which("chromium") or shutil.which("chromium-browser"), "apt-get install chromium"
    )
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """Opens a form's page. At the end: nothing went wrong in its console, and no request left this machine."""
    contexts, errors, hosts = [], [], set()

    def open_page(served, viewport=None, scheme="light", waits=True):
        context = browser.new_context(viewport=viewport or DESKTOP, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(served.address)
        page.errors = errors
        if waits:
            page.wait_for_selector("#status:not([data-state=busy])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    # `blob:` addresses of downloads have no host.
    assert hosts <= {None, "127.0.0.1"}
