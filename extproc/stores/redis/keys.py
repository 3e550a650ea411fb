"""The keys. All parts are percent-escaped: two identities never share a key.

One hash tag per partition, so that a Cluster keeps a partition on one node. `e` is the id of an epoch:

    tw:{<p>}:epoch                       hash    id, state, run, previous
    tw:{<p>}:<e>:b:<tenant>:<bucket>     hash    used, held, alerted
    tw:{<p>}:<e>:r:<id>                  hash    outcome, output, body, and what each bucket holds: 1, 2, ...
    tw:{<p>}:<e>:open                    zset    open reservations by deadline
    tw:{<p>}:<e>:replicas                set     the replicas that registered in the epoch
    tw:{<p>}:ledger                      stream  entries that wait to be written to the ledger: id, entry
    tw:{<p>}:aside                       stream  entries that the ledger refused for good: text, reason
    tw:{<p>}:seen                        zset    when replicas were last noted, seconds of the server's clock
    tw:{<p>}:alerts                      zset    alerts on denials that were told, by the end of their window
    tw:{<p>}:generation                  hash    number: the highest generation of the ledger that was noted
"""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

from extproc.core.by_identity import ByIdentity
from extproc.core.quota.limits import Bucket
from extproc.core.quota.reservation import Reservation
from extproc.core.request.identity import TenantId

EVERY_KEY: Final = "tw:{*"
_OF_AN_EPOCH = re.compile(rb"tw:\{(\d+)\}:([0-9a-f]{16}):")


def epoch_key(partition: int) -> str:
    return f"tw:{{{partition}}}:epoch"


def ledger_key(partition: int) -> str:
    return f"tw:{{{partition}}}:ledger"


def aside_key(partition: int) -> str:
    return f"tw:{{{partition}}}:aside"


def seen_key(partition: int) -> str:
    return f"tw:{{{partition}}}:seen"


def alerts_key(partition: int) -> str:
    return f"tw:{{{partition}}}:alerts"


def generation_key(partition: int) -> str:
    return f"tw:{{{partition}}}:generation"


def open_key(partition: int, epoch: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:open"


def replicas_key(partition: int, epoch: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:replicas"


def reservation_key(partition: int, epoch: str, reservation_id: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:r:{_escaped_id(reservation_id)}"


def bucket_keys(partition: int, epoch: str, tenant: TenantId, keys: list[str]) -> list[str]:
    """The keys of buckets, given by what is unique within their tenant."""
    prefix = f"tw:{{{partition}}}:{epoch}:b:{quote(tenant, safe='')}:"
    return [prefix + key for key in keys]


def _escaped_id(reservation_id: str) -> str:
    if reservation_id.isascii() and reservation_id.isalnum():  # all that this version draws
        return reservation_id
    return quote(reservation_id, safe="")


def bucket_of(key: bytes) -> tuple[TenantId, str] | None:
    """Return the tenant and the key within it of a bucket; None if this is no bucket's key."""
    _, is_bucket, rest = key.partition(b":b:")
    if not is_bucket or _OF_AN_EPOCH.fullmatch(key[: key.index(b":b:") + 1]) is None:
        return None
    tenant, _, name = str(rest, "ascii").partition(":")
    return TenantId(unquote(tenant)), name


def reservation_keys(partition: int, epoch: str, reservation: Reservation) -> list[str]:
    """The KEYS of a script on one reservation."""
    of_epoch, of_reservation, opened, ledger, of_bucket = _lasting(partition, epoch, reservation.identity.tenant)
    keys = [of_epoch, of_reservation + _escaped_id(reservation.id), opened, ledger]
    keys += [of_bucket + key for key in _KEYS_OF_BUCKETS.of(reservation.buckets)]
    return keys


@lru_cache(maxsize=4096)
def _lasting(partition: int, epoch: str, tenant: TenantId) -> tuple[str, str, str, str, str]:
    """Return what keys of a tenant share, and how those of a reservation and of a bucket begin."""
    of_reservation = reservation_key(partition, epoch, "")
    (of_bucket,) = bucket_keys(partition, epoch, tenant, [""])
    return epoch_key(partition), of_reservation, open_key(partition, epoch), ledger_key(partition), of_bucket


def _keys_of(buckets: tuple[Bucket, ...]) -> list[str]:
    return [bucket.key for bucket in buckets]


# The buckets of a caller's requests are the same objects until a window ends.
_KEYS_OF_BUCKETS: Final = ByIdentity(_keys_of)


def of_epoch(key: bytes) -> tuple[int, str] | None:
    """The partition and the epoch that a key belongs to; None for one that outlives epochs, or is not ours."""
    found = _OF_AN_EPOCH.match(key)
    return (int(found[1]), found[2].decode()) if found is not None else None
