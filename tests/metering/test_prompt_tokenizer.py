import asyncio
import base64
import hashlib
import json
import os
import sys
import threading
import time

import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from extproc.metering.prompt_tokenizer import (
    Assignment,
    CountingOptions,
    PromptCounter,
    TokenizerError,
    load_counter,
    load_tokenizer,
)

pytestmark = pytest.mark.real_time  # threads that hang, and how long a tokenizer takes

LINES = ["the quick brown fox jumps over the lazy dog", "def f(x): return x ** 2", "größer 世界 🌍"] * 3
PATTERN = r"\s+(?!\S)|\s+|[^\s\p{L}]+|\p{L}+"


# Fakes.


def words(text):
    return len(text.split())


class Gate:
    """A tokenizer that does not go on before it is let."""

    def __init__(self):
        self.texts = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, text):
        self.texts.append(text)
        self.entered.release()
        assert self.opened.wait(20)
        return words(text)

    async def is_entered(self):
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


class Panic(BaseException):
    """What a panic in Rust comes as."""


@pytest.fixture
def counters():
    made = []

    def make(*tokenizers, **options):
        skipped = []
        counter = PromptCounter(tokenizers, skipped.append, CountingOptions(**({"timeout_s": 20.0} | options)))
        made.append(counter)
        return counter, skipped

    yield make
    for counter in made:
        counter.close()


def raising(error):
    def tokenizer(text):
        raise error

    return tokenizer


LONG = "word " * 1000

# Which model, how large.


async def test_the_texts_of_a_prompt_are_counted_one_by_one_and_added(counters):
    counter, skipped = counters(("*", words))
    assert await counter.count("m", ["a b", "", "c"]) == 3
    assert await counter.count("m", [LONG, "a b", LONG]) == 2002
    assert await counter.count("m", []) == 0
    assert skipped == []


async def test_the_first_glob_that_matches_has_the_say_and_a_model_without_one_is_not_counted(counters):
    counter, skipped = counters(("qwen-*", lambda _: 1), ("*-base", lambda _: 2))
    names = ("qwen-7b-base", "llama-base", "gpt")
    assert [await counter.count(model, ["x"]) for model in names] == [1, 2, None]
    assert [counter.knows(model) for model in names] == [True, True, False]
    assert skipped == []


@pytest.mark.parametrize(
    ("texts", "counted"),
    [
        (["x" * 1000], True),
        (["x" * 1001], False),
        (["x" * 484, "x" * 484], True),
        (["x" * 484, "x" * 485], False),
        (["ü" * 500], True),
        (["ü" * 501], False),
        (["🌍" * 251], False),
        ([""] * 32, True),
        ([""] * 34, False),
        (["\ud800" * 334], False),
    ],
)
@pytest.mark.parametrize("inline_bytes", [0, 4096])
async def test_a_prompt_above_the_cap_is_not_counted(counters, texts, counted, inline_bytes):
    counter, skipped = counters(("*", len), max_bytes=1032, inline_bytes=inline_bytes)
    assert (await counter.count("m", texts) is not None) is counted
    assert skipped == ([] if counted else ["too_large"])


async def test_a_huge_list_of_texts_is_read_no_further_than_the_cap(counters):
    read = []
    counter, skipped = counters(("*", len), max_bytes=1000)
    assert await counter.count("m", Noting([""] * 10_000, read)) is None
    assert skipped == ["too_large"]
    assert len(read) == 32


class Noting:
    def __init__(self, texts, read):
        self._texts, self._read = texts, read

    def __iter__(self):
        return (self._read.append(text) or text for text in self._texts)


@pytest.mark.parametrize(("size", "inline"), [(480, True), (481, False)])
async def test_a_small_prompt_is_counted_at_once_and_a_larger_one_by_a_thread(counters, size, inline):
    by = []
    counter, _ = counters(("*", lambda _: by.append(threading.current_thread()) or 7))
    assert await counter.count("m", ["x" * size]) == 7
    assert [thread is threading.current_thread() for thread in by] == [inline]


# Time, room, faults.


