"""The plants that the tests run on: each is started once, and ended before the next one is started."""

import pytest

from .plant import PlantOptions
from .sizes import SLACK, STREAM_S, TTL_S, USAGE_SERIES
from .under_faults import UNDER_SIEGE

PLANTS = {
    # Nothing of it is killed: for what needs no fault.
    "sound": PlantOptions(settings={"TOKENWEIR_METRICS__USAGE_SERIES": str(USAGE_SERIES)}, patient=True),
    # Replicas are killed, stopped and restarted; each test leaves all of them running. Reservations live for a few
    # seconds unless they are renewed.
    "mended": PlantOptions(
        settings={
            "TOKENWEIR_RESERVATION__TTL_S": str(TTL_S),
            "TOKENWEIR_RESERVATION__EXPIRY_INTERVAL_S": "0.5",
            "TOKENWEIR_SERVER__DRAIN_S": str(STREAM_S * 2 + 10 * SLACK),
        },
        patient=True,
    ),
    # Stores are reached through proxies, and stopped again and again. The bound on a decision is the default.
    "wired": PlantOptions(proxied=True),
    # Redis is lost in each test.
    "fragile": PlantOptions(settings={"TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5"}),
    # Any fault.
    "besieged": UNDER_SIEGE,
}


def on(name):
    """Mark tests as those of a plant: their fixture `plant` is the one of this name."""
    return pytest.mark.parametrize("plant", [name], indirect=True, scope="session")
