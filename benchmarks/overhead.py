"""Measure the time that Tokenweir adds to a request and to a streamed chunk, against the same Envoy without it.

    python benchmarks/overhead.py [--rounds 7] [--requests 300] [--concurrency 8] [--json]

Both Envoys are in front of the same sample model server, which answers at once. Rounds alternate between them, and
the figures are medians over rounds. Client, Envoys, model server and processor share this machine's cores, so
compare the ratios, not the requests per second.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from extproc.local.envoy_config import EnvoyOptions, render
from extproc.local.parts import envoy_binary
from extproc.local.ports import free_ports
from extproc.local.process import Command, start
from extproc.local.stack import SAMPLE_MODEL, Stack, StackOptions, running

_UNLIMITED = {"TOKENWEIR_LIMITS__DEFAULT__SA_LIMIT": "1000000000", "TOKENWEIR_COST__TYPICAL_OUTPUT_TOKENS": "64"}
_STREAM_TOKENS = 200


@dataclass(frozen=True)
class Side:
    """Describe one Envoy."""

    name: str
    url: str
    headers: str


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300, help="requests a round and side")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tokenweir-bench-") as folder:
        options = StackOptions(settings=_UNLIMITED)
        async with running(options, Path(folder)) as stack:
            bare = await _envoy_without(stack, Path(folder))
            try:
                figures = await _measure(stack, bare, args)
            finally:
                await bare[1].stop()
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, row in figures.items():
            cells = "  ".join(f"{key} {value:10.3f}" for key, value in row.items())
            print(f"{name:28} {cells}")


async def _measure(
    stack: Stack, bare: tuple[str, object], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    token = f"authorization: Bearer {stack.issuer.issue('bench@bench.example.com', tenant='bench')}\r\n"
    sides = (Side("without", bare[0], ""), Side("with", stack.gateway, token))
    measures: dict[str, Callable[[Side], Coroutine[None, None, float]]] = {
        "latency p50, ms": lambda side: _latency(side, args.requests, 1),
        f"requests/s, {args.concurrency} clients": lambda side: _throughput(side, args.requests, args.concurrency),
        "stream, ms per chunk": _chunk_time,
    }
    figures = {}
    for name, measure in measures.items():
        samples: dict[str, list[float]] = {side.name: [] for side in sides}
        for side in sides:
            await measure(side)  # fills connection pools and caches
        for _ in range(args.rounds):
            for side in sides:
                samples[side.name].append(await measure(side))
        without, with_ = (statistics.median(samples[side.name]) for side in sides)
        figures[name] = {"without": without, "with": with_, "ratio": with_ / without}
    return figures


async def _latency(side: Side, requests: int, concurrency: int) -> float:
    times = await _plain(side, requests, concurrency)
    return statistics.median(times) * 1000


async def _throughput(side: Side, requests: int, concurrency: int) -> float:
    begin = time.perf_counter()
    await _plain(side, requests, concurrency)
    return requests / (time.perf_counter() - begin)


async def _plain(side: Side, requests: int, concurrency: int) -> list[float]:
    body = {"model": SAMPLE_MODEL, "messages": [{"role": "user", "content": "1 + 1 =?"}], "max_tokens": 8}
    request = _request(side, body)
    times: list[float] = []

    async def client(count: int) -> None:
        reader, writer = await _connect(side)
        for _ in range(count):
            begin = time.perf_counter()
            writer.write(request)
            await _answer(reader)
            times.append(time.perf_counter() - begin)
        writer.close()

    await asyncio.gather(*(client(requests // concurrency) for _ in range(concurrency)))
    return times


async def _chunk_time(side: Side) -> float:
    body = {
        "model": SAMPLE_MODEL,
        "messages": [{"role": "user", "content": "Tell me of weirs."}],
        "max_tokens": _STREAM_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    reader, writer = await _connect(side)
    begin = time.perf_counter()
    writer.write(_request(side, body))
    await _answer(reader)
    writer.close()
    return (time.perf_counter() - begin) * 1000 / _STREAM_TOKENS


async def _connect(side: Side) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(side.url)
    return await asyncio.open_connection(url.hostname, url.port)


def _request(side: Side, body: object) -> bytes:
    text = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"{side.headers}content-length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


async def _answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(f"unexpected answer: {head[:200]!r}")
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return
    while (size := int((await reader.readline()).split(b";")[0], 16)) > 0:
        await reader.readexactly(size + 2)
    await reader.readline()


async def _envoy_without(stack: Stack, folder: Path) -> tuple[str, object]:
    """Start the same Envoy without jwt_authn, buffer and ext_proc."""
    port, admin = free_ports(2)
    options = EnvoyOptions(
        listener_port=port,
        admin_port=admin,
        jwks_json=stack.issuer.jwks_json(),
        issuer=stack.issuer.issuer,
        audience=stack.issuer.audience,
        processor_addresses=("127.0.0.1:1",),
        upstream_url=stack.upstream,
    )
    config = yaml.safe_load(render(options))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.pop("typed_per_filter_config", None)
    (folder / "bare.json").write_text(json.dumps(config))
    argv = (str(envoy_binary()), "-c", "bare.json", "--concurrency", "1", "--disable-hot-restart", "-l", "error")

    async def ready() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True

    return f"http://127.0.0.1:{port}", await start(Command("bare-envoy", argv, folder), ready)


if __name__ == "__main__":
    asyncio.run(main())