async def test_the_loop_goes_on_while_a_prompt_is_counted(counters):
    gate = Gate()
    counter, _ = counters(("*", gate))
    counting = asyncio.create_task(counter.count("m", [LONG]))
    await gate.is_entered()
    assert not counting.done()
    gate.opened.set()
    assert await counting == 1000


async def test_nobody_waits_longer_than_the_time_that_is_set(counters):
    gate = Gate()
    counter, skipped = counters(("*", gate), timeout_s=0.01)
    assert await counter.count("m", [LONG, "never counted"]) is None
    assert skipped == ["slow"]
    gate.opened.set()
    counter._pool.shutdown(wait=True)
    assert gate.texts == [LONG]


async def test_at_most_so_many_prompts_run_and_wait_and_further_ones_are_not_counted(counters):
    gate = Gate()
    counter, skipped = counters(("*", gate), threads=2, waiting=1)
    counting = [asyncio.create_task(counter.count("m", [LONG])) for _ in range(3)]
    await gate.is_entered()
    await gate.is_entered()
    assert await counter.count("m", [LONG]) is None
    assert skipped == ["busy"]
    assert len(gate.texts) == 2
    gate.opened.set()
    assert await asyncio.gather(*counting) == [1000] * 3
    assert await counter.count("m", [LONG]) == 1000
    assert skipped == ["busy"]


async def test_a_prompt_that_was_given_up_keeps_its_room_until_its_thread_is_through(counters):
    gate = Gate()
    counter, skipped = counters(("*", gate), threads=1, waiting=1, timeout_s=0.01)
    for _ in range(2):
        assert await counter.count("m", [LONG]) is None
    assert await counter.count("m", [LONG]) is None
    assert skipped == ["slow", "slow", "busy"]
    gate.opened.set()
    await asyncio.wrap_future(counter._pool.submit(lambda: None))
    assert gate.texts == [LONG]  # what waited in vain was not counted
    await counter.count("m", [LONG])
    assert "busy" not in skipped[3:]


@pytest.mark.parametrize("waiting", [False, True])
async def test_the_room_of_a_request_that_is_cancelled_comes_back(counters, waiting):
    gate = Gate()
    counter, skipped = counters(("*", gate), threads=1, waiting=1)
    first = asyncio.create_task(counter.count("m", [LONG]))
    await gate.is_entered()
    cancelled = first
    if waiting:
        cancelled = asyncio.create_task(counter.count("m", [LONG, LONG]))
        await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.opened.set()
    if waiting:
        assert await first == 1000
    await asyncio.wrap_future(counter._pool.submit(lambda: None))
    assert len(gate.texts) == 1
    both = await asyncio.gather(counter.count("m", [LONG]), counter.count("m", [LONG]))
    assert both == [1000, 1000]
    assert skipped == []


@pytest.mark.parametrize("error", [ValueError("no"), UnicodeEncodeError("utf-8", "x", 0, 1, "no"), Panic("stack")])
@pytest.mark.parametrize("text", ["short", LONG])
async def test_a_tokenizer_that_fails_counts_nothing_and_costs_no_room(counters, error, text):
    counter, skipped = counters(("bad", raising(error)), ("*", words), threads=1, waiting=0)
    assert [await counter.count("bad", [text]) for _ in range(3)] == [None] * 3
    assert skipped == ["failed"] * 3
    assert await counter.count("m", [text]) == words(text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_the_end_of_the_process_is_no_failure_of_a_tokenizer(counters, error):
    counter, skipped = counters(("*", raising(error)))
    counting = counter.count("m", ["short"])
    with pytest.raises(error):
        counting.send(None)
    assert skipped == []


# Hugging Face.


def trained():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<s>", "<|end|>"])
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.fixture
def hugging_face(tmp_path):
    def save(change=lambda tokenizer: None):
        tokenizer = trained()
        change(tokenizer)
        path = tmp_path / "tokenizer.json"
        tokenizer.save(str(path))
        return f"hf:{path}"

    return save


@pytest.mark.parametrize("text", ["", "the lazy dog", "größer 🌍\n\n  x", "世" * 700, LONG])
async def test_a_prompt_is_counted_as_hugging_faces_tokenizer_does(counters, hugging_face, text):
    expected = len(trained().encode(text, add_special_tokens=False).ids)
    counter, skipped = counters(("*", load_tokenizer(hugging_face())))
    assert await counter.count("m", [text]) == expected
    assert await counter.count("m", [text] * 3) == 3 * expected
    assert skipped == []


def test_a_special_token_in_a_text_is_counted_as_the_text_that_it_is(hugging_face):
    count = load_tokenizer(hugging_face())
    assert count("<|end|>") == len("<|end|>")
    assert count("<s>") == len("<s>")


def test_a_file_that_cuts_texts_or_fills_them_up_does_neither(hugging_face):
    def cut_and_fill(tokenizer):
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=100)

    count = load_tokenizer(hugging_face(cut_and_fill))
    plain = trained()
    for text in ("dog", "the quick brown fox " * 5):
        assert count(text) == len(plain.encode(text, add_special_tokens=False).ids)


