"""The journal: streams of the entries that the ledger has not got yet, and of those that it refused for good."""

import logging
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from extproc.core.quota.ledger import Entry
from extproc.core.quota.partitions import PARTITIONS, partition_of
from extproc.ports.base import StoreError
from extproc.ports.counters import Receipt
from extproc.ports.journal import Aside, Backlog, Journalled, Waiting
from extproc.stores.redis.client import RedisClient
from extproc.stores.redis.keys import aside_key, ledger_key
from extproc.stores.redis.packing import read_entry
from extproc.stores.redis.reservations import UNREADABLE
from extproc.stores.redis.server import Argument, Call, command

_ENTRY: Final = b"entry"
_BODY: Final = b"body"
_PAGE: Final = 250  # entries are some kilobytes each, and others want to be served in between
_log = logging.getLogger(__name__)
_Key = TypeVar("_Key")


def receipt_of(partition: int, stream_id: str, reservation_id: str) -> Receipt:
    """A server that lost its last writes may give a stream's id twice: with the reservation's it is unique."""
    return Receipt(partition, f"{stream_id}/{reservation_id}")


def _parts(receipt: Receipt) -> tuple[str, bytes]:
    stream_id, _, reservation_id = receipt.id.partition("/")
    return stream_id, reservation_id.encode("utf-8", "surrogateescape")


class RedisJournal(RedisClient):
    """Implements `ports.Journal`. Ages are by the clock of the server that took the entry."""

    async def written(self, receipts: Sequence[Receipt]) -> None:
        of_partition: dict[int, list[Argument]] = {}
        for receipt in receipts:
            of_partition.setdefault(receipt.partition, []).extend(_parts(receipt))
        await self.call_all(
            [
                Call(partition, "written", (ledger_key(partition),), words[start : start + 400])
                for partition, words in of_partition.items()
                for start in range(0, len(words), 400)
            ]
        )

    async def waiting(
        self, older_than_s: float, at_most: int, partition: int | None = None, after: Receipt | None = None
    ) -> list[Waiting]:
        """Of many partitions each gets its share of `at_most` first, and what others leave of theirs then."""
        partitions = range(PARTITIONS) if partition is None else (partition,)
        if at_most <= 0:
            return []
        until = await self._ages(partitions, older_than_s)
        share = -(-at_most // len(partitions))
        start = "-" if after is None else f"({_parts(after)[0]}"
        found = await self._entries({p: (start, end, share) for p, end in until.items()})
        room = at_most - sum(map(len, found.values()))
        full = [p for p, entries in found.items() if len(entries) == share]
        if room > 0 and full:
            more = await self._entries({p: ("(" + str(found[p][-1][0], "ascii"), until[p], room) for p in full})
            for p, entries in more.items():
                found[p] += entries
        rows = [(_age(row[0]), p, row) for p, entries in found.items() for row in entries]
        rows.sort(key=lambda each: each[:2])
        return [_waiting(p, row) for _, p, row in rows[:at_most]]

    async def journalled(self, partition: int) -> list[Journalled]:
        found: list[Journalled] = []
        start = "-"
        while True:
            page = command(partition, "XRANGE", ledger_key(partition), start, "+", "COUNT", _PAGE)
            (rows,) = await self.call_all([page])
            entries = (_waiting(partition, row).entry for row in rows)
            found += [Journalled.of(entry) for entry in entries if entry is not None]
            if len(rows) < _PAGE:
                return found
            start = "(" + str(rows[-1][0], "ascii")

    async def set_aside(self, entry: Entry | None, receipt: Receipt | None, reason: str) -> None:
        if receipt is not None:
            partition = receipt.partition
        elif entry is not None:
            partition = partition_of(entry.identity.tenant)
        else:
            return
        stream_id, reservation_id = _parts(receipt) if receipt is not None else ("", b"")
        text = msgspec.json.encode(entry) if entry is not None else b""
        keys = (ledger_key(partition), aside_key(partition))
        await self._call(Call(partition, "aside", keys, (stream_id, reservation_id, text, reason)))

    async def aside(self, at_most: int) -> list[Aside]:
        calls = [command(p, "XRANGE", aside_key(p), "-", "+", "COUNT", at_most) for p in range(PARTITIONS)]
        replies = await self.call_all(calls)
        rows = [(_age(row[0]), p, row) for p, reply in enumerate(replies) for row in reply]
        rows.sort(key=lambda each: each[:2])
        return [
            Aside(_text(fields, b"text"), _text(fields, b"reason"), Receipt(p, str(stream_id, "ascii")))
            for _, p, (stream_id, fields) in rows[:at_most]
        ]

    async def forget_aside(self, receipts: Sequence[Receipt]) -> None:
        await self.call_all([command(r.partition, "XDEL", aside_key(r.partition), r.id) for r in receipts])

    async def backlog(self) -> Backlog:
        calls = []
        for p in range(PARTITIONS):
            calls.append(command(p, "XLEN", ledger_key(p)))
            calls.append(command(p, "XRANGE", ledger_key(p), "-", "+", "COUNT", 1))
            calls.append(command(p, "XLEN", aside_key(p)))
            calls.append(command(p, "TIME"))
        replies = await self.try_all(calls)
        of_partition = {p: replies[4 * p : 4 * p + 4] for p in range(PARTITIONS)}
        reached = _reached(
            {p: next((r for r in of if isinstance(r, StoreError)), of) for p, of in of_partition.items()}
        ).values()
        oldest = [_seconds(time) - _age(rows[0][0])[0] / 1000 for _, rows, _, time in reached if rows]
        waiting, aside = sum(each[0] for each in reached), sum(each[2] for each in reached)
        return Backlog(waiting, max(0.0, *oldest) if oldest else 0.0, aside)

    async def _ages(self, partitions: Sequence[int], older_than_s: float) -> dict[int, str]:
        """The last stream id that is old enough, of each partition that can be reached."""
        groups = await self.by_server(partitions)
        times = await self.try_all([command(group[0], "TIME") for group in groups])
        reached = _reached({tuple(group): time for group, time in zip(groups, times, strict=True)})
        return {
            # Its clock may have been put back, or be another server's than the one that took the entries.
            p: str(max(0, int((_seconds(time) - older_than_s) * 1000))) if older_than_s > 0 else "+"
            for group, time in reached.items()
            for p in group
        }

    async def _entries(self, ranges: dict[int, tuple[str, str, int]]) -> dict[int, list[Any]]:
        calls = [
            command(p, "XRANGE", ledger_key(p), start, end, "COUNT", count)
            for p, (start, end, count) in ranges.items()
        ]
        return _reached(dict(zip(ranges, await self.try_all(calls), strict=True)))


def _reached(replies: dict[_Key, Any]) -> dict[_Key, Any]:
    """Those that answered; raises where none did: what can be seen is not held up by a server that is away."""
    reached = {p: reply for p, reply in replies.items() if not isinstance(reply, StoreError)}
    if replies and not reached:
        raise next(iter(replies.values()))
    return reached


def _waiting(partition: int, row: Any) -> Waiting:
    stream_id, fields = row
    first = next(iter(fields.values()), b"")
    receipt = receipt_of(partition, str(stream_id, "ascii"), str(first, "utf-8", "surrogateescape"))
    try:
        return Waiting(receipt, *read_entry(fields[_ENTRY], fields.get(_BODY)))
    except UNREADABLE:
        _log.error("an entry that waits for the ledger can't be read", extra={"id": receipt.id})
        return Waiting(receipt, None)


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return str(fields.get(name, b""), "utf-8", "replace")


def _age(stream_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition(b"-")
    return int(milliseconds), int(number)


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6
