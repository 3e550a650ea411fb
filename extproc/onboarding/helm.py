"""Run `helm template` on a model's chart."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.onboarding.charts import chart_path
from extproc.onboarding.errors import HelmMissing, HelmRefused

TIMEOUT_S: Final = 30.0
VARIABLE: Final = "TOKENWEIR_HELM"
_MISSING: Final = (
    "helm is needed to render, and there is none: install Helm 3.17 or later (https://helm.sh/docs/intro/install) "
    f"or say where it is with --helm or {VARIABLE}"
)


_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_IN_GO: Final = frozenset(f"tag:yaml.org,2002:{each}" for each in ("value", "merge", "timestamp"))


class _Loader(_BASE):  # type: ignore[misc]
    """Read as text the values that Helm prints without quotes and means as text (`=`, `<<`)."""

    yaml_implicit_resolvers: Any = {  # noqa: RUF012 - PyYAML's own form
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXT_IN_GO]
        for first, resolvers in _BASE.yaml_implicit_resolvers.items()
    }


def render(
    chart: str,
    values: Mapping[str, Any],
    release: str = "my-model",
    namespace: str = "default",
    helm: str | None = None,
) -> str:
    """Return the objects as YAML text, in Helm's order.

    `helm` is the program; by default TOKENWEIR_HELM, then the one on PATH. Raise `HelmMissing` if there is no
    helm, or if the program is not helm. Raise `HelmRefused` if helm, the chart or its schema refuses. Takes at
    most 30 s.
    """
    folder = chart_path(chart)
    program = find(helm)
    with tempfile.TemporaryDirectory(prefix="tokenweir-") as home:
        file = Path(home) / "values.json"  # JSON is YAML, and every reader agrees on it
        file.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
        words = (program, "template", "-n", namespace, "-f", str(file), "--", release, str(folder))
        text = _run(words, home)
    try:
        rendered = any(each.get("kind") for each in objects(text))
    except (yaml.YAMLError, ValueError):
        rendered = False
    if not rendered:
        raise HelmMissing(f"{program}: what it gives are no objects: it is not helm, or not one that works")
    return text


def find(helm: str | None = None) -> str:
    """Return the program's path. Raise `HelmMissing`."""
    named = helm or os.environ.get(VARIABLE)
    found = shutil.which(named or "helm")
    if found is None:
        why = (
            "can't be run as helm: it is no program"
            if named and Path(named).exists()
            else "there is no such program to run as helm"
        )
        raise HelmMissing(f"{named}: {why}" if named else _MISSING)
    return found


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a rendering."""
    return [each for each in yaml.load_all(text, Loader=_Loader) if isinstance(each, dict)]


def _run(words: Sequence[str], home: str) -> str:
    # Nothing of the user's own Helm setup: no plugins, no repositories, no cluster.
    variables = {f"HELM_{each}_HOME": home for each in ("CACHE", "CONFIG", "DATA")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")} | variables
    environment |= {"KUBECONFIG": os.devnull}
    environment.setdefault("GOGC", "400")  # such a short run spends a third of its time on garbage collection
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's helm, without a shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise HelmMissing(f"{words[0]}: can't be run as helm: {error.strerror}") from None
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise HelmRefused(f"{words[0]} did not answer within {TIMEOUT_S:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # its children too, also at Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        said = cleaned(err.decode(errors="replace"))
        if re.match(r"unknown (shorthand )?(flag|command)", said):  # Helm 2 has no -n
            raise HelmMissing(f"{words[0]}: {said}: it is no Helm 3.17 or later")
        raise HelmRefused(said or f"{words[0]} failed: {process.returncode}")
    return out.decode(errors="replace")


def cleaned(message: str) -> str:
    """Return helm's message without the parts that don't help a model owner."""
    lines = [each for each in message.splitlines() if each.strip() and not _is_noise(each)]
    text = "\n".join(lines).removeprefix("Error: ")
    # For a template's `fail`, its text matters and its place does not. Errors of nested includes wrap each other.
    text = re.sub(r"(?s)^.*\berror calling fail: ", "", text)
    text = re.sub(r"^execution error at \([^)]*\): ", "", text)
    text = re.sub(r"(?s)^values don't meet the specifications of the schema\(s\).*?\n[\w-]+:\n", "", text)
    return text.removeprefix("INSTALLATION FAILED: ").strip()


def _is_noise(line: str) -> bool:
    noise = r"level=(INFO|WARN|ERROR) msg=|(walk|coalesce)\.go:\d+: |Use --debug flag"
    return re.match(noise, line) is not None
