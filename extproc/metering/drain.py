"""Deliver what waits when a process ends, or keep it where another process finds it."""

import asyncio
import logging

from extproc.metering.denial_writer import DenialWriter
from extproc.metering.shards import Shards
from extproc.ports.base import StoreError
from extproc.ports.spool import Spool

_log = logging.getLogger(__name__)


async def drain(shards: Shards, denials: DenialWriter, spool: Spool, timeout_s: float) -> bool:
    """Deliver what is queued. Put what is left after `timeout_s` into the spool; return False if any is lost.

    Entries that wait in the journal are safe: other replicas write them.
    """
    denials.flush()
    for shard in shards:
        shard.write_fence.release()
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(shard.settler.drained() for shard in shards))
            await asyncio.gather(*(shard.ledger_writer.drained() for shard in shards))
    except TimeoutError:
        unended = [closing for shard in shards for closing in shard.settler.waiting()]
        lost = len(denials) + sum(shard.ledger_writer.lost_if_stopped() for shard in shards)
        waiting: dict[str, object] = {"closings": len(unended), "only_here": lost}
        try:
            await spool.keep(unended)
        except StoreError as error:
            lost += sum(closing.entry is not None for closing in unended)
            waiting["error"] = str(error)
        if lost:
            _log.error("shutdown: not everything was recorded in time: entries are lost", extra=waiting)
            return False
        _log.warning(
            "shutdown: not everything was recorded in time: spool and journal keep it for another process",
            extra=waiting,
        )
    return True
