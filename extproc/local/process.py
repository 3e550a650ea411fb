"""Run a child process: start it, wait until it is ready, and stop it in every case."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from extproc.local.errors import LocalError

Probe = Callable[[], Awaitable[bool]]
"""Ask the child whether it is ready. The probe returns False, or raises OSError, until it is."""

_POLL_S: Final = 0.02
_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 16 * 1024
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class ChildError(LocalError):
    """Report that a child did not start, or did not become ready; the message ends with the last lines of its
    log.
    """


@dataclass(frozen=True, slots=True)
class Command:
    """Describe a program to start."""

    name: str
    """Name the child in messages; its log file is `<run_dir>/<name>.log`, emptied at start."""
    argv: tuple[str, ...]
    run_dir: Path
    """Set the child's working directory; created if it is missing."""
    env: Mapping[str, str] | None = None
    """Add variables to the parent's environment."""
    stop_grace_s: float = 5.0
    """Set the seconds between SIGTERM and SIGKILL."""


class Child:
    """Hold a running child, in a process group of its own. Created by `start`."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = command.name
        self.log_path = log_path
        self._grace_s = command.stop_grace_s
        self._process = process
        # All share one waiter, which is never cancelled, even if one of them stops waiting.
        self._exit = asyncio.ensure_future(process.wait())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit status; negative for a signal's number; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the child has ended, and return its exit status."""
        return await asyncio.shield(self._exit)

    async def stop(self) -> int:
        """End the child and its process group, and return its exit status.

        SIGTERM first, SIGKILL after the grace period or when this call is cancelled. A second call, or
        a call on a child that has ended, does nothing.
        """
        if not self._exit.done():
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._grace_s):
                    return await self.wait()
            except TimeoutError:
                self._signal(signal.SIGKILL)
            except asyncio.CancelledError:
                self._signal(signal.SIGKILL)
                raise
        return await self.wait()

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines that the child wrote to stdout or stderr."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            tail = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(tail[-lines:])

    async def until_ready(self, ready: Probe, deadline_s: float) -> None:
        """Wait for `ready`; ChildError if the child's end or the deadline comes first."""
        asking = asyncio.ensure_future(_ask(ready))
        try:
            await asyncio.wait({asking, self._exit}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            # Check this first: if the child has ended, another process answered the probe.
            if self._exit.done():
                raise self._error(f"ended with status {self._exit.result()} before it was ready")
            if not asking.done():
                raise self._error(f"is not ready after {deadline_s:g} s")
            asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    def _signal(self, number: signal.Signals) -> None:
        # The child leads its group, so its own children get the signal too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _error(self, what: str) -> ChildError:
        tail = self.log_tail() or "(it wrote nothing)"
        return ChildError(f"{self.name} {what}. The end of {self.log_path}:\n{tail}")


async def start(command: Command, ready: Probe, *, deadline_s: float = 60.0) -> Child:
    """Start a child and return it once `ready` succeeds; on any failure it is stopped first.

    Start children before gRPC servers and thread pools: a fork copies locks in any state. On Linux the child is
    killed when this process ends, whatever the reason. The child gets no signal from the terminal: a Ctrl-C
    reaches the parent only, which stops its children in its own order.

    Raises:
        ChildError: the program could not be run, ended too early, or was not ready within `deadline_s`.
        RuntimeError: called outside the main thread. Linux would kill the child with the calling thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: they would end with any other")
    child = await _spawn(command)
    try:
        await child.until_ready(ready, deadline_s)
    except BaseException:
        await child.stop()
        raise
    return child


async def _spawn(command: Command) -> Child:
    command.run_dir.mkdir(parents=True, exist_ok=True)
    log_path = command.run_dir / f"{command.name}.log"
    with log_path.open("wb") as log:
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=command.run_dir,
                env={**os.environ, **(command.env or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except OSError as error:
            raise ChildError(f"{command.name} can not be started: {error}") from error
    return Child(command, process, log_path)


async def _ask(ready: Probe) -> None:
    while True:
        with contextlib.suppress(OSError):
            if await ready():
                return
        await asyncio.sleep(_POLL_S)


def _die_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """Return the function that the forked child runs before its program; None if the system does not support
    it.
    """
    if sys.platform != "linux":
        return None
    # Loaded here: between fork and exec, an import or an allocation could wait for a lock forever.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_sigkill() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent ended before the kernel had this instruction
            os._exit(1)

    return ask_for_sigkill
