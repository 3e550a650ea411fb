"""The plants that the tests run on: each is started once, and ended before the next one is started."""

import pytest

from tests.changing import replace

from .pairs import PAIRED
from .plant import PlantOptions
from .sizes import MIXED_REPLICAS, SLACK, STREAM_S, TENANT_SERIES, TTL_S, USAGE_SERIES
from .under_faults import UNDER_SIEGE

# Reservations live for a few seconds unless they are renewed; a replica that stops lets its streams end.
_MENDED = {
    "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
    "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.5",
    "TOKENWEIR_SERVER__DRAIN_S": str(STREAM_S * 2 + 10 * SLACK),
}

_SERIES = {
    "TOKENWEIR_METRICS__USAGE_SERIES": str(USAGE_SERIES),
    "TOKENWEIR_METRICS__TENANT_SERIES": str(TENANT_SERIES),
}

PLANTS = {
    # Nothing of it is killed: for what needs no fault.
    "sound": PlantOptions(settings=_SERIES, patient=True),
    # Replicas are killed, stopped and restarted; each test leaves all of them running.
    "mended": PlantOptions(settings=_MENDED, patient=True),
    # The same with replicas of version 0.1, in whose place the tests start this version, and back.
    "mixed": PlantOptions(
        settings=_MENDED | {"TOKENWEIR_LIMITS__POLL_S": "0.2"}, patient=True, replicas=MIXED_REPLICAS, former=True
    ),
    # Stores are reached through proxies, and stopped again and again. The bound on a decision is the default.
    "wired": PlantOptions(proxied=True),
    # Redis is lost in each test.
    "fragile": PlantOptions(settings={"TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5"}),
    # Any fault.
    "besieged": UNDER_SIEGE,
    # Faults at a distance from each other; Redis is another one in each test.
    "paired": PAIRED,
    "watched": replace(PAIRED, watched=True),
}


def on(name):
    """Mark tests as those of a plant: their fixture `plant` is the one of this name."""
    return pytest.mark.parametrize("plant", [name], indirect=True, scope="session")
