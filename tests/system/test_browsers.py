"""Pages of another origin, with what docs/operators.md says that Envoy needs for them."""

import re
from pathlib import Path

import pytest_asyncio
import yaml

from .callers import CHAT, chat
from .marks import SYSTEM

pytestmark = SYSTEM

PAGE = Path(__file__).parents[2] / "docs/operators.md"
ORIGIN = "https://chat.example.com"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def as_documented(configuration):
    """Add the filter and the policy of the page."""
    (text,) = re.findall(r"```yaml\n(http_filters:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    documented = yaml.safe_load(text)
    filters = configuration.manager["http_filters"]
    filters[:0] = documented["http_filters"]
    [host] = configuration.manager["route_config"]["virtual_hosts"]
    host["typed_per_filter_config"] = documented["typed_per_filter_config"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(scripted, before):
    async with before(scripted, change=as_documented) as found:
        yield found


async def test_a_preflight_is_answered_without_a_token_and_reaches_no_model(gateway, scripted_caller, upstream):
    async with scripted_caller.on(gateway).stranger() as client:
        answer = await client.options(CHAT, headers={"origin": ORIGIN} | PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert upstream.received == []


async def test_another_origin_and_a_preflight_without_the_filter_are_refused(gateway, scripted_caller, upstream):
    for caller, origin in ((scripted_caller.on(gateway), "https://evil.example.com"), (scripted_caller, ORIGIN)):
        async with caller.stranger() as client:
            answer = await client.options(CHAT, headers={"origin": origin} | PREFLIGHT)
        assert answer.status_code == 401
        assert "access-control-allow-origin" not in answer.headers
    assert upstream.received == []


async def test_a_page_reads_the_answer_its_limit_and_a_refusal(gateway, scripted_caller):
    caller = scripted_caller.on(gateway)
    served = await caller.post(chat(), headers={"origin": ORIGIN})
    async with caller.stranger() as client:
        refused = await client.post(CHAT, json=chat(), headers={"origin": ORIGIN})
    assert (served.status_code, refused.status_code) == (200, 401)
    for answer in (served, refused):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert (await caller.entry())["charge"] == 7
