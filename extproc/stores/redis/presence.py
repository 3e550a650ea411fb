"""Presence: which replicas are here, and what one of them left open."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from extproc.core.quota.partitions import PARTITIONS
from extproc.core.quota.reservation import Reservation, ReservationId
from extproc.ports.base import ShardId
from extproc.ports.presence import FORGOTTEN_S, REPLICAS_AT_MOST, SILENCE_S
from extproc.stores.pieces import in_pieces
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import epoch_key, open_key, reservation_key, seen_key
from extproc.stores.redis.reservations import read_reservation
from extproc.stores.redis.server import Call, command
from extproc.stores.redis.topology import RedisOptions
from extproc.timing.patient_timeout import PatientTimeouts

_KEPT_S: Final = 86_400
_SCANNED: Final = 500  # of all partitions together, in one round trip
_IN_A_SCRIPT: Final = 100  # reservations: the server serves others in between


class RedisPresence(RedisClient):
    """Implement `ports.Presence`."""

    def __init__(self, options: RedisOptions) -> None:
        super().__init__(options)
        self._note_timeouts = PatientTimeouts(options.note_timeout_s)

    async def seen(self, replica: str, shard_id: ShardId = None) -> dict[str, float]:
        """Take one round trip."""
        partition = shard_id or 0
        args = (replica, FORGOTTEN_S, SILENCE_S, _KEPT_S)
        *rows, now = await self._call(Call(partition, "seen", (seen_key(partition),), args), self._note_timeouts)
        ages = {str(name, "utf-8"): float(now) - float(at) for name, at in zip(rows[::2], rows[1::2], strict=True)}
        ages.pop(replica, None)
        others = [(name, max(0.0, age)) for name, age in ages.items() if age <= FORGOTTEN_S]
        return dict(others[: REPLICAS_AT_MOST - 1]) | {replica: 0.0}

    async def forget_replica(self, replica: str, shard_id: ShardId = None, *, older_than_s: float = 0.5) -> bool:
        """Take one round trip."""
        partition = shard_id or 0
        return bool(await self._call(Call(partition, "unseen", (seen_key(partition),), (replica, older_than_s))))

    async def opened_by(self, replica: str, shard_id: ShardId = None) -> list[Reservation]:
        """Look at each open reservation on the server: only the replica's own travel."""
        name = (msgspec.json.encode(replica), msgspec.msgpack.encode(replica))  # as it stands in bodies
        partitions = range(PARTITIONS) if shard_id is None else (shard_id,)
        ids = await self.call_all([command(p, "HGET", epoch_key(p), "id") for p in partitions])
        epochs = {p: str(each, "ascii") for p, each in zip(partitions, ids, strict=True) if each is not None}
        found: dict[ReservationId, Reservation] = {}
        cursors: dict[int, int | bytes] = dict.fromkeys(epochs, 0)
        while cursors:
            at_once = -(-_SCANNED // len(cursors))
            scans = [
                command(p, "ZSCAN", open_key(p, epochs[p]), cursor, "COUNT", at_once)
                for p, cursor in cursors.items()
            ]
            pages = dict(zip(cursors, await self.call_all(scans), strict=True))
            calls = [call for p, (_, rows) in pages.items() for call in _looks(p, epochs[p], rows, name)]
            for reply in await self.call_all(calls):
                for row in zip(reply[::2], reply[1::2], strict=True):
                    reservation = read_reservation(row)
                    if reservation is not None and reservation.replica == replica:
                        found[reservation.id] = reservation
            cursors = {p: cursor for p, (cursor, _) in pages.items() if int(cursor)}
        # Asked last: as long as an epoch is the current one, its keys are there.
        await self.call_all([_look(p, epoch, (), name) for p, epoch in epochs.items()])
        return list(found.values())


def _looks(partition: int, epoch: str, rows: list[Any], name: tuple[bytes, bytes]) -> list[Call]:
    """Make the calls for a page of the open reservations: id and deadline of each."""
    keys = [reservation_key(partition, epoch, str(row[0], "utf-8")) for row in rows]
    return [_look(partition, epoch, some, name) for some in in_pieces(keys, _IN_A_SCRIPT)]


def _look(partition: int, epoch: str, reservations: Sequence[str], name: tuple[bytes, bytes]) -> Call:
    return Call(partition, "opened", (epoch_key(partition), *reservations), (epoch, *name))
