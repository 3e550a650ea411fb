"""What every test here is marked with."""

import pytest

from tests.system.marks import SYSTEM

from .sizes import TIMEOUT_S

CHAOS = [*SYSTEM, pytest.mark.timeout(TIMEOUT_S)]
