"""Run a job at the pace of the model, count its output, and stop when the client is gone."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extproc.local.model.generator import generate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from extproc.local.model.generator import Step
    from extproc.local.model.ledger import Kind, Ledger
    from extproc.local.model.plan import Job
    from extproc.local.model.tokenizer import SampleTokenizer


@dataclass(frozen=True, slots=True)
class Pace:
    """Set the speed of the model.

    Attributes:
        ttft_s: Seconds before the first token, 0 or more.
        tokens_per_second: For each choice, as choices are decoded together; 0 is as fast as possible.
    """

    ttft_s: float = 0.0
    tokens_per_second: float = 0.0

    def __post_init__(self) -> None:
        if self.ttft_s < 0 or self.tokens_per_second < 0:
            raise ValueError("ttft_s and tokens_per_second must not be negative")

    @property
    def interval_s(self) -> float:
        return 1 / self.tokens_per_second if self.tokens_per_second else 0.0


@dataclass(frozen=True, slots=True)
class Pump:
    tokenizer: "SampleTokenizer"
    ledger: "Ledger"
    pace: Pace

    async def run(self, job: "Job", gone: asyncio.Event) -> "AsyncGenerator[tuple[int, Step]]":
        """Yield the steps of all choices in turn, with the choice's index; end early once ``gone`` is set.

        The prompt is counted at the start, and each token before it is returned. Close the iterator (aclosing) if
        you leave it early, so that it counts the answer as cut off.
        """
        self.ledger.begin(job.kind, job.model, job.prompt_tokens, job.audio_seconds)
        running = _choices(job, self.tokenizer)
        try:
            due = asyncio.get_running_loop().time() + self.pace.ttft_s
            while running:
                await _wait_until(due, gone)
                if gone.is_set():
                    return
                for index in tuple(running):
                    step = next(running[index])
                    self.ledger.produce(job.kind, job.model)
                    if step.finish_reason is not None:
                        del running[index]
                    yield index, step
                due += self.pace.interval_s
        finally:
            if running:
                self.ledger.abort(job.kind, job.model)

    async def serve(
        self, kind: "Kind", model: str, prompt_tokens: int, completion_tokens: int, gone: asyncio.Event
    ) -> bool:
        """Count an answer that is made in one step. Return False if the client is gone.

        It takes as long as the first token of other answers.
        """
        self.ledger.begin(kind, model, prompt_tokens)
        await _wait_until(asyncio.get_running_loop().time() + self.pace.ttft_s, gone)
        if gone.is_set():
            self.ledger.abort(kind, model)
            return False
        self.ledger.produce(kind, model, completion_tokens)
        return True


def _choices(job: "Job", tokenizer: "SampleTokenizer") -> "dict[int, Iterator[Step]]":
    return {
        number * job.choices + index: generate(prompt, index, tokenizer)
        for number, prompt in enumerate(job.prompts)
        for index in range(job.choices)
    }


async def _wait_until(due: float, gone: asyncio.Event) -> None:
    delay = due - asyncio.get_running_loop().time()
    if delay <= 0:
        # Even the fastest model lets other tasks run, and lets the loop notice a closed connection.
        await asyncio.sleep(0)
        return
    try:
        await asyncio.wait_for(gone.wait(), delay)
    except TimeoutError:
        return
