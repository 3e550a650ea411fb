"""The real stores, each as its own process."""

import os
import signal
import sys
from contextlib import asynccontextmanager

import boto3
from botocore.config import Config

from extproc.local import parts
from extproc.local.ports import HOST
from extproc.local.process import Command, start
from tests.missing import missing

from .running import answers


@asynccontextmanager
async def run_s3(run_dir, port):
    """The S3 of moto: it keeps objects in memory."""
    argv = (sys.executable, "-P", "-m", "moto.server", "-H", HOST, "-p", str(port))
    child = await start(Command("s3", argv, run_dir, stop_grace_s=1), answers(f"http://{HOST}:{port}/moto-api/"))
    try:
        yield child
    finally:
        await child.stop()


def client_of(port):
    return boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=5),
    )


@asynccontextmanager
async def run_mongo(run_dir, port):
    try:
        part = await parts.start_mongo_store(run_dir, port)
    except parts.MissingPartError as error:
        missing(str(error))
    try:
        yield part
    finally:
        if part.process.returncode is None:
            os.killpg(part.process.pid, signal.SIGKILL)  # a proper end takes seconds
        await part.process.stop()
