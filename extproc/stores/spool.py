"""Spool records to a file of JSON lines on local disk, one file per process. An idle spool is emptied or removed.

    {"opened": reservation}    admitted by this process alone
    {"ended": closing}         the end of a reservation
    {"done": [id, ...]}        recorded elsewhere

A process holds a lock on its file as long as it lives. The kernel releases the lock, however the process dies. A
file that can be locked therefore has no owner, and the process that locks it may replay it. A replay is safe,
because every record has an id.
"""

import asyncio
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".spool"
# The record of a reservation's end, with its entry, is at most this many times as long as the reservation.
_END: Final = 3


class _Line(msgspec.Struct, omit_defaults=True):
    """Hold one record. Exactly one of the fields is set."""

    opened: Reservation | None = None
    ended: Closing | None = None
    done: list[ReservationId] = []


_line = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """Configure the spool. `directory` must be used by this process and its successors only.

    Once the file has `max_bytes`, no further reservation is admitted through the spool. Ends are still written.
    """

    directory: Path
    max_bytes: int = 64 << 20


class SpoolError(Exception):
    """Report that the directory can't be used. The message names the directory and the fix."""


def _check_owner(directory: Path) -> None:
    """Refuse a directory that others can write to: its records become charges. Raise `OSError`."""
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write there")


def _locked(path: Path) -> int:
    """Create a file and lock it before it gets its final name, so that no other process can take it for
    abandoned.
    """
    unnamed = path.with_suffix(".new")
    file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
    except OSError:
        os.close(file)
        raise
    return file


