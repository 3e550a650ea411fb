"""One delivery at a time, and rest from them for whoever needs it: one that hangs does not keep others waiting."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from extproc.ports.base import StoreError

T = TypeVar("T")

# A delivery takes some milliseconds. On a busy machine it may end all the same: it would only be repeated.
_PATIENCE_S = 0.25


class ExclusiveDelivery:
    """Deliveries take turns."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._given_up: asyncio.Future[None] | None = None  # what the delivery in hand is told by
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._rest_wanted = 0

    async def deliver(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Takes a step alone, which changes nothing in here.

        Raises a `StoreError` that passes where it was given up: what it did is unknown, and it may yet do it.
        """
        async with self._lock:
            if self._rest_wanted:
                raise StoreError("it was its turn when others needed rest", transient=True)
            delivery = asyncio.create_task(step())
            given_up = self._given_up = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait({delivery, given_up}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                delivery.cancel()
                await asyncio.wait({delivery})
                raise
            finally:
                self._given_up = None
        if delivery.done():
            return delivery.result()
        self._leave_behind(delivery)
        raise StoreError("it took long, and others needed rest", transient=True)

    @asynccontextmanager
    async def rest(self) -> AsyncIterator[None]:
        """No delivery meanwhile. One that takes longer than a moment from now on is given up."""
        self._rest_wanted += 1
        patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._give_up)
        try:
            await self._lock.acquire()
        finally:
            self._rest_wanted -= 1
            patience.cancel()
        try:
            yield
        finally:
            self._lock.release()

    def _give_up(self) -> None:
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(None)

    def _leave_behind(self, delivery: asyncio.Task[Any]) -> None:
        """Lets it go on, and nobody waits for it: a transaction that is broken off may stay open at its store."""
        self._left_behind.add(delivery)
        delivery.add_done_callback(self._gone)

    def _gone(self, delivery: asyncio.Task[Any]) -> None:
        self._left_behind.discard(delivery)
        if not delivery.cancelled():
            delivery.exception()  # nobody asks for it any more
