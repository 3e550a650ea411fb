"""Say how much is measured: the quick form and the full one."""

import json
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """List the measurements of a turn.

    open: memory, while streams are open. peak: closed loop, as fast as it goes. rate: open loop at a fixed rate.
    stream: streams that begin at a fixed rate. flood: more chunks than can pass.
    """

    OPEN = "open"
    PEAK = "peak"
    RATE = "rate"
    STREAM = "stream"
    FLOOD = "flood"


@dataclass(frozen=True, slots=True)
class Step:
    """Describe one measurement. `rate`: requests a second; 0: closed loop. `chunks`: of each stream; 0: JSON."""

    phase: Phase
    connections: int
    seconds: float
    rate: float = 0.0
    chunks: int = 0
    chunk_rate: float = 0.0

    @property
    def key(self) -> str:
        """Return the name of the measurement in the results: "rate-200"."""
        return f"{self.phase}-{self.rate:g}" if self.phase is Phase.RATE else str(self.phase)


@dataclass(frozen=True, slots=True)
class Form:
    """Hold the measurements of a turn. `first`: after the others, in the first turn of each stack only.

    They measure memory: a process that has not served yet gives memory of its start back meanwhile, and one that
    had many streams open keeps their memory for the next ones.
    """

    name: str
    rounds: int
    steps: tuple[Step, ...]
    first: tuple[Step, ...]


REFERENCE_RATE = 200
RATE_KEY = f"rate-{REFERENCE_RATE}"
_CONNECTIONS = 64

QUICK = Form(
    "quick",
    rounds=3,
    steps=(
        Step(Phase.PEAK, _CONNECTIONS, 1.0),
        Step(Phase.RATE, _CONNECTIONS, 1.0, rate=REFERENCE_RATE),
        Step(Phase.STREAM, 200, 0.8, rate=20, chunks=25, chunk_rate=25),
    ),
    first=(Step(Phase.OPEN, 150, 1.5, rate=100, chunks=2, chunk_rate=0.5),),
)
FULL = Form(
    "full",
    rounds=5,
    steps=(
        Step(Phase.PEAK, _CONNECTIONS, 3.0),
        *(Step(Phase.RATE, _CONNECTIONS, 3.0, rate=rate) for rate in (50, REFERENCE_RATE, 500, 1000)),
        Step(Phase.STREAM, 400, 3.0, rate=20, chunks=75, chunk_rate=25),
        Step(Phase.FLOOD, 32, 0.01, chunks=400, chunk_rate=400),
    ),
    first=(Step(Phase.OPEN, 500, 5.0, rate=100, chunks=2, chunk_rate=0.15),),
)
# Each stream takes two open files of Envoy, one to the client and one to the upstream: 20,000 files are enough.
CROWD = Form(
    "crowd",
    rounds=1,
    steps=(Step(Phase.PEAK, _CONNECTIONS, 3.0), Step(Phase.RATE, _CONNECTIONS, 3.0, rate=REFERENCE_RATE)),
    first=(Step(Phase.OPEN, 9_900, 49.5, rate=200, chunks=2, chunk_rate=0.018),),
)
# For a test: one of everything, as short as it goes.
TINY = Form(
    "tiny",
    rounds=1,
    steps=(
        Step(Phase.PEAK, 4, 0.2),
        Step(Phase.RATE, 4, 0.3, rate=50),
        Step(Phase.STREAM, 10, 0.2, rate=20, chunks=5, chunk_rate=50),
    ),
    first=(),
)
FORMS = {form.name: form for form in (QUICK, FULL, CROWD, TINY)}


def request_bytes(step: Step, token: str) -> bytes:
    """Return the whole request of a measurement, as it is sent."""
    # The bound of output is more than the chunks' texts can be counted as: no hold has to grow.
    body: dict[str, object] = {"model": "bench", "max_tokens": 4 * step.chunks or 64}
    text = "1 + 1 =?"
    if step.chunks:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text = f"chunks={step.chunks} rate={step.chunk_rate:g}"
    body["messages"] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
