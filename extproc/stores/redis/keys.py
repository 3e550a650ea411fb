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
    tw:{<p>}:generation                  hash    number: the highest generation of the ledger that was noted
"""

import re
from typing import Final
from urllib.parse import quote, unquote

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


def generation_key(partition: int) -> str:
    return f"tw:{{{partition}}}:generation"


def open_key(partition: int, epoch: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:open"


def replicas_key(partition: int, epoch: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:replicas"


def reservation_key(partition: int, epoch: str, reservation_id: str) -> str:
    return f"tw:{{{partition}}}:{epoch}:r:{quote(reservation_id, safe='')}"


def bucket_keys(partition: int, epoch: str, tenant: TenantId, keys: list[str]) -> list[str]:
    """The keys of buckets, given by what is unique within their tenant."""
    prefix = f"tw:{{{partition}}}:{epoch}:b:{quote(tenant, safe='')}:"
    return [prefix + key for key in keys]


def bucket_of(key: bytes) -> tuple[TenantId, str] | None:
    """Return the tenant and the key within it of a bucket; None if this is no bucket's key."""
    _, is_bucket, rest = key.partition(b":b:")
    if not is_bucket or _OF_AN_EPOCH.fullmatch(key[: key.index(b":b:") + 1]) is None:
        return None
    tenant, _, name = str(rest, "ascii").partition(":")
    return TenantId(unquote(tenant)), name


def reservation_keys(partition: int, epoch: str, reservation: Reservation) -> list[str]:
    """The KEYS of a script on one reservation."""
    return [
        epoch_key(partition),
        reservation_key(partition, epoch, reservation.id),
        open_key(partition, epoch),
        ledger_key(partition),
        *bucket_keys(partition, epoch, reservation.identity.tenant, [b.key for b in reservation.buckets]),
    ]


def of_epoch(key: bytes) -> tuple[int, str] | None:
    """The partition and the epoch that a key belongs to; None for one that outlives epochs, or is not ours."""
    found = _OF_AN_EPOCH.match(key)
    return (int(found[1]), found[2].decode()) if found is not None else None
