"""Run in a worker process: take a job, do it, send its result, until the parent closes the channel.

    python -m extproc.workers.child CHANNEL MEMORY BYTES MODULE:FUNCTION [ARGUMENT...]

CHANNEL and MEMORY are inherited file descriptors: a socket, and memory of BYTES bytes that both processes share.
FUNCTION is called with the arguments once. It returns the function that does a job: from the job's head and its
payload, it makes the result.
"""

import contextlib
import importlib
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

# Head and payload in bytes; then the head. The payload is in the shared memory.
JOB: Final = struct.Struct("!IQ")
# Whether the job was done, and the size of the result; then the result.
RESULT: Final = struct.Struct("!?I")
# A worker gives way to the processes that serve, where they compete for a core.
_NICENESS: Final = 10

Work = Callable[[bytes, bytes], bytes]


def main(arguments: list[str]) -> None:
    """Serve one parent. Return when it closes the channel, or is gone."""
    channel, memory, size, name, *rest = arguments
    # Ctrl-C and a signal to the whole group must not end a worker before its parent has drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        # The event loop that sends a job is not interrupted by the process that it wakes.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(*rest)
    with socket.socket(fileno=int(channel)) as parent, mmap.mmap(int(memory), int(size)) as shared:
        parent.sendall(RESULT.pack(True, 0))  # ready
        serve(parent, shared, work)


def serve(parent: socket.socket, shared: mmap.mmap, work: Work) -> None:
    """Do jobs one after the other, until the parent closes the channel."""
    with parent.makefile("rb") as jobs:
        while len(sizes := jobs.read(JOB.size)) == JOB.size:
            head_bytes, payload_bytes = JOB.unpack(sizes)
            head = jobs.read(head_bytes)
            try:
                result, done = work(head, shared[:payload_bytes]), True
            except Exception:  # noqa: BLE001 - the parent is told that this job failed; the next one may not
                result, done = b"", False
            parent.sendall(RESULT.pack(done, len(result)) + result)


if __name__ == "__main__":
    main(sys.argv[1:])
