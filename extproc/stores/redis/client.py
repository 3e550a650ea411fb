"""What counters, journal and epochs have in common: calls go to the server of their partition, many at once."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, assert_never

import msgspec
from redis.exceptions import ClusterDownError, MovedError

from extproc.core.quota.reservation import Reservation
from extproc.ports.base import StoreError, UnreadyError
from extproc.stores.pieces import in_pieces
from extproc.stores.redis.cluster import Cluster
from extproc.stores.redis.credentials import with_current_login
from extproc.stores.redis.faults import FAULTS, UNREACHABLE, store_error, translated
from extproc.stores.redis.packing import packed
from extproc.stores.redis.sentinel import BehindSentinels
from extproc.stores.redis.server import Call, Server
from extproc.stores.redis.topology import OneServer, RedisOptions, Topology
from extproc.stores.redis_addresses import Kind, parse_address
from extproc.timing.patient_timeout import PatientTimeouts

_AT_ONCE: Final = 500  # calls in one round trip


class RedisClient:
    """One replica's connections, and the epochs that it registered in."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._topology = _topology_of(options)
        self._adopted: dict[int, str] = {}
        self._packs = options.packs
        self._timeouts = PatientTimeouts(options.command_timeout_s)

    @property
    def independent(self) -> bool:
        return self._topology.independent

    def packs(self, alone: bool) -> None:
        """Write reservations and entries packed from now on; if not `alone` as JSON, for version 0.1."""
        self._packs = alone

    def _body(self, reservation: Reservation) -> bytes:
        return packed(reservation) if self._packs else msgspec.json.encode(reservation)

    def _epoch(self, partition: int) -> str:
        """The epoch that this replica counts in."""
        epoch = self._adopted.get(partition)
        if epoch is None:
            raise UnreadyError("this replica has not registered in the counters yet")
        return epoch

    async def _call(self, call: Call, timeouts: PatientTimeouts | None = None) -> Any:
        """One call, in the time that all have, or in that of `timeouts`."""
        try:
            with (timeouts or self._timeouts).wait():
                return await self._sent(call)
        except FAULTS as error:
            raise store_error(error) from error

    async def _ask(self, call: Call) -> Any:
        """One call, for a caller that bounds it."""
        try:
            return await self._sent(call)
        except FAULTS as error:
            raise store_error(error) from error

    async def _sent(self, call: Call) -> Any:
        server = await self._topology.server(call.partition)
        try:
            return await server.call(call)
        except MovedError:
            await self._topology.moved()
            return await (await self._topology.server(call.partition)).call(call)
        except (asyncio.CancelledError, ClusterDownError, *UNREACHABLE):  # given up, perhaps for it hangs
            self._topology.suspect()
            raise

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Many calls: all are made, then the first one's fault is raised, if there is any."""
        replies = await self.try_all(calls)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    async def try_all(self, calls: Sequence[Call], within_s: float | None = None) -> list[Any]:
        """Many calls, each with its reply or its `StoreError`. No server waits for another one.

        A server has `within_s` to answer, or as long as any batch has.
        """
        within_s = within_s or self._options.batch_timeout_s
        replies = await self._round(calls, within_s)
        if any(isinstance(reply, MovedError) for reply in replies):
            async with translated(within_s):
                await self._topology.moved()
            replies = await self._round(calls, within_s)
        return [store_error(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def by_server(self, partitions: Iterable[int]) -> list[list[int]]:
        """The partitions, together where they are on one server; without those that are nowhere."""
        places, _ = await self._places(partitions, self._options.batch_timeout_s)
        return list(places.values())

    async def _places(
        self, partitions: Iterable[int], within_s: float
    ) -> tuple[dict[Server, list[int]], dict[int, StoreError]]:
        """Which server has which partitions, and why some have none."""
        found: dict[Server, list[int]] = {}
        lost: dict[int, StoreError] = {}
        wanted = list(partitions)
        # Where all partitions are on one server it is looked for once: each wait costs a timer.
        together = len(wanted) if wanted and not self.independent else 1
        for some in in_pieces(wanted, together):
            try:
                async with translated(within_s):
                    found.setdefault(await self._topology.server(some[0]), []).extend(some)
            except StoreError as error:
                lost.update(dict.fromkeys(some, error))
        return found, lost

    async def _round(self, calls: Sequence[Call], within_s: float) -> list[Any]:
        places, lost = await self._places({call.partition for call in calls}, within_s)
        replies: list[Any] = [lost.get(call.partition) for call in calls]
        sent = []
        for server, partitions in places.items():
            indices = [i for i, call in enumerate(calls) if call.partition in partitions]
            sent.append(self._send(server, calls, indices, replies, within_s))
        if len(sent) == 1:
            await sent[0]
        else:
            await asyncio.gather(*sent)
        return replies

    async def _send(
        self, server: Server, calls: Sequence[Call], indices: list[int], replies: list[Any], within_s: float
    ) -> None:
        """Calls of one server in their order, some hundred at a time. After a fault the rest is not tried."""
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            try:
                async with translated(within_s):
                    got = await server.call_all([calls[i] for i in some])
            except StoreError as error:
                self._topology.suspect()
                for i in indices[start:]:
                    replies[i] = error
                return
            for i, reply in zip(some, got, strict=True):
                replies[i] = reply
            if any(isinstance(reply, ClusterDownError) for reply in got):
                self._topology.suspect()

    async def aclose(self) -> None:
        await self._topology.aclose()


def _topology_of(options: RedisOptions) -> Topology:
    address = parse_address(options.url)
    if options.current_url is not None:
        address = with_current_login(address, options.current_url)
    match address.kind:
        case Kind.ONE:
            return OneServer(address, options)
        case Kind.CLUSTER:
            return Cluster(address, options)
        case Kind.SENTINEL:
            return BehindSentinels(address, options)
        case _:
            assert_never(address.kind)
