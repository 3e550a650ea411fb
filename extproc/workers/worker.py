"""Start one worker process, and give it one job after the other."""

import asyncio
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from extproc.workers.child import JOB, RESULT

_SLICE_BYTES: Final = 256 << 10
_CHILD: Final = "extproc.workers.child"


class WorkerError(Exception):
    """Say that a worker process could not be started, or can't be used any more."""


class JobError(Exception):
    """Say that a job failed. Its process goes on."""


class WorkerEndedError(WorkerError):
    """Say that a worker process ended. Another one may do the job."""


class Worker:
    """Hold one process, the channel to it, and the memory that both share."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        shared: mmap.mmap,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._process = process
        self._shared = shared
        self._reader, self._writer = streams

    @classmethod
    async def start(cls, function: str, arguments: Sequence[str], memory_bytes: int) -> "Worker":
        """Start a process, and wait until it is ready. Raise `WorkerError`; cancelling ends the process.

        `function` is `module:name`; see `child`. A payload has at most `memory_bytes`.
        """
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("tokenweir-worker", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, memory_bytes)
            shared = mmap.mmap(memory, memory_bytes)
            words = (str(theirs.fileno()), str(memory), str(memory_bytes), function, *arguments)
            process = subprocess.Popen(  # noqa: S603, ASYNC220 - this interpreter, and a module of ours; takes 2 ms
                [sys.executable, "-P", "-m", _CHILD, *words],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            ours.close()
            raise WorkerError(f"a worker process can't be started: {error.strerror or error}") from None
        finally:
            theirs.close()
            os.close(memory)
        worker = cls(process, shared, await asyncio.open_connection(sock=ours))
        try:
            await worker._result()
        except BaseException:
            worker.kill()
            raise
        return worker

    async def do(self, head: bytes, *payload: bytes) -> bytes:
        """Return the result of one job. Raise `JobError` or `WorkerError`. Once cancelled, do no more jobs.

        The parts of `payload` are copied one after the other: the job sees one payload.
        """
        at = rested = 0
        for part in payload:
            whole = memoryview(part)
            for start in range(0, len(whole), _SLICE_BYTES):
                piece = whole[start : start + _SLICE_BYTES]
                self._shared[at : at + len(piece)] = piece
                at += len(piece)
                if at - rested >= _SLICE_BYTES:
                    rested = at
                    await asyncio.sleep(0)  # copying a large payload at once would delay others by milliseconds
        self._writer.write(JOB.pack(len(head), at) + head)
        done, result = await self._result()
        if not done:
            raise JobError("the job failed")
        return result

    async def _result(self) -> tuple[bool, bytes]:
        try:
            done, size = RESULT.unpack(await self._reader.readexactly(RESULT.size))
            return done, await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            raise WorkerEndedError("the worker process ended") from None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()  # at once: it can't refuse
        self.close()

    def close(self) -> None:
        """Close the channel: the process ends by itself, after the job that it is doing."""
        self._writer.close()
        self._shared.close()
