"""A dumper that runs as its own process, and what is posted to it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from contextlib import asynccontextmanager

import httpx

from extproc.local.ports import HOST, free_ports
from extproc.local.process import Command, start

AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}


def event(name="1", kind="request", **more):
    """The headers of a message, as KServe 0.20 sends them."""
    return {
        "ce-specversion": "1.0",
        "ce-id": name,
        "ce-type": f"org.kubeflow.serving.inference.{kind}",
        "ce-source": "http://localhost:9081/",
        "ce-time": "2026-11-22T10:20:30.123456789Z",
        "ce-inferenceservicename": "iris",
        "ce-namespace": "models",
        "ce-component": "predictor",
        "ce-endpoint": "default",
        "ce-metadata": "{}",
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


class Dumper:
    """A dumper that runs."""

    def __init__(self, child, url):
        self.child = child
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, verify=False)

    async def post(self, body=b"{}", path="/", **headers):
        return await self.http.post(path, content=body, headers=event(**headers))

    async def metric(self, name):
        text = (await self.http.get("/metrics")).text
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))

    async def count(self, outcome):
        return await self.metric(f'tokenweir_dumper_messages_total{{outcome="{outcome}"}}')

    async def until(self, outcome, messages):
        await until(lambda: self._counted(outcome, messages))

    async def until_empty(self):
        """Wait until nothing that was accepted holds room any more."""

        async def empty():
            return await self.metric("tokenweir_dumper_queue_used_bytes") == 0

        await until(empty)

    async def _counted(self, outcome, messages):
        return await self.count(outcome) >= messages

    def lines(self):
        """What it wrote to stdout and stderr, all of it JSON."""
        return [
            json.loads(line)
            for line in self.child.log_path.read_text().splitlines(keepends=True)
            if line[-1] == "\n"
        ]

    def printed(self):
        return [line for line in self.lines() if "received_at" in line]

    async def line(self, name):
        """What it printed of one message, once it did."""
        async with asyncio.timeout(30):
            while True:
                if lines := [line for line in self.printed() if line["id"] == name]:
                    return lines[0]
                await asyncio.sleep(0.02)

    def terminate(self):
        os.kill(self.child.pid, signal.SIGTERM)


async def until(true, deadline_s=30.0):
    async with asyncio.timeout(deadline_s):
        while True:
            if await true():
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def dumper_in(run_dir, *options, ready=True, **settings):
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    argv = (sys.executable, "-P", "-m", "extproc", "message-dumper", "serve", "--listen", f"{HOST}:{port}")
    env = {f"TOKENWEIR_DUMPER_{name.upper()}": str(value) for name, value in settings.items()}
    command = Command("dumper", (*argv, *options), run_dir, env={**AWS, **env}, stop_grace_s=2)
    child = await start(command, answers(f"{url}/{'readyz' if ready else 'healthz'}"))
    dumper = Dumper(child, url)
    try:
        yield dumper
    finally:
        await dumper.http.aclose()
        await child.stop()


class Door:
    """A port in front of a server. Closed, it refuses connections and cuts those that there are: the server is down."""

    def __init__(self, port, server_port):
        self.port = port
        self._server_port = server_port
        self._listening = None
        self._writers = set()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def open(self):
        self._listening = await asyncio.start_server(self._connected, HOST, self.port)

    async def close(self):
        if self._listening is None:
            return
        self._listening.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._listening = None

    async def _connected(self, reader, writer):
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            self._writers |= {writer, server_writer}
            await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
        except OSError:
            writer.transport.abort()


async def _copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def answers(url):
    async def ready():
        async with httpx.AsyncClient(trust_env=False, verify=False) as http:  # loading CAs takes 30 ms
            try:
                return (await http.get(url)).status_code == 200
            except httpx.TransportError:
                return False

    return ready
