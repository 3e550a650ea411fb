"""Takes what waits to the sink, for as long as that takes."""

import asyncio
import logging
from time import perf_counter
from typing import Final

from extproc.dumper.holding import Holding
from extproc.dumper.message import Message, identity_of
from extproc.dumper.metrics import LOST, DumperMetrics
from extproc.dumper.sinks import Sink, Written
from extproc.ports.base import StoreError
from extproc.timing.backoff import Backoff

_log = logging.getLogger(__name__)
_BATCH: Final = 200
_BATCH_BYTES: Final = 8 << 20
_BACKOFF: Final = Backoff(first_s=0.4, max_s=10.0)

Held = list[tuple[Message, int]]


class Writer:
    """One task. A sink that is down is tried again until it is back: meanwhile the holding fills."""

    def __init__(self, holding: Holding, sink: Sink, metrics: DumperMetrics) -> None:
        self._holding = holding
        self._sink = sink
        self._metrics = metrics
        self._in_hand: Held = []
        self.ready = False
        """Whether the sink has answered once."""

    async def run(self) -> None:
        """Returns once the holding is closed and all of it is written."""
        await self._prepare()
        while batch := await self._holding.take(_BATCH, _BATCH_BYTES):
            self._in_hand = batch
            failures = 0
            while self._in_hand:
                if await self._write():
                    failures = 0
                else:
                    failures += 1
                    await asyncio.sleep(_BACKOFF.wait_s(failures))

    def give_up(self) -> int:
        """Counts what is left as lost, and returns how many messages that are. Call it when nothing runs."""
        left = len(self._in_hand) + len(self._holding)
        self._metrics.counted(LOST, left)
        return left

    async def _prepare(self) -> None:
        failures = 0
        while not self.ready:
            try:
                await self._sink.prepare()
            except StoreError as error:
                failures += 1
                self._failed(error)
                await asyncio.sleep(_BACKOFF.wait_s(failures))
            else:
                self.ready = True

    async def _write(self) -> bool:
        """One try. Whether anything came of it."""
        started = perf_counter()
        try:
            results = await self._sink.write([message for message, _ in self._in_hand])
        except StoreError as error:
            self._failed(error)
            return False
        self._metrics.wrote(perf_counter() - started)
        left: Held = []
        for held, written in zip(self._in_hand, results, strict=True):
            if written is Written.FAILED:
                left.append(held)
            else:
                self._done(held, written)
        if left:
            self._metrics.write_failed()
            _log.warning("some messages could not be written", extra={"messages": len(left)})
        progress = len(left) < len(self._in_hand)
        self._in_hand = left
        return progress

    def _done(self, held: tuple[Message, int], written: Written) -> None:
        message, size = held
        self._holding.free(size)
        self._metrics.counted(written)
        if written is Written.REFUSED:
            _log.error("the sink takes this message never", extra={"message_id": identity_of(message)})

    def _failed(self, error: StoreError) -> None:
        self._metrics.write_failed()
        _log.warning("can't write", extra={"error": str(error)})
