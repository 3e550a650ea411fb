"""Reservations as the scripts take and keep them."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from extproc.core.quota.limits import Bucket
from extproc.core.quota.reservation import Reservation
from extproc.stores.redis.keys import reservation_keys
from extproc.stores.redis.packing import read_body
from extproc.stores.redis.server import Argument, Call

# A bucket outlives its window by so much, that exchanges which were admitted in it can still be settled.
_BUCKET_GRACE_S: Final = 86_400
# An open reservation outlives its deadline by so much, in case nobody is there to expire it in time.
_OPEN_GRACE_S: Final = 86_400
# An end is remembered for longer than any call is repeated.
END_MEMORY_S: Final = 600
# Lists live for longer than anything in them, from when something was last put there.
LIST_MEMORY_S: Final = 8 * 86_400

_log = logging.getLogger(__name__)
# What reading a body that is none may raise.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, TypeError, LookupError)


def forgotten_at(window_end: int) -> int:
    """When a bucket may be forgotten, seconds since the epoch."""
    return window_end + _BUCKET_GRACE_S


def window_end(forgotten_at: int) -> int:
    """Return the end of the window of a bucket that is forgotten then."""
    return forgotten_at - _BUCKET_GRACE_S


def bucket_forgotten_at(bucket: Bucket) -> int:
    return forgotten_at(bucket.interval.end)


def kept_s(reservation: Reservation) -> tuple[int, int]:
    """Return how long a reservation is kept at the most, and the list of open ones at the least, in seconds."""
    kept = max(1, int(reservation.deadline - reservation.admitted_at.timestamp())) + _OPEN_GRACE_S
    return kept, max(LIST_MEMORY_S, kept)


def renewal(
    partition: int, epoch: str, reservation: Reservation, body: bytes, *, take_up: bool, renew: bool
) -> Call:
    """Takes a reservation up that is not known, and renews one that is open; or only one of both."""
    bound = reservation.bound
    args: list[Argument] = [
        epoch,
        reservation.id,
        reservation.deadline,
        body,
        *kept_s(reservation),
        bound.output if bound is not None else 0,
        int(take_up),
        int(renew),
    ]
    for bucket in reservation.buckets:
        args += (reservation.hold(bucket.limit), bucket_forgotten_at(bucket))
    return Call(partition, "renew", reservation_keys(partition, epoch, reservation), args)


def read_reservation(row: Sequence[Any]) -> Reservation | None:
    """From the fields body and output; None where it can't be read."""
    body, output = row
    try:
        return read_body(body).granted(int(output or 0))
    except UNREADABLE:
        _log.exception("reservation can't be read, its tokens stay held")
        return None
