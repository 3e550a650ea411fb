"""Share a few worker processes among jobs: bounded, fair to those who ask, and never waited for without end."""

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from extproc.workers.worker import JobError, Worker, WorkerEndedError, WorkerError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Bound the work of a pool.

    Attributes:
        processes: so many jobs are done at once; of one who asks, all but one of them, if there are several. The
            first process starts with the pool, the others when needed.
        waiting: so many more jobs may wait, over all who ask; `waiting_each` for each of them.
        timeout_s: whoever asks waits no longer. A job that nobody waits for any more is not begun.
        job_s: a process that needs longer for a job is ended, and replaced.
        start_s: a process may take so long to start.
        memory_bytes: the largest payload of a job.
    """

    processes: int = 2
    waiting: int = 64
    waiting_each: int = 16
    timeout_s: float = 0.8
    job_s: float = 5.0
    start_s: float = 10.0
    memory_bytes: int = 4 << 20


class Why(StrEnum):
    """Say why a job was not done."""

    BUSY = "busy"
    SLOW = "slow"
    FAILED = "failed"


class NotDoneError(Exception):
    """Say that a job was not done."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why


@dataclass(slots=True, eq=False)
class _Job:
    who: str
    head: bytes
    payload: tuple[bytes, ...]
    again: bool = False
    result: "asyncio.Future[bytes]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Pool:
    """Do jobs in worker processes. Those who ask take turns, and nobody has all processes if there are several."""

    def __init__(self, function: str, options: PoolOptions, arguments: Sequence[str] = ()) -> None:
        """Start nothing yet. `function` is `module:name`; see `child`."""
        self._function = function
        self._arguments = arguments
        self._options = options
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._count = 0
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.ready = False
        self.starting = True  # until the first process is ready, or could not be started

    def start(self) -> None:
        """Start the first process. Return at once."""
        if not self._tasks:
            self._add_process()

    async def do(self, who: str, head: bytes, *payload: bytes) -> bytes:
        """Return the result of a job of `who`. Raise `NotDoneError`. May be cancelled.

        The job gets the parts of `payload` as one.
        """
        options = self._options
        mine = self._waiting.get(who)
        if self._closed or self._count >= options.waiting or (mine and len(mine) >= options.waiting_each):
            raise NotDoneError(Why.BUSY)
        job = _Job(who, head, payload)
        self._waiting.setdefault(who, deque()).append(job)
        self._count += 1
        if self._idle:
            self._idle.popleft().set_result(None)
        elif len(self._tasks) < options.processes:
            self._add_process()
        try:
            async with asyncio.timeout(options.timeout_s if self.ready else options.start_s):
                return await job.result
        except TimeoutError:
            raise NotDoneError(Why.SLOW) from None
        finally:
            job.payload = ()

    async def aclose(self) -> None:
        """End all processes. Jobs that are not done fail."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all()

    def _add_process(self) -> None:
        task = asyncio.create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._closed:
            return
        if not self._tasks:
            self.ready = False
        if self._count:
            self._add_process()

    async def _run(self) -> None:
        """Run one process until it ends, or is ended because a job takes too long."""
        try:
            async with asyncio.timeout(self._options.start_s):
                worker = await Worker.start(self._function, self._arguments, self._options.memory_bytes)
        except (TimeoutError, WorkerError) as error:
            _log.error("worker: no process could be started: its jobs fail", extra={"error": str(error)})
            self.starting = False
            self._fail_all()
            return
        self.ready, self.starting = True, False
        job: _Job | None = None
        try:
            while True:
                job = await self._next()
                self._running[job.who] += 1
                try:
                    await self._do(worker, job)
                finally:
                    self._running -= Counter({job.who: 1})  # keeps those above 0 alone
        except WorkerError as error:
            _log.error("worker: a process is replaced", extra={"error": str(error)})
            if isinstance(error, WorkerEndedError) and job is not None and self._once_more(job):
                job = None
        finally:
            if job is not None:
                _fail(job)
            worker.kill()

    async def _do(self, worker: Worker, job: _Job) -> None:
        try:
            async with asyncio.timeout(self._options.job_s):
                result = await worker.do(job.head, *job.payload)
        except TimeoutError:
            raise WorkerError("a job took too long") from None
        except JobError:
            _fail(job)
            return
        if not job.result.done():
            job.result.set_result(result)

    async def _next(self) -> _Job:
        """Return the next job that somebody waits for."""
        while True:
            job = self._take()
            if job is None:
                woken = asyncio.get_running_loop().create_future()
                self._idle.append(woken)
                await woken
            elif not job.result.done():
                return job

    def _take(self) -> _Job | None:
        """Remove a job of the one whose turn it is, and put him behind the others.

        Return None if nobody waits, or only those who have as many processes as one may have.
        """
        most = max(1, self._options.processes - 1)
        who = next((who for who in self._waiting if self._running[who] < most), None)
        if who is None:
            return None
        jobs = self._waiting.pop(who)
        job = jobs.popleft()
        if jobs:
            self._waiting[who] = jobs
        self._count -= 1
        return job

    def _fail_all(self) -> None:
        for jobs in self._waiting.values():
            for job in jobs:
                _fail(job)
        self._waiting.clear()
        self._count = 0

    def _once_more(self, job: _Job) -> bool:
        """Give a job whose process ended to another one, but once: the job may not have been the reason."""
        if job.again or job.result.done():
            return False
        job.again = True
        self._waiting.setdefault(job.who, deque()).appendleft(job)
        self._count += 1
        return True


def _fail(job: _Job) -> None:
    if not job.result.done():
        job.result.set_exception(NotDoneError(Why.FAILED))
