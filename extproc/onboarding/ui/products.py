"""Build the files to download."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from extproc.onboarding.dumping import dump
from extproc.onboarding.errors import OnboardingError

_MAX_PATH: Final = 400
_ESCAPES: Final = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}


def values_file(values: Mapping[str, Any], chart: str, release: str) -> str:
    """Return a new values.yaml. The header comment names the chart, so that the other commands can read it
    there.
    """
    return f"# Values of the model {release} for the chart {chart}.\n" + (dump(dict(values)) or "{}\n")


def helmrelease(values: Mapping[str, Any], chart: str, release: str, namespace: str) -> str:
    """Return a Flux HelmRelease with the values, in the form of deploy/flux: the platform's come from a
    ConfigMap.
    """
    source = {"kind": "GitRepository", "name": "tokenweir", "namespace": "flux-system"}
    spec: dict[str, Any] = {
        "interval": values.get("reconcileInterval") or "10m",
        "releaseName": release,
        "chart": {"spec": {"chart": f"./charts/{chart}", "reconcileStrategy": "Revision", "sourceRef": source}},
        "valuesFrom": [{"kind": "ConfigMap", "name": "platform-values", "optional": True}],
    }
    if values:
        spec["values"] = dict(values)
    document = {
        "apiVersion": "helm.toolkit.fluxcd.io/v2",
        "kind": "HelmRelease",
        "metadata": {"name": release, "namespace": namespace},
        "spec": spec,
    }
    return dump(document)


def patch(old: str | None, new: str, path: str) -> str:
    """Return a patch for `git apply`; empty if nothing differs. `old` None: a new file. Raise
    `OnboardingError`.
    """
    if old == new:
        return ""
    path = checked_path(path)
    before, after = (_quoted(f"{side}/{path}") for side in "ab")
    # Git ends a name that contains a space with a tab.
    tab = "\t" if " " in path else ""
    head = [f"diff --git {before} {after}\n"]
    if old is None:
        head.append("new file mode 100644\n")
    head += [f"--- {'/dev/null' if old is None else before + tab}\n", f"+++ {after}{tab}\n"]
    hunks = list(difflib.unified_diff(_lines(old or ""), _lines(new)))[2:]
    return "".join(
        head + [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in hunks]
    )


def checked_path(path: str) -> str:
    """Return a path inside a repository. Raise `OnboardingError`."""
    parts = path.split("/")
    if not path or len(path) > _MAX_PATH or path.startswith("/") or not {"", ".", "..", ".git"}.isdisjoint(parts):
        raise OnboardingError(
            f"'{path}' is no path of a file inside a repository, such as models/qwen/values.yaml"
        )
    return path


def _lines(text: str) -> list[str]:
    # Git ends lines at \n only; splitlines() knows more.
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _quoted(path: str) -> str:
    """Quote a name that has more than printable ASCII, as Git does."""
    if re.fullmatch(r"[ !#-\[\]-~]*", path):
        return path
    return f'"{"".join(_escaped(each) for each in path)}"'


def _escaped(each: str) -> str:
    if each in '"\\':
        return "\\" + each
    if each in _ESCAPES:
        return _ESCAPES[each]
    return each if " " <= each <= "~" else "".join(f"\\{byte:03o}" for byte in each.encode())
