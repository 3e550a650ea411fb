"""Count prompts exactly with a model's own tokenizer (extra `tokenizers`). Nothing is ever downloaded."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from extproc.core.quota.limits import matches
from extproc.core.request.body import prompt_texts
from extproc.core.request.endpoints import Endpoint, Target
from extproc.given.files import GivenFileError, check

# Counts the tokens of one text. Text that looks like a special token is plain text.
CountTokens = Callable[[str], int]

# Each text counts this many bytes beside its own: a prompt can't have any number of empty texts.
_BYTES_PER_TEXT: Final = 32
_MAX_FILE_BYTES: Final = 256 << 20
_INSTALL: Final = "install tokenweir[tokenizers]"


class TokenizerError(Exception):
    """Say why a tokenizer can't be used. The message names the setting, the problem and the fix."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Assign a tokenizer to the models that the glob `match` names. Errors name the `setting`."""

    match: str
    spec: str
    setting: str


class Skipped(StrEnum):
    """Say why a prompt was not counted."""

    TOO_LARGE = "too_large"
    BUSY = "busy"
    SLOW = "slow"
    FAILED = "failed"


class Tokenizers:
    """Hold the tokenizers of models. The first glob that matches a model counts."""

    def __init__(self, tokenizers: Sequence[tuple[str, CountTokens]], max_bytes: int) -> None:
        """Count no prompt with more than `max_bytes` bytes of text (UTF-8).

        Both libraries need time in proportion to the size, whatever the text. Above 512 KiB tiktoken fails on runs
        of odd blanks.
        """
        self._tokenizers = tuple(tokenizers)
        self._max_bytes = max_bytes

    def place(self, model: str) -> int | None:
        """Return the place of the model's tokenizer in the list; None if it has none."""
        return next((n for n, (glob, _) in enumerate(self._tokenizers) if matches(glob, model)), None)

    def count(self, place: int, endpoint: Endpoint, prompt: bytes) -> int | Skipped | None:
        """Return the tokens of a prompt's texts, without what a chat template adds.

        Return None if the texts are unknown. The time grows with the size of the prompt, which the caller bounds.
        """
        texts = prompt_texts(Target(endpoint), prompt)
        if texts is None:
            return None
        if _size(texts, self._max_bytes) > self._max_bytes:
            return Skipped.TOO_LARGE
        count_tokens = self._tokenizers[place][1]
        try:
            return sum(map(count_tokens, texts))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a panic in Rust comes as a class of its own, below no Exception
            return Skipped.FAILED


def load_tokenizers(assignments: Sequence[Assignment], max_bytes: int) -> Tokenizers:
    """Read every tokenizer once, which may take seconds. Raise `TokenizerError`."""
    loaded: dict[str, CountTokens] = {}
    for assigned in assignments:
        if assigned.spec not in loaded:
            try:
                loaded[assigned.spec] = load_tokenizer(assigned.spec)
            except TokenizerError as error:
                raise TokenizerError(f"{assigned.setting}: {error}") from None
    return Tokenizers([(a.match, loaded[a.spec]) for a in assignments], max_bytes)


def load_tokenizer(spec: str) -> CountTokens:
    """Read the tokenizer that a spec names from this host's disk. Raise `TokenizerError`."""
    kind, _, name = spec.partition(":")
    return _tiktoken(name) if kind == "tiktoken" else _hugging_face(name)


def _size(texts: Sequence[str], enough: int) -> int:
    """Return the bytes of UTF-8, plus a fixed number for each text. Stop adding beyond `enough`."""
    size = 0
    for text in texts:
        size += len(text) + _BYTES_PER_TEXT
        if size <= enough and not text.isascii():
            size += len(text.encode("utf-8", "surrogatepass")) - len(text)
        if size > enough:
            break
    return size


def _tiktoken(name: str) -> CountTokens:
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        raise TokenizerError(f"tiktoken is not installed: {_INSTALL}") from None
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise TokenizerError(f"tiktoken has no encoding {name!r}; it has {', '.join(known)}")
    try:
        with _no_download(tiktoken.load):
            encode = tiktoken.get_encoding(name).encode_ordinary
    except _WouldDownloadError as error:
        raise TokenizerError(
            f"the file of {name} is not on this host, and nothing is downloaded: "
            f"put {error} into the folder that TIKTOKEN_CACHE_DIR names, under tiktoken's name for it"
        ) from None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{name} can't be read: {error}") from None
    return lambda text: len(encode(text))


def _hugging_face(path: str) -> CountTokens:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokenizerError(f"tokenizers is not installed: {_INSTALL}") from None
    # Its own pool of threads would use every core of the host; ours is bounded.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        check(path, _MAX_FILE_BYTES)
        tokenizer = Tokenizer.from_file(path)
    except GivenFileError as error:
        raise TokenizerError(f"{path} can't be used as a tokenizer.json: {error}") from None
    except Exception as error:  # noqa: BLE001 - it raises nothing more special
        raise TokenizerError(f"{path} can't be used as a tokenizer.json: {error}") from None
    # A file may say that texts are cut to a model's length, or filled up to it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    # `encode` holds the interpreter's lock; `encode_batch_fast` does not.
    encode = tokenizer.encode_batch_fast
    return lambda text: len(encode([text], add_special_tokens=False)[0])


class _WouldDownloadError(Exception):
    pass


@contextmanager
def _no_download(loader: object) -> Iterator[None]:
    """Raise instead of letting tiktoken fetch a file that its cache lacks, or holds damaged."""
    name = "read_file"
    read_file = getattr(loader, name)

    def refuse(place: str) -> bytes:
        if "://" in place:
            raise _WouldDownloadError(place)
        data: bytes = read_file(place)
        return data

    setattr(loader, name, refuse)
    try:
        yield
    finally:
        setattr(loader, name, read_file)
