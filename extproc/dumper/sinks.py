"""Define the port of sinks, and print messages to standard output."""

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import BinaryIO, Protocol

from extproc.dumper.message import Message, json_line
from extproc.ports.base import StoreError


class Written(StrEnum):
    """Name the outcome of writing a message."""

    STORED = "stored"
    REPEATED = "repeated"
    """Mark a message that was stored before: nothing was added."""
    REFUSED = "refused"
    """Mark a message that the store refuses permanently."""
    FAILED = "failed"
    """Mark a transient failure."""


class Sink(Protocol):
    async def prepare(self) -> None:
        """Return once the sink can be written to. Raise `StoreError`."""

    async def write(self, messages: Sequence[Message]) -> Sequence[Written]:
        """Write messages, and return one outcome for each, in order. Raise `StoreError` if all of them failed."""

    async def aclose(self) -> None: ...


class StdoutSink:
    """Print one JSON line per message."""

    def __init__(self, print_bytes: int, stream: BinaryIO | None = None) -> None:
        self._print_bytes = print_bytes
        self._stream = sys.stdout.buffer if stream is None else stream
        # In a thread, because a slow reader of stdout must not delay the answers to requests.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stdout")

    async def prepare(self) -> None:
        """Do nothing: stdout is always ready."""

    async def write(self, messages: Sequence[Message]) -> Sequence[Written]:
        lines = b"".join(json_line(message.cut(self._print_bytes)) for message in messages)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._print, lines)
        except OSError as error:
            raise StoreError(f"stdout: {error.strerror}", transient=True) from error
        return [Written.STORED] * len(messages)

    def _print(self, lines: bytes) -> None:
        self._stream.write(lines)
        self._stream.flush()

    async def aclose(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
