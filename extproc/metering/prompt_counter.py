"""Count prompts in a process of its own, within bounds: a tokenizer may hold the interpreter for a long time.

A prompt that can't be counted in time gives None, and the caller estimates by bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from extproc.core.request.endpoints import Endpoint
from extproc.metering.prompt_tokenizer import Assignment, Skipped, Tokenizers, load_tokenizers
from extproc.workers.pool import NotDoneError, Pool, PoolOptions, Why

FUNCTION: Final = "extproc.metering.prompt_counter:prepared"
_WHY: Final = {Why.BUSY: Skipped.BUSY, Why.SLOW: Skipped.SLOW, Why.FAILED: Skipped.FAILED}
# The JSON of a prompt may be longer than its texts: by escapes, names and media.
_JSON_PER_TEXT: Final = 4


@dataclass(frozen=True, slots=True)
class CountingOptions:
    """Bound the work for prompts.

    Attributes:
        max_bytes: a prompt with more text (UTF-8) is not counted.
        timeout_s: a request waits no longer.
        waiting: so many prompts may wait for the process.
        inline_bytes: up to this size counting takes less time than handing the prompt to the process.
        start_s: the process may take so long to read its tokenizers.
    """

    max_bytes: int = 256 << 10
    timeout_s: float = 0.05
    waiting: int = 16
    inline_bytes: int = 512
    start_s: float = 120.0


class PromptCounter:
    """Count prompts. Call `skipped` with the reason when one is not counted."""

    def __init__(
        self,
        tokenizers: Tokenizers,
        skipped: Callable[[Skipped], None],
        options: CountingOptions = CountingOptions(),
        function: str = FUNCTION,
        arguments: Sequence[str] = (),
    ) -> None:
        """Start no process yet: `function`, with the arguments, makes the same tokenizers there."""
        self._tokenizers = tokenizers
        self._skipped = skipped
        self._options = options
        self._most = _JSON_PER_TEXT * options.max_bytes
        self._pool = Pool(
            function,
            PoolOptions(
                processes=1,
                waiting=options.waiting,
                waiting_each=options.waiting,
                timeout_s=options.timeout_s,
                start_s=options.start_s,
                memory_bytes=self._most,
            ),
            arguments,
        )

    def start(self) -> None:
        """Start the process. Until it is ready, larger prompts are not counted."""
        self._pool.start()

    def knows(self, model: str) -> bool:
        """Tell whether the model has a tokenizer. Without one, the texts of its prompts need not be read."""
        return self._tokenizers.place(model) is not None

    async def count(self, model: str, endpoint: Endpoint, prompt: bytes) -> int | None:
        """Return the tokens of a prompt, without what a chat template adds; None if it can't be counted.

        `prompt` is that of `RequestFacts`. Raise nothing; may be cancelled.
        """
        place = self._tokenizers.place(model)
        if place is None or not prompt:
            return None
        if len(prompt) > self._most:
            found: int | Skipped | None = Skipped.TOO_LARGE
        elif len(prompt) <= self._options.inline_bytes:
            found = self._tokenizers.count(place, endpoint, prompt)
        else:
            found = await self._apart(place, endpoint, prompt)
        if isinstance(found, Skipped):
            self._skipped(found)
            return None
        return found

    async def aclose(self) -> None:
        """End the process."""
        await self._pool.aclose()

    async def _apart(self, place: int, endpoint: Endpoint, prompt: bytes) -> int | Skipped | None:
        if not self._pool.ready:
            self._pool.start()  # it may have ended
            return Skipped.BUSY
        try:
            result = await self._pool.do("", msgspec.msgpack.encode((place, endpoint)), prompt)
        except NotDoneError as error:
            return _WHY[error.why]
        found: int | Skipped | None = _result.decode(result)
        return found


_job: Final = msgspec.msgpack.Decoder(tuple[int, Endpoint])
_result: Final = msgspec.msgpack.Decoder(int | Skipped | None)


def load_counter(
    assignments: Sequence[Assignment],
    skipped: Callable[[Skipped], None],
    options: CountingOptions = CountingOptions(),
) -> PromptCounter:
    """Read every tokenizer once, which may take seconds. Raise `TokenizerError`."""
    tokenizers = load_tokenizers(assignments, options.max_bytes)
    arguments = [str(options.max_bytes), *(word for each in assignments for word in (each.match, each.spec))]
    return PromptCounter(tokenizers, skipped, options, FUNCTION, arguments)


def prepared(max_bytes: str, *words: str) -> Callable[[bytes, bytes], bytes]:
    """Return the function that counts prompts in a process: globs and specs of tokenizers by turns."""
    assignments = [Assignment(match, spec, "models") for match, spec in zip(words[::2], words[1::2], strict=True)]
    return counting(load_tokenizers(assignments, int(max_bytes)))


def counting(tokenizers: Tokenizers) -> Callable[[bytes, bytes], bytes]:
    """Return the function that does the jobs of a `PromptCounter`."""

    def work(head: bytes, prompt: bytes) -> bytes:
        place, endpoint = _job.decode(head)
        return msgspec.msgpack.encode(tokenizers.count(place, endpoint, prompt))

    return work
