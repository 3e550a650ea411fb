"""Serve ext_proc on Tokenweir's own transport and change nothing: the least that a processor on it costs.

    python -m benchmarks.noop_native PORT

Every message is parsed. The replies are the same for all requests, and are serialised once.
"""

import asyncio
import importlib
import sys
from typing import Any

import uvloop

from benchmarks.noop import REPLIES, SERVICE
from benchmarks.variants import OWN_TRANSPORT
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb

_REPLIES = {kind: reply.SerializeToString() for kind, reply in REPLIES.items()}


async def _process(call: Any) -> None:
    while (data := await call.read()) is not None:
        await call.write(_REPLIES[pb.ProcessingRequest.FromString(data).WhichOneof("request")])


async def _serve(port: int) -> None:
    # By name: a version without a transport of its own has no such modules.
    listening, limits, server = (
        importlib.import_module(f"{OWN_TRANSPORT}.{name}") for name in ("listening", "limits", "server")
    )
    serving = server.GrpcServer({f"/{SERVICE}/Process": _process}, limits.Limits())
    await serving.start(listening.listen_on("127.0.0.1", port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
