"""A real vLLM, and what it says of its own work."""

import os
import re
from dataclasses import dataclass

from tests.plaintext import plaintext_client
from tests.system.waiting import until

URL = "TOKENWEIR_VLLM_URL"


def base_url():
    """Return the server's URL without a path, from an OpenAI base in the environment; None if there is none."""
    url = os.environ.get(URL, "").rstrip("/")
    return url.removesuffix("/v1") or None


@dataclass(frozen=True)
class Work:
    """Tokens that vLLM counts itself. It counts the prompt once for each choice."""

    prompt: int
    generated: int

    def __sub__(self, earlier):
        return Work(self.prompt - earlier.prompt, self.generated - earlier.generated)


@dataclass(frozen=True)
class Server:
    """One vLLM that runs already."""

    url: str
    model: str
    paths: dict

    @classmethod
    async def at(cls, url):
        async with plaintext_client(base_url=url) as client:
            models = (await client.get("/v1/models")).json()
            described = (await client.get("/openapi.json")).json()
        return cls(url, models["data"][0]["id"], described["paths"])

    async def work(self):
        """Return all work so far, once nothing runs."""
        seen = []

        async def idle():
            text = await self._metrics()
            running = _sum(text, "vllm:num_requests_running") + _sum(text, "vllm:num_requests_waiting")
            now = Work(_sum(text, "vllm:prompt_tokens_total"), _sum(text, "vllm:generation_tokens_total"))
            # A request that has just ended is counted a moment later.
            seen.append(None if running else now)
            return len(seen) >= _LOOKS and seen[-1] is not None and len(set(seen[-_LOOKS:])) == 1

        await until(idle, "vLLM is idle", within_s=600, poll_s=0.05)
        return seen[-1]

    async def _metrics(self):
        async with plaintext_client(base_url=self.url) as client:
            return (await client.get("/metrics")).text


_LOOKS = 6  # in a row, of which each finds the same


def _sum(text, name):
    return int(sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
