"""Check how a pod ends and is replaced: whether open streams have the time to finish."""

import re
from collections.abc import Iterator
from typing import Final

from extproc.onboarding.facts import CONTAINERS, MODEL, Facts, at
from extproc.onboarding.layering import Path, look
from extproc.onboarding.problem import Problem, error, warning
from extproc.onboarding.rules_serving import Rule

PREDICTOR: Final[Path] = ("inferenceservice", "predictor")
PAUSE_S: Final = 15  # the most that the charts wait before SIGTERM; a quarter of a short grace period
END_S: Final = 5  # what is left for the end of the process
# vLLM from 0.18, which knows --shutdown-timeout.
_DRAINS: Final = re.compile(
    r"vllm[^:]*:(latest|nightly|v?([1-9][0-9]*\.|0\.(1[89]|[2-9][0-9]|[1-9][0-9]{2,})([^0-9]|$)))"
)


def ending(facts: Facts) -> Iterator[Problem]:
    """Yield what would cut a stream whose pod ends."""
    grace = facts.number(*PREDICTOR, "terminationGracePeriodSeconds") or 300
    serving: Path = (*CONTAINERS, 0) if facts.containers else MODEL
    where = (*serving, "lifecycle", "preStop", "sleep", "seconds")
    own = facts.number(*where)
    if own is not None and own >= grace:
        yield error(
            at(*where),
            f"the pod has {grace:g} s to end, and would be killed before its requests may finish",
            f"less than {grace:g}, or a larger terminationGracePeriodSeconds",
        )
        return
    left = int(grace - (own if own is not None else min(PAUSE_S, grace // 4)) - END_S)
    timeout = facts.number(*PREDICTOR, "timeout") or 0
    if timeout > left:
        yield warning(
            at(*PREDICTOR, "timeout"),
            f"a request may take {timeout:g} s, and a pod that ends gives it {max(0, left)} s",
            f"terminationGracePeriodSeconds: {timeout + grace - left:g}, or a shorter timeout",
        )
    if facts.containers and _DRAINS.search(facts.image.lower()):
        words = " ".join(str(each) for key in ("command", "args") for each in facts.containers[0].get(key) or [])
        if not re.search(r"--shutdown[-_]timeout", words):
            yield warning(
                at(*CONTAINERS, 0, "args"),
                "vLLM ends all open requests at SIGTERM unless it is told how long they may go on",
                f"--shutdown-timeout={max(0, left)}",
            )


def replacing(facts: Facts) -> Iterator[Problem]:
    """Yield a strategy that replaces no pod."""
    strategy = facts.get(*PREDICTOR, "deploymentStrategy")
    update = look(strategy, "rollingUpdate")
    where = (*PREDICTOR, "deploymentStrategy", "rollingUpdate")
    if update and look(strategy, "type") == "Recreate":
        yield error(at(*where), "Kubernetes refuses it with type Recreate", "one of them alone")
    if all(re.fullmatch("0%?", str(look(update, key))) for key in ("maxSurge", "maxUnavailable")):
        yield error(at(*where), "no pod more and none less: no pod can be replaced", "maxUnavailable: 1")


RULES: Final[tuple[Rule, ...]] = (ending, replacing)
