"""Run a function in a process of its own, with a pipe to it."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


@contextlib.contextmanager
def child(function: Callable[..., Any], *arguments: Any) -> Iterator[Connection]:
    """Yield the end of a pipe whose other end is the function's first argument. End the process afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()
