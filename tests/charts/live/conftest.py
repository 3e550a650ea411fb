"""One mesh of an LLM with a canary, metered at the gateway, for most tests of this folder."""

import pytest_asyncio

from extproc.local.issuer import TokenIssuer
from extproc.local.parts import MissingPartError, envoy_binary
from tests.missing import missing

from .mesh import documents_of, running, values

TOKENWEIR = {"redis": {"url": "memory://"}, "mongo": {"url": "memory://"}, "replicaCount": 1}
MODEL = {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://q/a", "newStorageUri": "hf://q/b"}
LLM = {"inferenceservice": {"predictor": {"model": MODEL}}, "primaryLoad": 90}


def session(function):
    return pytest_asyncio.fixture(function, scope="session", loop_scope="session")


@session
async def issuer():
    try:
        envoy_binary()
    except MissingPartError as error:
        missing(str(error))
    return TokenIssuer()


@session
async def start():
    """What starts a mesh: `async with start(documents, issuer, folder)`. Another folder may have another one."""
    return running


@session
async def mesh(start, issuer, tmp_path_factory):
    """An LLM with a canary, whose own limits are out of the way."""
    documents = documents_of(values(issuer, **LLM), TOKENWEIR)
    async with start(documents, issuer, tmp_path_factory.mktemp("mesh")) as started:
        yield started
