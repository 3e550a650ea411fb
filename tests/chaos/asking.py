"""Clients that ask through Envoy until they are told that it is over, and count what they saw."""

import asyncio
import json

import httpx

from .clients import CHAT
from .sizes import STREAM_S

_JSON = {"content-type": "application/json"}


async def streams(client, seen, over, rng, body):
    """Ask for stream after stream. A whole one is counted as `stream`, any other by what was wrong with it."""
    while not over.is_set():
        await asyncio.sleep(rng.uniform(0, STREAM_S / 4))
        try:
            async with client.stream("POST", CHAT, content=body, headers=_JSON) as answer:
                got = await answer.aread()
            whole = answer.status_code == 200 and got.rstrip().endswith(b"[DONE]")
            seen["stream" if whole else f"stream {answer.status_code}"] += 1
        except httpx.HTTPError as error:
            seen[repr(error)] += 1


async def shorts(client, seen, over, rng, body):
    """Ask for plain answers. A whole one is counted as `short`, any other by what was wrong with it."""
    while not over.is_set():
        await asyncio.sleep(rng.uniform(0, 0.3))
        try:
            answer = await client.post(CHAT, content=body, headers=_JSON)
            whole = answer.status_code == 200 and "usage" in answer.json()
            seen["short" if whole else f"short {answer.status_code}"] += 1
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            seen[repr(error)] += 1


def client_errors(seen):
    """Return how many requests were not answered as they should have been."""
    return sum(seen.values()) - seen["stream"] - seen["short"]
