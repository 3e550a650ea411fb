"""Alerts, from a request through the gateway to the receiver: one signed POST per threshold, and nobody waits for it."""

import asyncio
import json

import pytest
from standardwebhooks import Webhook

from .callers import scrape, total
from .marks import SYSTEM
from .stacks import SECRET
from .upstreams import ANSWER
from .waiting import until

pytestmark = SYSTEM


async def taken(_received, reply):
    await reply.whole(b"", status=204)


# Two processors: what both see is told once.
@pytest.fixture
def anybody(pair_caller, upstream, receiver):
    upstream.script = as_asked
    receiver.reset()
    receiver.script = taken
    return pair_caller


def alerts_of(caller, receiver):
    """Return the alerts that were posted about this caller's tenant, in order."""
    return [alert for alert in map(checked, receiver.received) if alert["tenant"] == caller.tenant]


async def as_asked(received, reply):
    """Uses as many tokens as a header says."""
    tokens = int(received.header("x-use")[0])
    usage = {"prompt_tokens": 1, "completion_tokens": tokens - 1, "total_tokens": tokens}
    await reply.whole(json.dumps(ANSWER | {"usage": usage}).encode())


async def use(caller, tokens):
    # A claim of far more output than the client's bound would not be believed.
    answer = await caller.post(max_tokens=max(1, tokens - 4096), headers={"x-use": str(tokens)})
    assert answer.status_code == 200
    await caller.settled()


def checked(received):
    """The alert in a POST, after the scheme's public library verified its signature and time."""
    headers = {
        f"webhook-{name}": received.header(f"webhook-{name}")[0] for name in ("id", "timestamp", "signature")
    }
    assert Webhook(SECRET).verify(received.body, headers) == received.json
    assert (received.method, received.path) == ("POST", "/hooks/in?team=7")
    assert received.header("content-type") == ["application/json"]
    assert received.header("webhook-id") == [received.json["id"]]
    return received.json


async def test_each_threshold_is_told_once_signed(anybody, receiver):
    await anybody.limit(sa_limit=10_000)
    delivered = await total(anybody.stack, "tokenweir_webhook_posts_total")
    expected = []
    for tokens, threshold in ((5000, None), (2998, None), (2, 80), (1498, None), (2, 95), (400, None), (100, 100)):
        await use(anybody, tokens)
        if threshold is not None:
            expected.append(threshold)
            await until(lambda: len(alerts_of(anybody, receiver)) == len(expected), f"{threshold} % is told")
    alerts = alerts_of(anybody, receiver)
    assert [alert["threshold_percent"] for alert in alerts] == [80, 95, 100]
    assert [(alert["used"], alert["used_percent"]) for alert in alerts] == [(8000, 80), (9500, 95), (10_000, 100)]
    for alert in alerts:
        assert (alert["tenant"], alert["service_account"]) == (anybody.tenant, anybody.account)
        assert (alert["scope"], alert["unit"], alert["window"], alert["limit"]) == (
            "service_account", "tokens", "day", 10_000,
        )  # fmt: skip
    assert len({alert["id"] for alert in alerts}) == 3
    assert await total(anybody.stack, "tokenweir_webhook_posts_total") - delivered >= 3
    # What is denied at the limit crosses nothing.
    assert (await anybody.post(max_tokens=1, headers={"x-use": "1"})).status_code == 429
    for processor in anybody.stack.processors:
        assert SECRET not in processor.log_path.read_text(encoding="utf-8")


async def test_one_request_may_cross_several_thresholds_of_several_limits(anybody, receiver):
    await anybody.limit(sa_limit=1000, ip_limit=1150)
    await use(anybody, 1100)
    await until(lambda: len(alerts_of(anybody, receiver)) == 5, "all five are told")
    told = {(alert["scope"], alert["threshold_percent"]) for alert in alerts_of(anybody, receiver)}
    own, both = "service_account", "service_account+client_ip"
    assert told == {(own, 80), (own, 95), (own, 100), (both, 80), (both, 95)}
    assert await total(anybody.stack, "tokenweir_queue_lost_total") == 0


async def test_many_requests_at_once_cross_a_threshold_once(anybody, receiver):
    await anybody.limit(sa_limit=10_000)
    answers = await asyncio.gather(*(anybody.post(max_tokens=1, headers={"x-use": "240"}) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert await anybody.settled() == 9600
    await until(lambda: len(alerts_of(anybody, receiver)) == 2, "two thresholds are told")
    await use(anybody, 1)
    assert {alert["threshold_percent"] for alert in alerts_of(anybody, receiver)} == {80, 95}


async def test_no_request_waits_for_a_receiver_that_hangs(anybody, receiver):
    go = asyncio.Event()

    async def hang(received, reply):
        await go.wait()
        await taken(received, reply)

    receiver.script = hang
    await anybody.limit(sa_limit=1000, ip_limit=1000)
    await use(anybody, 850)
    await until(lambda: len(alerts_of(anybody, receiver)) == 2, "the receiver hangs on two")
    # The receiver has answered none of them, and these are decided, answered, settled and recorded.
    for _ in range(3):
        await use(anybody, 10)
    assert len(await anybody.entries(4)) == 4
    assert not go.is_set()
    go.set()
    await until(lambda: nothing_waits(anybody.stack), "both are delivered")
    assert len(alerts_of(anybody, receiver)) == 2


async def nothing_waits(stack):
    return all(metrics['tokenweir_queue_items{queue="webhook"}'] == 0 for metrics in await scrape(stack))


async def test_what_a_receiver_could_not_take_is_sent_again(anybody, receiver):
    async def first_not(received, reply):
        if received.json["tenant"] == anybody.tenant and len(alerts_of(anybody, receiver)) == 1:
            await reply.whole(b"busy", status=503)
        else:
            await taken(received, reply)

    receiver.script = first_not
    await anybody.limit(sa_limit=1000)
    await use(anybody, 850)
    await until(lambda: len(alerts_of(anybody, receiver)) == 2, "it is sent again")
    first, again = alerts_of(anybody, receiver)
    assert first == again


async def test_shadow_limits_alert_nobody(anybody, receiver):
    await anybody.bind(
        {"scope": "service_account", "window": "day", "amount": 10, "mode": "shadow"}, sa_limit=1000
    )
    await use(anybody, 500)
    await use(anybody, 350)
    await until(lambda: alerts_of(anybody, receiver), "the other limit alerts")
    (alert,) = alerts_of(anybody, receiver)
    assert (alert["limit"], alert["shadow"]) == (1000, False)
