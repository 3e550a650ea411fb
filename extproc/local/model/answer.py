"""Write the answer to one job, plain or as a stream, in the format of its endpoint."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from extproc.local.model.events import DONE, Event
from extproc.local.model.faults import Fault, injected, spoil_event, spoil_plain
from extproc.local.model.sending import Content, Line, Reply
from extproc.local.model.shapes import ChoiceEnd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from extproc.local.model.generator import Step
    from extproc.local.model.plan import Job
    from extproc.local.model.pump import Pump
    from extproc.local.model.shapes import Shape


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer one job; `reply` is the ASGI application."""

    job: "Job"
    shape: "Shape"
    pump: "Pump"
    fault: Fault | None = None

    @property
    def reply(self) -> Reply:
        return Reply(self._speak, self.fault, self.shape.dialect, self.job.stream)

    async def _speak(self, line: Line) -> None:
        if not self.job.stream:
            await line.whole(await self._whole(line))
            return
        await line.events(self._framed(line), self.shape.strike_after, self._failed)

    def _failed(self) -> bytes:
        event = self.shape.failed(injected(Fault.ERROR_IN_STREAM))
        return event.framed + (DONE if self.shape.has_done else b"")

    async def _whole(self, line: Line) -> Content:
        said = _Said(self.job)
        async with aclosing(self.pump.run(self.job, line.gone)) as steps:
            async for index, step in steps:
                said.add(index, step)
        if line.gone.is_set():
            return Content(b"")
        whole = self.shape.whole(said.ends, said.produced)
        if isinstance(whole, str):
            return Content(whole.encode(), "text/plain; charset=utf-8")
        return Content(msgspec.json.encode(spoil_plain(whole, self.fault)))

    async def _framed(self, line: Line) -> "AsyncGenerator[bytes]":
        said = _Said(self.job)
        for event in self.shape.preamble():
            yield event.framed
        async with aclosing(self._generated(line, said)) as events:
            async for event in events:
                for spoilt in spoil_event(event, self.fault):
                    yield spoilt.framed
        if line.gone.is_set():
            return
        async with aclosing(self._closing(line, said)) as closing:
            async for framed in closing:
                yield framed
        if self.shape.has_done:
            yield DONE

    async def _generated(self, line: Line, said: "_Said") -> "AsyncGenerator[Event]":
        async with aclosing(self.pump.run(self.job, line.gone)) as steps:
            async for index, step in steps:
                if not said.produced:
                    for event in self.shape.opening():
                        yield event
                said.add(index, step)
                for event in self.shape.token(index, step, said.produced_by(index)):
                    yield event

    async def _closing(self, line: Line, said: "_Said") -> "AsyncGenerator[bytes]":
        late = self.fault is Fault.LATE_USAGE
        for event in self.shape.closing(said.ends, said.produced):
            for spoilt in spoil_event(event, self.fault):
                yield spoilt.framed
            if late and _tells_usage(event):
                late = False
                await line.late()
        if late:
            await line.late()


class _Said:
    """Collect the output of a job so far."""

    def __init__(self, job: "Job") -> None:
        self._job = job
        self._texts: list[list[str]] = [[] for _ in range(len(job.prompts) * job.choices)]
        self._ends: dict[int, ChoiceEnd] = {}
        self.produced = 0

    def add(self, index: int, step: "Step") -> None:
        self.produced += 1
        self._texts[index].append(step.text)
        if step.finish_reason is not None:
            self._ends[index] = ChoiceEnd("".join(self._texts[index]), step.finish_reason, step.stop_reason)

    def produced_by(self, index: int) -> int:
        return len(self._texts[index])

    @property
    def ends(self) -> list[ChoiceEnd]:
        """Return the finished choices that are shown, in order."""
        job = self._job
        return [self._ends[index] for index in sorted(self._ends) if index % job.choices < job.shown]


def _tells_usage(event: Event) -> bool:
    return bool(event.document.get("usage") or (event.document.get("response") or {}).get("usage"))
