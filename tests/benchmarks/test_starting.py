"""A variant runs what its name says, whatever the default is."""

import pytest

from benchmarks import starting
from benchmarks.variants import GRPC, NATIVE


@pytest.mark.parametrize("transport", [GRPC, NATIVE])
async def test_a_processor_is_started_on_the_transport_of_its_variant(monkeypatch, tmp_path, transport):
    commands = []

    async def start(command, _ready):
        commands.append(command)

    monkeypatch.setattr(starting, "start", start)
    await starting.start_tokenweir(tmp_path, "redis://r", "mongodb://m", transport)
    (command,) = commands
    assert command.env["TOKENWEIR_SERVER__TRANSPORT"] == transport
