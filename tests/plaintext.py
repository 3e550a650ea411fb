"""HTTP clients of servers on this machine: without TLS, and past the proxies of the environment."""

import ssl

import httpx

# Made once. Each client would read the machine's certificates otherwise, which takes 20 ms of processor time.
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# A bound on what hangs, not on what is slow: the machine may be busy.
HANGS_S = 60.0


def plaintext_client(**options):
    """Return an `httpx.AsyncClient`; `options` go to it."""
    return httpx.AsyncClient(**{"trust_env": False, "verify": WITHOUT_TLS, "timeout": HANGS_S} | options)
