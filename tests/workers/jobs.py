"""Jobs for a worker process in the tests."""

import os
import time


def prepared(*arguments):
    def work(head, payload):
        match head:
            case b"echo":
                return payload
            case b"arguments":
                return " ".join(arguments).encode()
            case b"pid":
                return str(os.getpid()).encode()
            case b"nice":
                return str(os.nice(0)).encode()
            case b"raise":
                raise ValueError("no")
            case b"die":
                os._exit(1)
            case b"sleep":
                time.sleep(0.3)
            case b"hang":
                time.sleep(600)
        return head

    return work


def broken():
    raise RuntimeError("never ready")
