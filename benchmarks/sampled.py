"""Run `tokenweir` and sample its main thread: python -m benchmarks.sampled FILE serve

SIGUSR1 begins anew; SIGUSR2 writes FILE: a JSON object of stacks ("file:function;file:function", outermost first)
and how often each was met, one sample a millisecond of processor time. Time in C counts for the function that
called it.
"""

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from extproc.cli import main

INTERVAL_S = 0.001
_DEEPEST = 80


def _install(path: Path) -> None:
    met: Counter[tuple[CodeType, ...]] = Counter()

    def sample(_signal: int, frame: FrameType | None) -> None:
        stack: list[CodeType] = []
        while frame is not None and len(stack) < _DEEPEST:
            stack.append(frame.f_code)
            frame = frame.f_back
        met[tuple(stack)] += 1

    def begin(_signal: int, _frame: FrameType | None) -> None:
        met.clear()

    def write(_signal: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)  # no sample while they are written
        named: Counter[str] = Counter()
        for stack, times in met.items():
            named[";".join(f"{code.co_filename}:{code.co_qualname}" for code in reversed(stack))] += times
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps(named), encoding="utf-8")
        whole.replace(path)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, write)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)


if __name__ == "__main__":
    _install(Path(sys.argv[1]))
    del sys.argv[1]
    main()
