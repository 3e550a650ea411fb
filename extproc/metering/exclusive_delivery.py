"""Carry out one delivery at a time, with pauses between them: a hanging delivery delays no pause for long."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from extproc.ports.base import StoreError

T = TypeVar("T")

# A delivery takes some milliseconds. Detaching one that is only slow costs a repetition, no more.
_DETACH_AFTER_S: Final = 0.25


class ExclusiveDelivery:
    """Carry out deliveries one after the other, none during a pause."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._detach: asyncio.Future[None] | None = None  # ends the wait for the current delivery
        self._detached: set[asyncio.Task[Any]] = set()
        self._pauses_wanted = 0

    async def deliver(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `step()` with no other delivery beside it. `step` must change nothing in this process.

        If a pause is wanted and the step takes too long, stop waiting and raise a transient `StoreError`: the
        step goes on in the background, so its effect is unknown until it is repeated.
        """
        async with self._lock:
            if self._pauses_wanted:
                raise StoreError("deliveries pause now", transient=True)
            delivery = asyncio.create_task(step())
            detach = self._detach = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait({delivery, detach}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                delivery.cancel()
                await asyncio.wait({delivery})
                raise
            finally:
                self._detach = None
        if delivery.done():
            return delivery.result()
        # Not cancelled: a transaction that is broken off may stay open at its store.
        self._detached.add(delivery)
        delivery.add_done_callback(self._detached_ended)
        raise StoreError("the delivery took too long while a pause was wanted", transient=True)

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """Let no delivery run meanwhile. Detach the current delivery if it takes longer than 250 ms from now."""
        self._pauses_wanted += 1
        timer = asyncio.get_running_loop().call_later(_DETACH_AFTER_S, self._stop_waiting)
        try:
            await self._lock.acquire()
        finally:
            self._pauses_wanted -= 1
            timer.cancel()
        try:
            yield
        finally:
            self._lock.release()

    def _stop_waiting(self) -> None:
        if self._detach is not None and not self._detach.done():
            self._detach.set_result(None)

    def _detached_ended(self, delivery: asyncio.Task[Any]) -> None:
        self._detached.discard(delivery)
        if not delivery.cancelled():
            delivery.exception()  # marks it as retrieved: nobody else asks for it
