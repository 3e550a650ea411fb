"""The real Envoy before the replicas, for the promises that are about it."""

import asyncio
import contextlib
from dataclasses import dataclass, field

import httpx

from extproc.local import parts
from extproc.local.envoy_config import EnvoyOptions
from extproc.local.issuer import TokenIssuer
from extproc.local.ports import free_ports
from extproc.local.process import Child
from tests.plaintext import plaintext_client
from tests.system.stacks import MESSAGE_S
from tests.system.upstreams import Upstream as HttpUpstream

from .clients import CHAT
from .processes import Server
from .upstream import Upstream, events


@dataclass
class EnvoyServer(Server):
    """One Envoy, on the same ports in each of its lives."""

    options: EnvoyOptions | None = None
    child: Child | None = None

    async def _start(self, _name):
        return (await parts.start_envoy(self.run_dir, self.options)).process


@dataclass
class Gateway:
    """Envoy, the upstream behind it, and what that generated."""

    envoy: EnvoyServer
    issuer: TokenIssuer
    behind: HttpUpstream
    upstream: Upstream = field(default_factory=Upstream)

    def client(self, caller, **options):
        token = self.issuer.issue(caller.account, tenant=caller.tenant)
        url = f"http://127.0.0.1:{self.envoy.port}"
        options = {"base_url": url, "headers": {"authorization": f"Bearer {token}"}} | options
        return plaintext_client(limits=httpx.Limits(max_connections=None), **options)

    def generates(self, *, prompt, output, stream_s=0.0):
        """From now on every answer has so many tokens; a stream takes so long."""

        async def script(received, reply):
            (request_id,) = received.header("x-request-id")
            usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
            self.upstream.generated[request_id] += prompt + output
            if not received.json.get("stream"):
                await reply.whole(b'{"choices": [{"message": {"content": "x"}}], "usage": %s}' % _json(usage))
                return
            await reply.head()
            pieces = list(events(output, usage))
            for piece in pieces:
                await reply.send(piece)
                await asyncio.sleep(stream_s / len(pieces))
            await reply.end()

        self.behind.script = script


def _json(usage):
    return str(usage).replace("'", '"').encode()


@contextlib.asynccontextmanager
async def gateway_to(plant, run_dir):
    """Starts Envoy before a plant's replicas."""
    issuer = TokenIssuer()
    listener, admin = free_ports(2)
    async with HttpUpstream().serving() as behind:
        options = EnvoyOptions(
            listener_port=listener,
            admin_port=admin,
            jwks_json=issuer.jwks_json(),
            issuer=issuer.issuer,
            audience=issuer.audience,
            processor_addresses=tuple(replica.address for replica in plant.replicas),
            upstream_url=behind.url,
            message_timeout_s=MESSAGE_S,
        )
        envoy = EnvoyServer("envoy", run_dir / "envoy", listener, options=options)
        await envoy.start()
        try:
            yield Gateway(envoy, issuer, behind)
        finally:
            await envoy.stop()


__all__ = ["CHAT", "EnvoyServer", "Gateway", "gateway_to"]
