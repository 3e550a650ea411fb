"""Prompts are counted in a process of its own: the loop goes on, and nobody waits longer than is set."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from extproc.core.request.endpoints import Endpoint
from extproc.metering.prompt_counter import CountingOptions, PromptCounter, load_counter
from extproc.metering.prompt_tokenizer import Assignment, Skipped, TokenizerError

from .test_prompt_tokenizer import trained
from .tokenizers import TOKENIZERS

pytestmark = pytest.mark.real_time  # a process that sleeps
CHAT = Endpoint.CHAT_COMPLETIONS
LONG = "word " * 1000


def chat(*texts):
    return json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}).encode()


async def ready(counter):
    counter.start()
    async with asyncio.timeout(60):
        while not counter._pool.ready:  # noqa: ASYNC110 - a process starts
            await asyncio.sleep(0.01)


@pytest.fixture
async def counters():
    made = []

    async def make(**options):
        skipped = []
        given = CountingOptions(**({"timeout_s": 30.0} | options))
        counter = PromptCounter(TOKENIZERS, skipped.append, given, "tests.metering.tokenizers:prepared")
        made.append(counter)
        await ready(counter)
        return counter, skipped

    yield make
    for counter in made:
        await counter.aclose()


async def test_small_and_large_prompts_are_counted(counters):
    counter, skipped = await counters()
    assert await counter.count("m", CHAT, chat("a b", "c")) == 3
    assert await counter.count("m", CHAT, chat(LONG, "a b")) == 1002
    assert await counter.count("m", CHAT, b"") is None
    assert await counter.count("m", CHAT, b"{" * 1000) is None
    assert skipped == []
    assert counter.knows("m")


async def test_a_prompt_that_is_too_large_or_fails_is_not_counted_and_harms_no_other(counters):
    counter, skipped = await counters()
    assert await counter.count("m", CHAT, chat("x" * (257 << 10))) is None
    assert await counter.count("m", CHAT, b"[" * (2 << 20)) is None
    assert await counter.count("bad", CHAT, chat(LONG)) is None
    assert await counter.count("bad", CHAT, chat("x")) is None
    assert skipped == [Skipped.TOO_LARGE] * 2 + [Skipped.FAILED] * 2
    assert await counter.count("m", CHAT, chat(LONG)) == 1000


async def test_the_loop_goes_on_while_a_prompt_is_counted(counters):
    counter, _ = await counters()
    counting = asyncio.create_task(counter.count("m", CHAT, chat(LONG + "wait")))
    turns, before = 0, time.thread_time()
    while not counting.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 5
    assert time.thread_time() - before < 0.15
    assert await counting == 1001


async def test_nobody_waits_longer_than_is_set_and_what_nobody_waits_for_is_not_counted(counters):
    counter, skipped = await counters(timeout_s=0.05, waiting=4)
    asked = [counter.count("m", CHAT, chat(LONG + "wait " * 5)) for _ in range(8)]
    assert await asyncio.gather(*asked) == [None] * 8
    assert set(skipped) == {Skipped.BUSY, Skipped.SLOW}
    async with asyncio.timeout(60):
        while await counter.count("m", CHAT, chat(LONG)) is None:  # noqa: ASYNC110 - until there is room
            await asyncio.sleep(0.01)


async def test_a_process_that_ends_is_replaced(counters):
    counter, _ = await counters()
    pid = _child()
    os.kill(pid, signal.SIGKILL)
    assert await counter.count("m", CHAT, chat(LONG)) == 1000
    assert _child() != pid


def _child():
    """The id of the process that counts."""
    of = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    (pid,) = (pid for pid in of if b"tests.metering.tokenizers" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(pid)


async def test_before_the_process_is_ready_large_prompts_are_not_counted():
    skipped = []
    counter = PromptCounter(TOKENIZERS, skipped.append, CountingOptions(), "tests.metering.tokenizers:prepared")
    assert await counter.count("m", CHAT, chat(LONG)) is None
    assert await counter.count("m", CHAT, chat("a b")) == 2
    assert skipped == [Skipped.BUSY]
    await counter.aclose()


async def test_the_tokenizers_of_the_settings_are_loaded_in_the_process_too(tmp_path):
    path = tmp_path / "tokenizer.json"
    trained().save(str(path))
    counter = load_counter([Assignment("m", f"hf:{path}", "models.0")], [].append, CountingOptions(timeout_s=30))
    await ready(counter)
    expected = len(trained().encode(LONG, add_special_tokens=False).ids)
    assert await counter.count("m", CHAT, chat(LONG)) == expected
    assert await counter.count("other", CHAT, chat(LONG)) is None
    await counter.aclose()


def test_a_tokenizer_that_can_not_be_loaded_is_named_with_its_setting():
    with pytest.raises(TokenizerError, match=r"models.0: /none/tokenizer.json can't be used"):
        load_counter([Assignment("m", "hf:/none/tokenizer.json", "models.0")], [].append)
