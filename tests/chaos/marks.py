"""What every test here is marked with."""

import pytest

from tests.system.marks import SYSTEM

from .sizes import TIMEOUT_S

# Of several marks `timeout` the first one counts.
CHAOS = [pytest.mark.timeout(TIMEOUT_S), *(mark for mark in SYSTEM if mark.name != "timeout")]
