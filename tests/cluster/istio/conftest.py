"""The fixtures of tests/charts/live, with istiod in the place of the hand-written translation.

One istiod holds the objects of one mesh at a time, so each module has a mesh of its own.
"""

import os
from functools import partial

import pytest
import pytest_asyncio

from tests.charts.live.conftest import LLM, TOKENWEIR, issuer
from tests.charts.live.mesh import documents_of, values

from .mesh import running
from .plane import Plane

__all__ = ["issuer"]

# Of `make cluster`; the processor would take it for one of its settings.
os.environ.pop("TOKENWEIR_CLUSTER", None)

MODULE = {"scope": "module", "loop_scope": "session"}


@pytest.fixture(scope="session")
def plane():
    return Plane.from_environment()


@pytest.fixture(scope="session")
def start(plane):
    return partial(running, plane)


@pytest_asyncio.fixture(**MODULE)
async def mesh(start, issuer, tmp_path_factory):
    """An LLM with a canary, metered at the gateway, whose own limits are out of the way."""
    async with start(
        documents_of(values(issuer, **LLM), TOKENWEIR), issuer, tmp_path_factory.mktemp("mesh")
    ) as made:
        yield made


@pytest.fixture(scope="module")
def gateway_with(start, mesh, issuer, tmp_path_factory):
    """The same mesh with other values for a while: `async with gateway_with(primaryLoad=0)`."""

    def other(**more):
        documents = documents_of(values(issuer, **LLM | more), TOKENWEIR)
        return start(documents, issuer, tmp_path_factory.mktemp("other"), gateway_only_of=mesh)

    return other
