"""Slow uploads fill no more of Envoy than its heap may have, and others are served meanwhile."""

import asyncio
import contextlib
import dataclasses
import json

import httpx
import pytest

from extproc.local.envoy_config import EnvoyOptions
from extproc.local.issuer import TokenIssuer
from extproc.local.parts import start_envoy
from extproc.local.ports import free_ports
from tests.missing import needing_parts

pytestmark = [
    pytest.mark.system,
    pytest.mark.thorough,
]  # half a gigabyte and several cores: not beside other tests
MIB = 1 << 20
UPLOADS, SENT = 100, 4 * MIB - 4096
ISSUER = TokenIssuer()


@contextlib.asynccontextmanager
async def envoy(run_dir, **changes):
    """An Envoy with a model server that is healthy, and no processor: uploads never get as far."""
    listener, admin, processor, upstream = free_ports(4)
    options = EnvoyOptions(
        listener_port=listener,
        admin_port=admin,
        jwks_json=ISSUER.jwks_json(),
        issuer=ISSUER.issuer,
        audience=ISSUER.audience,
        processor_addresses=(f"127.0.0.1:{processor}",),
        upstream_url=f"http://127.0.0.1:{upstream}",
        max_body_bytes=4 * MIB,
    )
    with needing_parts():
        started = await start_envoy(run_dir, dataclasses.replace(options, **changes))
    healthy = await asyncio.start_server(_answer, "127.0.0.1", upstream)
    try:
        yield listener, admin
    finally:
        healthy.close()
        await started.process.stop()


async def _answer(reader, writer):
    while await reader.readline() not in (b"\r\n", b""):
        pass
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def slow_upload(port, token):
    """Send all but the end of a body; return the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {SENT + 1}\r\n\r\n"
    )
    writer.write(head.encode() + b"x" * SENT)
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(20):
            await writer.drain()
    return reader, writer


async def attacked(run_dir, **changes):
    """Return the most memory that Envoy had in MiB, and the statuses that another client got meanwhile."""
    async with envoy(run_dir, **changes) as (listener, admin), httpx.AsyncClient(trust_env=False) as client:
        token, most, statuses, open_ = ISSUER.issue("sa", tenant="acme"), 0, set(), []
        for _ in range(UPLOADS // 5):
            open_ += await asyncio.gather(*(slow_upload(listener, token) for _ in range(5)))
            memory = json.loads((await client.get(f"http://127.0.0.1:{admin}/memory")).text)
            most = max(most, int(memory["allocated"]) // MIB)
            answer = await client.get(f"http://127.0.0.1:{listener}/health")
            statuses.add(answer.status_code)
        for _, writer in open_:
            writer.close()
        return most, statuses


async def test_slow_uploads_take_no_more_memory_than_the_heap_may_have(tmp_path):
    # Without a bound 417 MiB. What comes between two looks at the heap, four a second, comes on top.
    most, statuses = await attacked(tmp_path, max_heap_bytes=320 * MIB)
    assert most < 360, f"{most} MiB"
    assert statuses == {200}, statuses
