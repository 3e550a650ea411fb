"""The server on a real socket: headers, pace, clients that leave, and the command that starts it."""

import asyncio
import json
import subprocess
import sys
import time

import httpx
import pytest

from extproc.local.model import SampleModel, running
from extproc.local.model.server import main
from tests.plaintext import WITHOUT_TLS, plaintext_client

CHAT = "/v1/chat/completions"
NEVER_S = 60.0
# Of a client that leaves when it has waited for so long for an answer, however long it takes to ask.
IMPATIENT = httpx.Timeout(NEVER_S, read=0.1)
LONG = {
    "model": "tokenweir-sample",
    "messages": [{"role": "user", "content": "tell me a story"}],
    "ignore_eos": True,
    "max_tokens": 30000,
}


async def settled(ledger):
    """The ledger's report once a cut-off generation is in it."""
    async with asyncio.timeout(NEVER_S):
        while not ledger.report()["aborted"]:  # noqa: ASYNC110  the server has no event for tests
            await asyncio.sleep(0.005)
    return ledger.report()


async def test_headers_are_those_of_a_uvicorn():
    async with (
        running(SampleModel()) as port,
        plaintext_client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        plain = await client.post(CHAT, json=LONG | {"max_tokens": 2})
        assert list(plain.headers) == ["date", "server", "content-length", "content-type", "vary"]
        assert plain.headers["server"] == "uvicorn"
        stream = await client.post(CHAT, json=LONG | {"max_tokens": 2, "stream": True})
        assert list(stream.headers) == ["date", "server", "content-type", "vary", "transfer-encoding"]
        assert stream.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("tokens_per_second", [0, 200])
async def test_a_stream_ends_when_its_client_leaves(tokens_per_second):
    app = SampleModel(tokens_per_second=tokens_per_second)
    async with running(app) as port:
        async with (
            plaintext_client(base_url=f"http://127.0.0.1:{port}") as client,
            client.stream("POST", CHAT, json=LONG | {"stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            seen = [line async for _, line in azip(range(6), lines)]
        told = await settled(app.ledger)
        produced = told["completion_tokens"]
        # The role and two tokens have been read; the rest is what fits into the sockets' buffers.
        assert len([line for line in seen if line]) == 3
        assert 2 <= produced < 25000
        if tokens_per_second:
            assert produced < 1000
        assert told["total_tokens"] == told["prompt_tokens"] + produced
        # In the time of this one the other would have gone on.
        async with plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post(CHAT, json=LONG | {"max_tokens": 10})).status_code == 200
        assert app.ledger.report()["completion_tokens"] == produced + 10


async def azip(numbers, lines):
    for number in numbers:
        yield number, await anext(lines)


async def test_a_plain_answer_is_given_up_when_its_client_leaves():
    app = SampleModel(tokens_per_second=100)
    async with running(app) as port, plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
        asking = asyncio.create_task(client.post(CHAT, json=LONG))
        async with asyncio.timeout(NEVER_S):
            while not app.ledger.report()["completion_tokens"]:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.005)
        asking.cancel()
        told = await settled(app.ledger)
    assert (told["requests"], told["aborted"]) == (1, 1)
    assert 1 <= told["completion_tokens"] < 1000


async def test_a_client_that_leaves_before_the_first_token_has_its_prompt_counted():
    app = SampleModel(ttft_s=60)
    async with running(app) as port, plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=LONG | {"stream": True}, timeout=IMPATIENT)
        told = await settled(app.ledger)
    assert told["prompt_tokens"] > 0
    assert told["completion_tokens"] == 0


async def test_the_pace_is_kept():
    app = SampleModel(ttft_s=0.1, tokens_per_second=100)

    async def answered(choices):
        started = time.monotonic()
        await client.post(CHAT, json=LONG | {"max_tokens": 11, "n": choices})
        return time.monotonic() - started

    async with running(app) as port, plaintext_client(base_url=f"http://127.0.0.1:{port}") as client:
        # Ten intervals after the first token.
        one = await answered(1)
        assert one >= 0.2
        # The choices are made side by side. On a busy machine both may take longer, so it may try again.
        for _ in range(3):
            if await answered(30) < 10 * one:
                return
    raise AssertionError("thirty choices take ten times as long as one")


def test_the_command_tells_its_port_and_serves(tmp_path):
    port_file = tmp_path / "port"
    arguments = ["--model", "a", "--model", "b", "--max-model-len", "100", "--port-file", str(port_file)]
    command = [sys.executable, "-m", "extproc.local.model", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            port = json.loads(line)["port"]
            assert json.loads(line) == {"event": "listening", "port": port}
            assert int(port_file.read_text()) == port
            models = httpx.get(f"http://127.0.0.1:{port}/v1/models", verify=WITHOUT_TLS, trust_env=False).json()[
                "data"
            ]
            assert [(model["id"], model["max_model_len"]) for model in models] == [("a", 100), ("b", 100)]
        finally:
            process.terminate()
        assert process.stdout.read() == ""


def test_the_command_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        main(["--weights", "none"])
    assert "--weights" in capsys.readouterr().err