async def test_a_text_that_is_no_unicode_is_not_counted(counters, hugging_face):
    counter, skipped = counters(("*", load_tokenizer(hugging_face())))
    assert await counter.count("m", ["a\ud800b"]) is None
    assert skipped == ["failed"]


async def test_the_interpreter_is_not_locked_while_hugging_faces_tokenizer_runs(counters, hugging_face):
    counter, _ = counters(("*", load_tokenizer(hugging_face())))

    async def longest_standstill():
        """As a share of the whole time: with the lock held it is nearly all of it."""
        start = last = time.perf_counter()
        longest = 0.0
        counting = asyncio.create_task(counter.count("m", ["the quick brown fox, 12 größer\n" * 6000]))
        while not counting.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert counting.result() > 6000
        return longest / (last - start)

    # A busy host may stand still by itself: one good run of three is a proof all the same.
    assert min([await longest_standstill() for _ in range(3)]) < 0.5


def test_hugging_faces_own_threads_are_off_unless_someone_set_them(monkeypatch, hugging_face):
    spec = hugging_face()
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    load_tokenizer(spec)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    load_tokenizer(spec)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", json.dumps({"model": {"type": "?"}})])
def test_a_file_that_is_missing_or_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json can't be used as a tokenizer\.json: "):
        load_tokenizer(f"hf:{path}")


# tiktoken.


def ranks():
    pairs = [b"th", b"the", b"wo", b"rd", b"word", b"word ", b"aa", b"aaaa", b"  ", b"    ", b"^^"]
    return {bytes([byte]): byte for byte in range(256)} | {pair: 256 + at for at, pair in enumerate(pairs)}


@pytest.fixture
def encodings(monkeypatch):
    """Lets tiktoken know an encoding of ours, as a plugin would."""
    tiktoken.list_encoding_names()  # it reads its plugins once

    def know(name, make_ranks):
        def constructor():
            return {
                "name": name,
                "pat_str": PATTERN,
                "mergeable_ranks": make_ranks(),
                "special_tokens": {"<|end|>": 999},
            }

        monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, name, constructor)
        monkeypatch.delitem(tiktoken.registry.ENCODINGS, name, raising=False)

    yield know
    tiktoken.registry.ENCODINGS.pop("tiny", None)


@pytest.mark.parametrize("text", ["", "the words", "größer 🌍\n\n  x", LONG, "a\ud800b"])
async def test_a_prompt_is_counted_as_tiktoken_does(counters, encodings, text):
    encodings("tiny", ranks)
    counter, skipped = counters(("*", load_tokenizer("tiktoken:tiny")))
    expected = len(tiktoken.get_encoding("tiny").encode(text, disallowed_special=()))
    assert await counter.count("m", [text]) == expected
    assert skipped == []


def test_a_special_token_of_tiktokens_is_counted_as_the_text_that_it_is(encodings):
    encodings("tiny", ranks)
    assert load_tokenizer("tiktoken:tiny")("<|end|>") == len("<|end|>")


