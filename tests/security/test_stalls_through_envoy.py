"""The same through the real Envoy: while answers of the dearest kinds pass, another caller's requests are all served."""

import asyncio
import json
import statistics
import time

import pytest

from tests.sizes import sampled
from tests.system.callers import chat
from tests.system.marks import SYSTEM
from tests.system.upstreams import ANSWER

from .answer_shapes import SHAPES

pytestmark = SYSTEM

_ATTACKERS = 3
_EVERY_S = 0.05
_SENT = [
    "events of a letter, gzip",
    "events of nothing, CR, gzip",
    "data of an empty object, gzip",
    "passes of nothing, gzip",
    "choices of nothing, as an event",
    "log probabilities, plain",
]


@pytest.mark.parametrize("name", sampled(_SENT, 2))
async def test_while_dear_answers_pass_every_request_of_another_caller_is_served(
    name, scripted_caller, upstream, capsys
):
    messages = SHAPES[name].messages()
    head, *answer = [message for message in messages if message.WhichOneof("request").startswith("response")]
    headers = {h.key: h.raw_value.decode() for h in head.response_headers.headers.headers}
    pieces = [message.response_body.body for message in answer if message.response_body.body]
    encoding = {"content_encoding": headers["content-encoding"]} if "content-encoding" in headers else {}

    async def script(received, reply):
        if received.json["messages"][0]["content"] == "attack":
            await reply.stream(pieces, content_type=headers["content-type"], **encoding)
        else:
            await reply.whole(_PONG)

    upstream.script = script
    bystander = scripted_caller.colleague(f"{scripted_caller.account}-2")
    async with bystander.http() as client:
        alone = [await _ask(client) for _ in range(20)]
        attackers = [asyncio.create_task(_attack(scripted_caller)) for _ in range(_ATTACKERS)]
        beside = []
        while not all(task.done() for task in attackers):
            beside.append(await _ask(client))
            await asyncio.sleep(_EVERY_S)
    sizes = await asyncio.gather(*attackers)
    entries = await scripted_caller.entries(_ATTACKERS)
    assert {status for status, _ in (*alone, *beside)} == {200}
    assert len(set(sizes)) == 1
    assert all(entry["charge"] > 0 for entry in entries)
    with capsys.disabled():
        print(f"\n{name}: {len(beside)} asked; ms alone {_times(alone)}, beside {_times(beside)}")  # noqa: T201 - the figure


_PONG = json.dumps(ANSWER).encode()


async def _attack(caller):
    async with caller.http(timeout=120) as client:
        answer = await client.post(
            "/v1/chat/completions", json=chat(messages=[{"role": "user", "content": "attack"}])
        )
    assert answer.status_code == 200
    return len(answer.content)


async def _ask(client):
    begun = time.perf_counter()
    answer = await client.post("/v1/chat/completions", json=chat())
    return answer.status_code, 1000 * (time.perf_counter() - begun)


def _times(asked):
    times = sorted(took for _, took in asked)
    if not times:
        return "none"
    return f"{statistics.median(times):.0f} (p99 {times[len(times) * 99 // 100]:.0f}, most {times[-1]:.0f})"
