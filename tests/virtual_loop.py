"""An event loop in which time only passes when nothing is left to do, and then at once.

Everything that happens in it follows from its seed. Callbacks belong to a process, or to none: a process can be
paused (its callbacks wait while time goes on, as under SIGSTOP) and so also killed, by never letting it go on.

Threads take no time: while one of the loop's executors is at work, the loop waits for the result and time stands still.
The loop has no sockets. Connections go through the `network` that it is given.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import queue
from asyncio.base_events import BaseEventLoop
from asyncio.events import _set_running_loop

# The process that a callback belongs to. None: the world around them.
PROCESS: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Process:
    """What can be paused as a whole."""

    def __init__(self, name):
        self.name = name
        self.paused = False
        self.waiting = []  # its callbacks, while it is paused
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.tasks = []


class StuckError(Exception):
    """Nothing will ever happen again, and somebody still waits."""


class _Task(asyncio.Task):
    """Its hash is its number: sets of tasks, which the standard library walks through, have the same order again."""

    _numbers = itertools.count()

    def __init__(self, coro, **kwargs):
        self.number = next(self._numbers)
        super().__init__(coro, **kwargs)

    def __hash__(self):
        return self.number


class _Handle:
    """What the loop's callers see of a callback. As `asyncio.TimerHandle`, without what nobody here asks for."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(self, callback, args, context, when=None):
        self._callback, self._args, self._when = callback, args, when
        self._context = context if context is not None else contextvars.copy_context()
        self._cancelled = False

    def cancel(self):
        self._cancelled = True

    def cancelled(self):
        return self._cancelled

    def when(self):
        return self._when


class VirtualLoop(BaseEventLoop):
    """Runs everything that is ready, in an order that `rng` may shuffle; then time jumps to the next timer."""

    def __init__(self, rng=None):
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._paused = 0
        self._timers = []
        self._numbers = 0
        self._watched = []  # conditions and their futures
        self._at_work = 0  # calls in threads
        self._from_threads = queue.SimpleQueue()
        self.network = None  # (protocol, process) -> a transport and the protocol
        self.set_task_factory(self._make_task)
        _Task._numbers = itertools.count()

    def time(self):
        return self._now

    def call_later(self, delay, callback, *args, context=None):
        when = self._now + delay
        handle = _Handle(callback, args, context, when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def call_at(self, when, callback, *args, context=None):
        handle = _Handle(callback, args, context, when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def call_soon(self, callback, *args, context=None):
        handle = _Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback, *args, context=None):
        handle = _Handle(callback, args, context)
        self._from_threads.put(handle)
        return handle

    def run_in_executor(self, executor, func, *args):
        future = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        future.add_done_callback(self._has_worked)
        return future

    def _has_worked(self, future):
        self._at_work -= 1

    async def shutdown_default_executor(self, timeout=None):  # noqa: ASYNC109 - as its base
        if self._default_executor is not None:
            self._default_executor.shutdown(wait=True)

    async def create_connection(self, protocol_factory, host=None, port=None, **_):
        if self.network is None:
            raise OSError(f"there is no network to {host}:{port}")
        return await self.network(protocol_factory(), PROCESS.get())

    def when(self, condition):
        """Return a future that is done at the first step of the loop after which `condition()` is true."""
        future = self.create_future()
        self._watched.append((condition, future))
        return future

    def _look(self):
        for each in [each for each in self._watched if each[1].done() or each[0]()]:
            self._watched.remove(each)
            if not each[1].done():
                each[1].set_result(None)

    def _take_from_threads(self):
        with contextlib.suppress(queue.Empty):
            self._ready.append(self._from_threads.get(block=self._at_work > 0))
            while True:
                self._ready.append(self._from_threads.get_nowait())

    def pause(self, process):
        process.paused = True
        self._paused += 1

    def resume(self, process):
        process.paused = False
        self._paused -= 1
        self._ready.extend(process.waiting)
        process.waiting = []

    def _make_task(self, loop, coro, context=None, **kwargs):
        process = PROCESS.get() if context is None else context.get(PROCESS)
        task = _Task(coro, loop=loop, context=context, **kwargs)
        if process is not None:
            process.tasks.append(task)
        return task

    def _run_once(self):
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            self._take_from_threads()
        if not ready and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise StuckError
            self._now = max(self._now, timers[0][0])
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        if self._rng is not None and len(ready) > 1:
            self._rng.shuffle(ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self._paused:
                process = handle._context.get(PROCESS)
                if process is not None and process.paused:
                    process.waiting.append(handle)
                    continue
            handle._context.run(handle._callback, *handle._args)
        if self._watched:
            self._look()


def run(coro, rng=None):
    """As `asyncio.run`, in a virtual time that starts at 0."""
    loop = VirtualLoop(rng)
    loop.set_exception_handler(_fail)
    try:
        return loop.run_until_complete(coro(loop))
    finally:
        loop.close()
        _set_running_loop(None)


def _fail(loop, context):
    """Whoever has to know of an exception in a task asks the task."""
