"""What every answer promises of its headers, status by status, through the real Envoy."""

import httpx
import pytest

from .callers import CHAT, chat
from .marks import SYSTEM

pytestmark = SYSTEM

QUOTA = {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"}


def answered(status):
    async def script(_received, reply):
        await reply.whole(b'{"error": {"message": "no"}}', status=status, x_request_id="the server's own")

    return script


def promised(answer, *, quota):
    """What holds for each answer; `quota` says whether it describes the tightest limit."""
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert answer.headers["x-request-id"] not in ("", "mine", "the server's own")
    found = {name for name in answer.headers if name.startswith("x-ratelimit-")}
    assert found == (QUOTA if quota else set())
    return answer.headers


@pytest.mark.parametrize("status", [200, 400, 404, 422, 429, 500, 503])
async def test_whatever_the_model_server_answers_describes_the_limit(scripted_caller, upstream, status):
    if status != 200:
        upstream.script = answered(status)
    answer = await scripted_caller.post(headers={"x-request-id": "mine"})
    assert answer.status_code == status
    promised(answer, quota=True)


async def test_a_stream_describes_the_limit(scripted_caller):
    promised(await scripted_caller.post(chat(stream=True)), quota=True)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (CHAT, b"{}", {}, 400),
        ("/v1/messages", b"{", {}, 400),
        (CHAT, None, {"authorization": ""}, 401),
        ("/v1/generate", None, {}, 404),
        (CHAT, None, {"content-encoding": "gzip"}, 415),
    ],
)
async def test_what_is_refused_before_its_limits_are_known_has_a_request_id(
    scripted_caller, path, body, headers, status
):
    answer = await scripted_caller.post(body, path=path, headers=headers)
    assert answer.status_code == status
    assert "retry-after" not in promised(answer, quota=False)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize(("limit", "in_vain"), [(10, True), (100, False)])
async def test_over_the_limit_all_is_told_that_a_client_needs(scripted_caller, path, limit, in_vain):
    await scripted_caller.limit(sa_limit=limit)
    answer = await scripted_caller.post(path=path, max_tokens=60)
    while answer.status_code == 200:  # each costs a few tokens
        answer = await scripted_caller.post(path=path, max_tokens=60)
    assert answer.status_code == 429
    headers = promised(answer, quota=True)
    assert headers["x-should-retry"] == "false"
    assert ("retry-after" in headers) is not in_vain


async def test_a_request_that_can_not_be_served_has_the_id_that_the_log_has(scripted, before, scripted_caller):
    def nowhere(configuration):
        cluster = configuration.cluster("model")["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
        cluster["endpoint"]["address"]["socket_address"]["port_value"] = 1

    async with before(scripted, change=nowhere) as stack:
        answer = await scripted_caller.on(stack).post()
        assert isinstance(answer, httpx.Response)
        assert answer.status_code == 503
        assert answer.headers["x-request-id"]
    assert (await scripted_caller.entry())["charge"] == 0
