"""Count prompts exactly with a model's own tokenizer, off the event loop, within bounds (extra `tokenizers`).

A prompt that can't be counted in time gives None, and the caller estimates by bytes. Nothing is ever downloaded.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Semaphore
from typing import Final

from extproc.core.quota.limits import matches
from extproc.given.files import GivenFileError, check

# Counts the tokens of one text; several threads may call it. Text that looks like a special token is plain text.
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


@dataclass(frozen=True, slots=True)
class CountingOptions:
    """Bound the work for prompts.

    Attributes:
        max_bytes: a larger prompt (UTF-8) is not counted. Both libraries need time in proportion to the size,
            whatever the text. Above 512 KiB tiktoken fails on runs of odd blanks.
        timeout_s: a request waits no longer. A thread can't be stopped within a text, only between two.
        threads: so many prompts are counted at once, those that nobody waits for any more included.
        waiting: so many more may wait for a thread.
        inline_bytes: up to this size counting takes less time than handing the text to a thread.
    """

    max_bytes: int = 256 << 10
    timeout_s: float = 0.05
    threads: int = 2
    waiting: int = 16
    inline_bytes: int = 512


class PromptCounter:
    """Count prompts. Call `skipped` with the reason when one is not counted: too_large, busy, slow or failed."""

    def __init__(
        self,
        tokenizers: Sequence[tuple[str, CountTokens]],
        skipped: Callable[[str], None],
        options: CountingOptions = CountingOptions(),
    ) -> None:
        self._tokenizers = tuple(tokenizers)
        self._skipped = skipped
        self._options = options
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="tokenizing")
        self._room = Semaphore(options.threads + options.waiting)

    def knows(self, model: str) -> bool:
        """Tell whether the model has a tokenizer. Without one, the texts of its prompts need not be read."""
        return self._tokenizer(model) is not None

    async def count(self, model: str, texts: Sequence[str]) -> int | None:
        """Return the sum of the texts' tokens, without what a chat template adds; None if it can't be counted.

        The first glob that matches the model counts. Raise nothing; may be cancelled.
        """
        count_tokens = self._tokenizer(model)
        if count_tokens is None:
            return None
        size = _size(texts, self._options.max_bytes)
        if size > self._options.max_bytes:
            self._skipped("too_large")
            return None
        work = _Work(count_tokens, texts)
        if size > self._options.inline_bytes:
            return await self._by_a_thread(work)
        return self._told(work.run())

    def close(self) -> None:
        """Take no more prompts. Return at once: running work is bounded, and ends by itself."""
        self._pool.shutdown(wait=False)

    def _tokenizer(self, model: str) -> CountTokens | None:
        return next((count_tokens for glob, count_tokens in self._tokenizers if matches(glob, model)), None)

    async def _by_a_thread(self, work: "_Work") -> int | None:
        if not self._room.acquire(blocking=False):
            self._skipped("busy")
            return None
        # The thread releases it: abandoned work keeps its room until it has left the queue.
        running = asyncio.get_running_loop().run_in_executor(self._pool, work.run, self._room.release)
        try:
            # `asyncio.wait` does not cancel: work that is cancelled in the queue would never release its room.
            await asyncio.wait((running,), timeout=self._options.timeout_s)
        finally:
            work.abandoned = True
        if running.done():
            return self._told(running.result())
        self._skipped("slow")
        return None

    def _told(self, tokens: int | None) -> int | None:
        if tokens is None:
            self._skipped("failed")
        return tokens


def load_counter(
    assignments: Sequence[Assignment],
    skipped: Callable[[str], None],
    options: CountingOptions = CountingOptions(),
) -> PromptCounter:
    """Read every tokenizer once, which may take seconds. Raise `TokenizerError`."""
    loaded: dict[str, CountTokens] = {}
    for assigned in assignments:
        if assigned.spec not in loaded:
            try:
                loaded[assigned.spec] = load_tokenizer(assigned.spec)
            except TokenizerError as error:
                raise TokenizerError(f"{assigned.setting}: {error}") from None
    return PromptCounter([(a.match, loaded[a.spec]) for a in assignments], skipped, options)


def load_tokenizer(spec: str) -> CountTokens:
    """Read the tokenizer that a spec names from this host's disk. Raise `TokenizerError`."""
    kind, _, name = spec.partition(":")
    return _tiktoken(name) if kind == "tiktoken" else _hugging_face(name)


class _Work:
    """Count one prompt. Set `abandoned` when nobody waits for it any more."""

    def __init__(self, count_tokens: CountTokens, texts: Sequence[str]) -> None:
        self._count_tokens = count_tokens
        self._texts = texts
        self.abandoned = False

    def run(self, finished: Callable[[], None] = lambda: None) -> int | None:
        """Return the tokens; None if the tokenizer failed, or the work was abandoned."""
        try:
            tokens = 0
            for text in self._texts:
                if self.abandoned:
                    return None
                tokens += self._count_tokens(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a panic in Rust comes as a class of its own, below no Exception
            return None
        else:
            return tokens
        finally:
            finished()


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
