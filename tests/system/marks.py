"""What every test of the real stack is marked with."""

import pytest

# Children must be started from the main thread, and their waiters live in one loop: the session's.
SYSTEM = [
    pytest.mark.system,
    pytest.mark.asyncio(loop_scope="session"),
    # With the first test of a worker the stacks are started.
    pytest.mark.timeout(300),
    # From Python 3.12 on. The child does nothing between fork and exec that could need a lock.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
