import base64
import hashlib
import json
import os
import sys
import time

import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from extproc.core.request.endpoints import Endpoint
from extproc.metering.prompt_tokenizer import (
    Assignment,
    Skipped,
    TokenizerError,
    Tokenizers,
    load_tokenizer,
    load_tokenizers,
)

pytestmark = pytest.mark.real_time  # how long a tokenizer takes

CHAT = Endpoint.CHAT_COMPLETIONS
LINES = ["the quick brown fox jumps over the lazy dog", "def f(x): return x ** 2", "größer 世界 🌍"] * 3
PATTERN = r"\s+(?!\S)|\s+|[^\s\p{L}]+|\p{L}+"


# Fakes.


def words(text):
    return len(text.split())


class Panic(BaseException):
    """What a panic in Rust comes as."""


def chat(*texts):
    """The prompt of a chat with these texts."""
    return json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}).encode()


def counted(count_tokens, *texts, most=256 << 10):
    return Tokenizers([("*", count_tokens)], most).count(0, CHAT, chat(*texts))


def raising(error):
    def tokenizer(text):
        raise error

    return tokenizer


LONG = "word " * 1000

# Which model, how large.


def test_the_texts_of_a_prompt_are_counted_one_by_one_and_added():
    assert counted(words, "a b", "", "c") == 3
    assert counted(words, LONG, "a b", LONG) == 2002
    assert counted(words) == 0


def test_the_first_glob_that_matches_has_the_say_and_a_model_without_one_is_not_counted():
    tokenizers = Tokenizers([("qwen-*", lambda _: 1), ("*-base", lambda _: 2)], 1000)
    assert [tokenizers.place(model) for model in ("qwen-7b-base", "llama-base", "gpt")] == [0, 1, None]
    assert [tokenizers.count(place, CHAT, chat("x")) for place in (0, 1)] == [1, 2]


@pytest.mark.parametrize(
    ("texts", "fits"),
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
    ],
)
def test_a_prompt_above_the_cap_is_not_counted(texts, fits):
    assert (counted(len, *texts, most=1032) is Skipped.TOO_LARGE) is not fits


def test_a_prompt_whose_texts_are_unknown_is_not_counted():
    assert Tokenizers([("*", words)], 1000).count(0, CHAT, b"{") is None


@pytest.mark.parametrize("error", [ValueError("no"), UnicodeEncodeError("utf-8", "x", 0, 1, "no"), Panic("stack")])
def test_a_tokenizer_that_fails_counts_nothing(error):
    assert counted(raising(error), "x") is Skipped.FAILED


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_is_no_failure_of_a_tokenizer(error):
    with pytest.raises(error):
        counted(raising(error), "x")


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
def test_a_prompt_is_counted_as_hugging_faces_tokenizer_does(hugging_face, text):
    expected = len(trained().encode(text, add_special_tokens=False).ids)
    count = load_tokenizer(hugging_face())
    assert counted(count, text) == expected
    assert counted(count, text, text, text) == 3 * expected


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


@pytest.mark.parametrize("text", ["", "the words", "größer 🌍\n\n  x", LONG])
def test_a_prompt_is_counted_as_tiktoken_does(encodings, text):
    encodings("tiny", ranks)
    expected = len(tiktoken.get_encoding("tiny").encode(text, disallowed_special=()))
    assert counted(load_tokenizer("tiktoken:tiny"), text) == expected


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


def test_a_panic_of_tiktokens_is_a_prompt_that_is_not_counted(encodings):
    # The panic's trace on stderr is Rust's own. It takes a prompt far above the cap that is set by default.
    encodings("tiny", ranks)
    count = load_tokenizer("tiktoken:tiny")
    assert counted(count, " " * (3 << 20) + "x", most=8 << 20) is Skipped.FAILED
    assert counted(count, LONG) > 0


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
        load_tokenizers([Assignment("*", spec, "models.3.tokenizer")], 1000)


def test_models_share_a_tokenizer_and_each_glob_gets_its_own(hugging_face, encodings, monkeypatch):
    encodings("tiny", ranks)
    spec = hugging_face()
    read = []
    from_file = Tokenizer.from_file
    monkeypatch.setattr(Tokenizer, "from_file", lambda path: read.append(path) or from_file(path))
    assigned = [("a-*", spec), ("b-*", "tiktoken:tiny"), ("*", spec)]
    tokenizers = load_tokenizers([Assignment(glob, s, "models.0.tokenizer") for glob, s in assigned], 1000)
    expected = {"a-1": trained().encode("the word"), "b-1": tiktoken.get_encoding("tiny").encode("the word")}
    found = {
        model: tokenizers.count(tokenizers.place(model), CHAT, chat("the word")) for model in ("a-1", "b-1", "c")
    }
    own = len(expected["a-1"]) - 1
    assert found == {"a-1": own, "b-1": len(expected["b-1"]), "c": own}
    assert len(read) == 1
