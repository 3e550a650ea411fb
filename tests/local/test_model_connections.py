"""Faults of the sample model that need a connection: it is reset, or its client leaves."""

import httpx
import pytest

from extproc.local.model import FAULT_HEADER, Fault, SampleModel, running
from tests.plaintext import plaintext_client

from .model_calls import CALLS, STREAMS, events_of, payload
from .test_model_faults import OPENING, usages
from .test_model_server import IMPATIENT, settled

CHAT = CALLS["chat_completions"]
BROKEN = (httpx.ReadError, httpx.RemoteProtocolError)


@pytest.fixture
def app():
    return SampleModel()


@pytest.fixture
async def wire(app):
    async with running(app) as port, plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


def streaming(wire, call, fault):
    return wire.stream("POST", call.path, headers={FAULT_HEADER: fault}, **payload(call))


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_cut_off_after_two_tokens(app, wire, name):
    seen = []

    async def read():
        async with streaming(wire, STREAMS[name].streamed(), Fault.RESET_MID_STREAM) as response:
            async for part in response.aiter_raw():
                seen.append(part)  # noqa: PERF401 - what came before the cut counts

    with pytest.raises(BROKEN):
        await read()
    assert b"".join(seen).count(b"\n\n") == 3 + OPENING.get(name, 0)
    told = app.ledger.report()["by_endpoint"][name]
    assert (told["completion_tokens"] in {2, 3}, told["aborted"]) == (True, 1)
    # The server goes on serving.
    assert (await wire.post(CHAT.path, json=CHAT.body)).status_code == 200


@pytest.mark.parametrize("name", CALLS)
async def test_a_reset_breaks_a_plain_answer_in_its_middle(wire, name):
    with pytest.raises(BROKEN):
        await wire.post(CALLS[name].path, headers={FAULT_HEADER: Fault.RESET_MID_STREAM}, **payload(CALLS[name]))


async def test_truncated_json_ends_properly_but_too_early(wire):
    answer = await wire.post(CHAT.path, json=CHAT.body, headers={FAULT_HEADER: Fault.TRUNCATED_JSON})
    assert len(answer.content) == int(answer.headers["content-length"])
    with pytest.raises(ValueError):
        answer.json()


async def test_a_hanging_answer_lasts_until_the_client_leaves(app, wire):
    with pytest.raises(httpx.ReadTimeout):
        await wire.post(CHAT.path, json=CHAT.body, headers={FAULT_HEADER: Fault.HANG}, timeout=IMPATIENT)
    assert app.ledger.report()["requests"] == 0


@pytest.mark.parametrize("name", STREAMS)
async def test_late_usage_is_sent_long_before_the_end(app, wire, name):
    """A client that has seen the usage and leaves before the end of the body."""
    seen = b""
    async with streaming(wire, STREAMS[name].streamed(), Fault.LATE_USAGE) as response:
        async for part in response.aiter_raw():
            seen += part
            if not seen.endswith(b"\n\n"):
                continue
            documents = [document for _, document in events_of(seen.decode())]
            if usages(documents) and usages(documents)[-1].get("output_tokens", 1):
                break
    told = app.ledger.report()["by_endpoint"][name]
    assert (told["requests"], told["aborted"]) == (1, 0)
    last = usages(documents)[-1]
    assert last.get("completion_tokens", last.get("output_tokens")) == told["completion_tokens"]
    assert b"[DONE]" not in seen
    assert b"message_stop" not in seen


async def test_a_client_that_leaves_before_a_ready_answer_is_counted_as_aborted():
    app = SampleModel(ttft_s=60)
    async with running(app) as port, plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/images/generations", json=CALLS["images"].body, timeout=IMPATIENT)
        told = (await settled(app.ledger))["by_endpoint"]["images"]
    assert (told["requests"], told["completion_tokens"]) == (1, 0)
    assert told["prompt_tokens"] > 0