@pytest.mark.parametrize("piece", ["a", " ", "^", "\u3000"])
def test_a_long_run_of_one_character_takes_time_in_proportion_to_its_length(encodings, piece):
    # Versions before 0.14 take ten seconds and more.
    encodings("tiny", ranks)
    count = load_tokenizer("tiktoken:tiny")
    start = time.thread_time()
    assert count(piece * 200_000) > 0
    assert time.thread_time() - start < 3


async def test_a_panic_of_tiktokens_is_a_prompt_that_is_not_counted(counters, encodings):
    # The panic's trace on stderr is Rust's own. It takes a prompt far above the cap that is set by default.
    encodings("tiny", ranks)
    counter, skipped = counters(("*", load_tokenizer("tiktoken:tiny")), max_bytes=8 << 20)
    assert await counter.count("m", [" " * (3 << 20) + "x"]) is None
    assert skipped == ["failed"]
    assert await counter.count("m", [LONG]) > 0


def test_a_plugin_may_read_its_ranks_from_a_file_of_this_host(encodings, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tiny.tiktoken"
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items())
    path.write_bytes(b"".join(lines))
    encodings("tiny", lambda: tiktoken.load.load_tiktoken_bpe(str(path)))
    assert load_tokenizer("tiktoken:tiny")("word ") == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_is_not_there_or_damaged_is_not_downloaded(encodings, tmp_path, monkeypatch, damaged):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    url = "http://127.0.0.1:9/tiny.tiktoken"
    if damaged:
        (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_text("junk")
    encodings("tiny", lambda: tiktoken.load.load_tiktoken_bpe(url, expected_hash="0" * 64))
    read_file = tiktoken.load.read_file
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer("tiktoken:tiny")
    assert str(caught.value) == (
        "the file of tiny is not on this host, and nothing is downloaded: "
        f"put {url} into the folder that TIKTOKEN_CACHE_DIR names, under tiktoken's name for it"
    )
    assert tiktoken.load.read_file is read_file


@pytest.mark.parametrize("error", [OSError("no such place"), ValueError("odd")])
def test_an_encoding_that_can_not_be_read_is_named_with_the_reason(encodings, error):
    encodings("tiny", raising_maker(error))
    with pytest.raises(TokenizerError, match=f"tiny can't be read: {error}"):
        load_tokenizer("tiktoken:tiny")


def raising_maker(error):
    def make():
        raise error

    return make


def test_an_encoding_that_tiktoken_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(TokenizerError, match=r"no encoding 'o300k'; it has .*o200k_base"):
        load_tokenizer("tiktoken:o300k")


# All together.


@pytest.mark.parametrize("spec", ["tiktoken:o200k_base", "hf:/models/tokenizer.json"])
def test_without_the_package_the_setting_and_the_extra_are_named(monkeypatch, spec):
    for package in ("tiktoken", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        TokenizerError, match=r"models\.3\.tokenizer: .* not installed: install tokenweir\[tokenizers\]"
    ):
        load_counter([Assignment("*", spec, "models.3.tokenizer")], lambda _: None)


async def test_models_share_a_tokenizer_and_each_glob_gets_its_own(hugging_face, encodings, monkeypatch):
    encodings("tiny", ranks)
    spec = hugging_face()
    read = []
    from_file = Tokenizer.from_file
    monkeypatch.setattr(Tokenizer, "from_file", lambda path: read.append(path) or from_file(path))
    assigned = [("a-*", spec), ("b-*", "tiktoken:tiny"), ("*", spec)]
    skipped = []
    counter = load_counter([Assignment(glob, s, "models.0.tokenizer") for glob, s in assigned], skipped.append)
    expected = {"a-1": trained().encode("the word"), "b-1": tiktoken.get_encoding("tiny").encode("the word")}
    assert await counter.count("a-1", ["the word"]) == len(expected["a-1"]) - 1
    assert await counter.count("b-1", ["the word"]) == len(expected["b-1"])
    assert await counter.count("c-1", ["the word"]) == len(expected["a-1"]) - 1
    assert len(read) == 1
    assert skipped == []
    counter.close()
