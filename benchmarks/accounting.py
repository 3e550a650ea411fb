"""Read what processes used from the kernel: processor time, memory, context switches."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SCHEDULED = 2  # linux/posix-timers.h: CPUCLOCK_SCHED, the time that a process ran, in nanoseconds
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Used:
    """Hold what processes used since their start: processor seconds, resident bytes, context switches."""

    cpu_s: float
    rss_bytes: int
    voluntary: int
    involuntary: int

    def since(self, before: "Used") -> "Used":
        """Return the difference; memory may have shrunk."""
        return Used(
            self.cpu_s - before.cpu_s,
            self.rss_bytes - before.rss_bytes,
            self.voluntary - before.voluntary,
            self.involuntary - before.involuntary,
        )


NOTHING = Used(0.0, 0, 0, 0)


def used(pid: int) -> Used:
    """Return what a process and its living descendants used, all threads included. Raise OSError if it ended."""
    parts = [_one(each) for each in (pid, *descendants(pid))]
    return Used(
        sum(part.cpu_s for part in parts),
        sum(part.rss_bytes for part in parts),
        sum(part.voluntary for part in parts),
        sum(part.involuntary for part in parts),
    )


def machine_cpu_s() -> float:
    """Return the seconds that all cores together were busy since the machine's start, in steps of 0.01 s.

    Time that the machine's own host took from it (steal) counts as busy.
    """
    fields = (_PROC / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, hard, soft, stolen = (int(field) for field in fields[:8])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return the processes that a process and its children started, as far as they live."""
    parents: dict[int, list[int]] = {}
    for path in _PROC.iterdir():
        if path.name.isdecimal() and (parent := _parent(path)) is not None:
            parents.setdefault(parent, []).append(int(path.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _parent(path: Path) -> int | None:
    try:
        # The name, in parentheses, may hold anything.
        return int((path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _one(pid: int) -> Used:
    # The process's own clock counts nanoseconds, its ended threads included; /proc/PID/stat counts hundredths.
    cpu_s = time.clock_gettime((~pid << 3) | _SCHEDULED)
    voluntary = involuntary = 0
    for task in _tasks(pid):
        values = _status(task)
        voluntary += values.get("voluntary_ctxt_switches", 0)
        involuntary += values.get("nonvoluntary_ctxt_switches", 0)
    rss = _status(_PROC / str(pid)).get("VmRSS", 0)
    return Used(cpu_s, rss * 1024, voluntary, involuntary)


def _tasks(pid: int) -> Iterable[Path]:
    return list((_PROC / str(pid) / "task").iterdir())


def _status(path: Path) -> dict[str, int]:
    try:
        lines = (path / "status").read_text(encoding="utf-8").splitlines()
    except OSError:  # a thread that has ended
        return {}
    pairs = (line.partition(":") for line in lines)
    return {
        name: int(value.split()[0]) for name, _, value in pairs if value.split() and value.split()[0].isdecimal()
    }
