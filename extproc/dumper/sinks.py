"""Where messages go: the port, and standard output."""

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import BinaryIO, Protocol

from extproc.dumper.message import Message, json_line
from extproc.ports.base import StoreError


class Written(StrEnum):
    """What became of a message."""

    STORED = "stored"
    REPEATED = "repeated"
    """It was there already; nothing was added."""
    REFUSED = "refused"
    """The store will never take this one."""
    FAILED = "failed"
    """It is worth another try."""


class Sink(Protocol):
    async def prepare(self) -> None:
        """Returns once it can be written to. Raises `StoreError`."""

    async def write(self, messages: Sequence[Message]) -> Sequence[Written]:
        """One result for each message, in order. Raises `StoreError` where all of them failed."""

    async def aclose(self) -> None: ...


class StdoutSink:
    """One JSON line per message."""

    def __init__(self, print_bytes: int, stream: BinaryIO | None = None) -> None:
        self._print_bytes = print_bytes
        self._stream = sys.stdout.buffer if stream is None else stream
        # Whoever reads the other end may be slow: requests are answered meanwhile.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stdout")

    async def prepare(self) -> None:
        """Nothing to do."""

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
