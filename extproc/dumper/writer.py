"""Write waiting messages to the sink, and retry until they are written."""

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
    """Write messages in one task. While the sink is down, writes are retried and the holding fills."""

    def __init__(self, holding: Holding, sink: Sink, metrics: DumperMetrics) -> None:
        self._holding = holding
        self._sink = sink
        self._metrics = metrics
        self._in_hand: Held = []
        self.ready = False  # True once the sink has answered

    async def run(self) -> None:
        """Write until the holding is closed and empty."""
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
        """Count the remaining messages as lost, and return their number. Call it when `run` has ended."""
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
        """Write once. Return whether at least one message was written or refused."""
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
            _log.warning(
                "sink: some messages could not be written: they will be retried", extra={"messages": len(left)}
            )
        progress = len(left) < len(self._in_hand)
        self._in_hand = left
        return progress

    def _done(self, held: tuple[Message, int], written: Written) -> None:
        message, size = held
        self._holding.free(size)
        self._metrics.counted(written)
        if written is Written.REFUSED:
            _log.error(
                "sink: a message is refused permanently: it is dropped", extra={"message_id": identity_of(message)}
            )

    def _failed(self, error: StoreError) -> None:
        self._metrics.write_failed()
        _log.warning("sink: write failed: it will be repeated", extra={"error": str(error)})
