"""How requests are split between variants, with what istiod makes of the charts' objects."""

from tests.charts.live.test_canary import *  # noqa: F403

del gateway_with  # noqa: F821 - this folder has its own
