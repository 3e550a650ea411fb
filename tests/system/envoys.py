"""A further Envoy before the processors of a stack: a start of Envoy takes far less than one of a processor."""

import contextlib
import dataclasses
import json

import httpx
import yaml

from extproc.local.parts import envoy_binary
from extproc.local.ports import HOST, free_ports
from extproc.local.process import Command, start
from tests.plaintext import plaintext_client

# What is served is in the access log at once, not at the end.
_OPTIONS = ("--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1", "--disable-hot-restart")
_OPTIONS += ("--file-flush-interval-msec", "50")


@dataclasses.dataclass
class Configuration:
    """The configuration of an Envoy as a document, and the parts of it that tests change."""

    document: dict

    @property
    def resources(self):
        return self.document["static_resources"]

    @property
    def manager(self):
        """The HTTP connection manager."""
        return self.resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]

    def filter(self, name):
        (found,) = [each for each in self.manager["http_filters"] if each["name"] == name]
        return found["typed_config"]

    def cluster(self, name):
        (found,) = [each for each in self.resources["clusters"] if each["name"] == name]
        return found

    def set_ports(self, listener, admin):
        self.resources["listeners"][0]["address"]["socket_address"]["port_value"] = listener
        self.document["admin"]["address"]["socket_address"]["port_value"] = admin


@contextlib.asynccontextmanager
async def running_envoy(document, admin_port, run_dir, binary=None):
    """Run an Envoy with this configuration until the way out."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "envoy.json").write_text(json.dumps(document), encoding="utf-8")
    argv = (str(binary or envoy_binary()), "-c", "envoy.json", *_OPTIONS)

    async def ready():
        async with plaintext_client() as client:
            try:
                return (await client.get(f"http://{HOST}:{admin_port}/ready")).status_code == 200
            except httpx.TransportError:
                return False

    child = await start(Command("envoy", argv, run_dir), ready)
    try:
        yield child
    finally:
        await child.stop()


@contextlib.asynccontextmanager
async def before(stack, run_dir, *, change=lambda _configuration: None, binary=None):
    """Run another Envoy before the processors of `stack`; yield the stack with that gateway.

    `change` gets the `Configuration` of the stack's own Envoy, and may change it. `binary` is another Envoy. The
    access log is `envoy.log` in the `run_dir` of the stack that is yielded.
    """
    configuration = Configuration(yaml.safe_load((stack.run_dir / "envoy.yaml").read_text(encoding="utf-8")))
    listener_port, admin_port = free_ports(2)
    configuration.set_ports(listener_port, admin_port)
    change(configuration)
    async with running_envoy(configuration.document, admin_port, run_dir, binary):
        yield dataclasses.replace(stack, run_dir=run_dir, gateway=f"http://{HOST}:{listener_port}")


def access_log(stack):
    """Return the lines of the access log of such an Envoy, one a request."""
    written = (stack.run_dir / "envoy.log").read_text(encoding="utf-8")
    # Envoy writes its warnings into the same file.
    return [line for line in written.splitlines() if line.startswith("{")]