class FileSpool:
    """Implement `ports.Spool`. One writer syncs to disk once for all waiting records."""

    def __init__(self, options: SpoolOptions, name: str) -> None:
        """Open a spool file of this name. Raise `SpoolError` if the directory can't be written to."""
        self._options = options
        self._open: dict[ReservationId, int] = {}  # and the room that is reserved for its end
        self._promised = 0
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []  # for the queued records
        self._flushing: asyncio.Task[None] | None = None
        self.path = options.directory / f"{name}{_SUFFIX}"
        try:
            options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(options.directory)
            self._file = _locked(self.path)
        except OSError as error:
            raise SpoolError(
                f"spool.directory: {options.directory} can't be written to: {error.strerror}; "
                "it must be a directory of this user's own, on a local disk"
            ) from error
        self._size = 0

    @property
    def size(self) -> int:
        """Return the bytes in the file and in the queue."""
        return self._size + self._queued_bytes

    async def opened(self, reservation: Reservation) -> None:
        line = _encoded(_Line(opened=reservation))
        room = _END * len(line)
        if self.size + self._promised + len(line) + room > self._options.max_bytes:
            raise StoreError("the spool is full", transient=True)
        self._remember(reservation.id, room)
        await self._on_disk([line])

    def ended(self, closing: Closing) -> None:
        self._remember(closing.reservation.id, 0)
        self._put(_encoded(_Line(ended=closing)))

    async def keep(self, closings: Sequence[Closing]) -> None:
        lines: list[bytes] = []
        room = self._options.max_bytes - self.size - self._promised
        for closing in closings:
            line = _encoded(_Line(ended=closing))
            room -= len(line)
            if room < 0:
                break
            self._remember(closing.reservation.id, 0)
            lines.append(line)
        await self._on_disk(lines)
        if len(lines) < len(closings):
            raise StoreError(f"the spool is full: {len(closings) - len(lines)} ends did not fit", transient=False)

    def done(self, ids: Sequence[ReservationId]) -> None:
        known = [each for each in ids if each in self._open]
        for each in known:
            self._promised -= self._open.pop(each)
        if known:
            self._put(_encoded(_Line(done=known)))

    async def aclose(self) -> None:
        """Write the queue and close the file. Remove the file if nothing in it is needed any more."""
        if self._queue:
            self._start()
        if self._flushing is not None:
            await self._flushing
        if not self._open:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _remember(self, each: ReservationId, room: int) -> None:
        self._promised += room - self._open.get(each, 0)
        self._open[each] = room

    def _put(self, line: bytes) -> None:
        self._queue.append(line)
        self._queued_bytes += len(line)
        self._start()

    def _start(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _on_disk(self, lines: Sequence[bytes]) -> None:
        """Write lines and wait until they are on disk. Raise `StoreError`."""
        if lines:
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(written)
            for line in lines:
                self._put(line)
            await written

    async def _flush(self) -> None:
        while self._queue:
            lines, self._queue = self._queue, []
            waiting, self._waiting = self._waiting, []
            idle = not self._open  # nothing in the file or the queue is needed any more
            try:
                await asyncio.to_thread(self._write, b"".join(lines), empty=idle)
            except OSError as error:
                self._queue = lines + self._queue  # retried with the next write
                why = error.strerror or str(error)
                _log.error("spool: write failed: records stay queued for the next write", extra={"error": why})
                failed, self._waiting = [*waiting, *self._waiting], []
                for future in failed:
                    if not future.done():
                        message = f"the spool can't be written to: {why}"
                        future.set_exception(StoreError(message, transient=True))
                return
            written = sum(map(len, lines))
            self._queued_bytes -= written
            self._size = 0 if idle else self._size + written
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _write(self, data: bytes, *, empty: bool) -> None:
        if empty:
            os.ftruncate(self._file, 0)
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            # Half a line would spoil the next one.
            os.ftruncate(self._file, self._size)
            raise


@dataclass(slots=True)
class LeftBehind:
    """Hold the records of a process that is gone: reservations without an end, and ends that are not recorded."""

    path: Path
    unended: list[Reservation] = field(default_factory=list)
    ended: list[Closing] = field(default_factory=list)
    unreadable: int = 0

    @property
    def ids(self) -> list[ReservationId]:
        return [*(closing.reservation.id for closing in self.ended), *(r.id for r in self.unended)]

    def remove(self) -> None:
        """Delete the file, because its records are stored elsewhere now."""
        self.path.unlink(missing_ok=True)


def left_behind(directory: Path) -> Iterator[LeftBehind]:
    """Yield the spool files of processes that are gone. Each is locked meanwhile, so that nobody else replays
    it.
    """
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # its owner has just removed it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue  # its owner lives
        try:
            if os.fstat(file).st_nlink:  # else another process replayed and removed it meanwhile
                yield _read(path, file)
        finally:
            os.close(file)


def _read(path: Path, file: int) -> LeftBehind:
    found = LeftBehind(path)
    opened: dict[ReservationId, Reservation] = {}
    ended: dict[ReservationId, Closing] = {}
    with os.fdopen(os.dup(file), "rb") as lines:
        data = lines.read()
    for line in data.splitlines():
        try:
            read = _line.decode(line)
        except (msgspec.DecodeError, UnicodeError):
            found.unreadable += 1  # the last line: the process was killed while it wrote
            continue
        if read.opened is not None:
            opened[read.opened.id] = read.opened
        if read.ended is not None:
            ended[read.ended.reservation.id] = read.ended
        for each in read.done:
            opened.pop(each, None)
            ended.pop(each, None)
    found.ended = list(ended.values())
    found.unended = [reservation for each, reservation in opened.items() if each not in ended]
    return found


def _encoded(line: _Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


class NoSpool:
    """Replace the spool if no directory is configured: it admits nothing and keeps nothing."""

    async def opened(self, reservation: Reservation) -> None:  # noqa: ARG002
        raise StoreError("there is no spool: set spool.directory", transient=False)

    def ended(self, closing: Closing) -> None:
        """Ignore the end: nothing was opened."""

    def done(self, ids: Sequence[ReservationId]) -> None:
        """Ignore the ids: nothing is recorded."""

    async def keep(self, closings: Sequence[Closing]) -> None:
        if closings:
            raise StoreError("there is no spool: set spool.directory", transient=False)
