"""Measure the processor time of one streamed chunk: plain, with usage in it, with usage that is taken out."""

import time

from extproc.core.answer.stream_answer import StreamAnswer
from extproc.core.quota.costs import Cost
from extproc.core.quota.settlement import Estimates

PLAIN = (
    b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
WITH_USAGE = PLAIN[:-3] + b',"usage":{"prompt_tokens":10,"total_tokens":15,"completion_tokens":5}}\n\n'
CHUNKS = 5_000
ROUNDS = 15


def microseconds(chunk: bytes, *, strip_usage: bool) -> float:
    """Return the time of one chunk, of a stream of `CHUNKS`."""
    reader = StreamAnswer(Estimates(Cost(10, 10 * CHUNKS), 4), hide_usage=True, strip_usage=strip_usage)
    began = time.perf_counter()
    for _ in range(CHUNKS):
        reader.feed(chunk)
    return (time.perf_counter() - began) / CHUNKS * 1e6


def main() -> None:
    """Print the least of `ROUNDS` rounds, with the variants in turn, and ratios."""
    variants = {"plain": (PLAIN, False), "usage read": (WITH_USAGE, False), "usage taken out": (WITH_USAGE, True)}
    rounds = [{name: microseconds(c, strip_usage=s) for name, (c, s) in variants.items()} for _ in range(ROUNDS)]
    least = {name: min(each[name] for each in rounds) for name in variants}
    for name, took in least.items():
        print(f"{name:16} {took:6.2f} us a chunk  ratio {took / least['plain']:.2f}")


if __name__ == "__main__":
    main()
