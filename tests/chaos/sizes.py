"""How large a run is, and its seed: all from the environment, so that anybody can ask for other ones.

The short form is part of `make test`; `CHAOS_FORM=full` (`make chaos`) has the sizes of the promises. Each size can
be set on its own: `CHAOS_REQUESTS=7000`. They are listed in docs/reliability.md.
"""

import os
import random

FULL = os.environ.get("CHAOS_FORM", "short") == "full"


def seed():
    """The seed of the whole run; chosen in conftest.py where none is given."""
    return int(os.environ["SEED"])


def draw(*names):
    """A source of randomness that depends on the seed and on what it is for, and on nothing else."""
    return random.Random("/".join(map(str, (seed(), *names))))


def size(name, *, full, short):
    """`CHAOS_<name>`, else the size of the form."""
    given = os.environ.get(f"CHAOS_{name}")
    kind = type(full)
    return kind(given) if given is not None else (full if FULL else short)


REPLICAS = size("REPLICAS", full=3, short=3)
CLIENTS = size("CLIENTS", full=64, short=24)  # of each replica
REQUESTS = size("REQUESTS", full=10_000, short=480)
ROUNDS = size("ROUNDS", full=5, short=1)  # seeds of a random test, each derived from the run's
EXCHANGES = size("EXCHANGES", full=10_000, short=400)
STREAMS_LEFT = size("STREAMS_LEFT", full=2_000, short=160)
TTL_S = size("TTL_S", full=10.0, short=3.0)  # of reservations that nobody renews (R5)
USAGE_SERIES = 20  # pairs of tenant and model that a replica counts apart (R8)
TENANT_SERIES = 20  # tenants whose limits it shows
IN_FLIGHT = size("IN_FLIGHT", full=200, short=40)
STUCK_S = size("STUCK_S", full=30.0, short=1.5)
MIXED_REPLICAS = size("MIXED_REPLICAS", full=3, short=3)
STREAM_S = size("STREAM_S", full=30.0, short=1.0)
RESTARTS = size("RESTARTS", full=3, short=2)  # of Redis, in one run
IDENTITIES = size("IDENTITIES", full=1_000_000, short=500)
PAIRS = size("PAIRS", full=50, short=1)  # of faults at a distance (R11); one in four has a third one
MINUTES = size("MINUTES", full=10.0, short=0.2)
# What a test may take beyond pytest's own 120 s.
TIMEOUT_S = size("TIMEOUT_S", full=3600, short=400)
# A bound in seconds is held to the letter in the full form, on a machine of one's own. In the short form, beside
# other tests, it only catches what hangs.
SLACK = size("SLACK", full=1.0, short=30.0)
