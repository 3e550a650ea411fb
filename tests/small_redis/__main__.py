"""Serve on a port of this machine: `python -m tests.small_redis PORT`."""

import asyncio
import sys

from .server import listen


async def main():
    server = await listen(int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
