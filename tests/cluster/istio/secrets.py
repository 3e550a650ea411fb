"""Certificates over SDS, as the agent in a pod gives them to its Envoy: one Unix socket for each workload."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from extproc.local.process import Command, start

ROOT = Path(__file__).parents[3]

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
_SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
_RESOURCE_NAMES, _NONCE = 3, 5  # of a DiscoveryRequest


@asynccontextmanager
async def serving(folder, authority, principals):
    """Answers at the socket of each name with the certificate of its principal (`default`) and the CA (`ROOTCA`).

    A process of its own: gRPC does not bear the forks of the one that starts Envoys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: [str(file) for file in authority.issue(principal)] for name, principal in principals.items()}
    (folder / "known.json").write_text(json.dumps({"ca": str(authority.ca), "files": files}), encoding="utf-8")

    async def ready():
        return all((folder / name).exists() for name in principals)

    command = (sys.executable, "-m", __name__, str(folder))
    child = await start(Command("secrets", command, folder, env={"PYTHONPATH": str(ROOT)}), ready)
    try:
        yield {name: folder / name for name in principals}
    finally:
        await child.stop()


def _known(folder):
    known = json.loads((folder / "known.json").read_text(encoding="utf-8"))
    files = {name: [Path(each).read_bytes() for each in both] for name, both in known["files"].items()}
    return {"ca": Path(known["ca"]).read_bytes(), "files": files}


async def _serve(folder, known):
    roots = known["ca"]
    servers = []
    for name, files in known["files"].items():
        server = grpc.aio.server()
        certificate, key = files
        method = grpc.stream_stream_rpc_method_handler(
            _stream({"default": _certificate(certificate, key), "ROOTCA": _authority(roots)})
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"StreamSecrets": method}),)
        )
        server.add_insecure_port(f"unix:{folder / name}")
        await server.start()
        servers.append(server)
    await asyncio.Event().wait()


def _stream(secrets):
    async def stream(requests, context):
        async for request in requests:
            found = _fields(request)
            if any(field == _NONCE for field, _ in found):
                continue  # an acknowledgement
            for field, value in found:
                if field == _RESOURCE_NAMES:
                    yield _response(secrets[value.decode()])
        await asyncio.Event().wait()

    return stream


def _response(secret):
    resource = delimited(1, _SECRET.encode()) + delimited(2, secret)
    return delimited(1, b"1") + delimited(2, resource) + delimited(4, _SECRET.encode()) + delimited(5, b"1")


def _certificate(chain, key):
    return delimited(1, b"default") + delimited(2, delimited(1, _inline(chain)) + delimited(2, _inline(key)))


def _authority(roots):
    return delimited(1, b"ROOTCA") + delimited(4, delimited(1, _inline(roots)))


def _inline(data):
    return delimited(2, data)  # DataSource.inline_bytes


def delimited(field, value):
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _fields(message):
    """The length-delimited fields of a protobuf message; others are passed over."""
    found, place = [], 0
    while place < len(message):
        tag, place = _read(message, place)
        if tag & 7 == 2:
            size, place = _read(message, place)
            found.append((tag >> 3, message[place : place + size]))
            place += size
        elif tag & 7 == 0:
            _, place = _read(message, place)
        else:
            place += {1: 8, 5: 4}[tag & 7]
    return found


def _read(message, place):
    number = shift = 0
    while True:
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, place


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), _known(Path(sys.argv[1]))))
