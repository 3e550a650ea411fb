"""Serve ext_proc on grpc.aio and change nothing: the least that a processor on grpc.aio costs.

    python -m benchmarks.noop_grpc PORT

Every message is parsed and answered, as Tokenweir's are.
"""

import sys
from typing import Any

import grpc
import uvloop

from benchmarks.noop import REPLIES, SERVICE
from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb


async def _process(_requests: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(REPLIES[message.WhichOneof("request")])


async def _serve(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.bdp_probe", 0)])
    method = grpc.stream_stream_rpc_method_handler(
        _process,
        request_deserializer=pb.ProcessingRequest.FromString,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
