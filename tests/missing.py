"""What happens where a part that a test needs is not there."""

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Ends the test: a failure in CI, where nothing may be missing; elsewhere skipped with the reason."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def needing_parts() -> Iterator[None]:
    """End the test as not run where a part of the local stack that it starts is not installed."""
    from extproc.local.parts import MissingPartError

    try:
        yield
    except MissingPartError as error:
        missing(str(error))
