"""Fuzz the server with atheris, which is no dependency: `python -m tests.http2.fuzz -max_total_time=3600 CORPUS`.

The rule is that of tests/http2/conversations.py. The first byte of an input chooses how it is cut, and whether a
greeting is put in front.
"""

import asyncio
import logging
import sys

import atheris

with atheris.instrument_imports(include=["extproc.http2"]):
    from tests.http2.conversations import VALID, pieces, play
    from tests.http2.wire import HELLO

_LOOP = asyncio.new_event_loop()


def one(data):
    if data:
        first, rest = data[0], data[1:]
        said = HELLO + rest if first & 1 else rest
        _LOOP.run_until_complete(play(pieces(said, [1 + (first >> 1) * 37])))


def seeds(folder):
    """Write valid conversations to begin with."""
    for number, part in enumerate(VALID):
        for first in (1, 9, 255):
            (folder / f"valid-{number}-{first}").write_bytes(bytes([first]) + part)


if __name__ == "__main__":
    import pathlib

    logging.getLogger("extproc.http2").propagate = False
    corpus = [pathlib.Path(each) for each in sys.argv[1:] if not each.startswith("-")]
    if corpus:
        corpus[0].mkdir(parents=True, exist_ok=True)
        seeds(corpus[0])
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
