"""The charts of version 0.1, out of the repository's history."""

import io
import subprocess
import tarfile
from pathlib import Path

from tests.charts.helm import ROOT

# The last commit of the day on which the CHANGELOG dates version 0.1.0.
COMMIT = "484662b10d55"
# Istio's CRD refuses `timeout: 0s`, which these charts write for "any time", since it has rules of its own.
_REFUSED = 'timeout: {{ include "kserve-lib.routeTimeout" .root }}\n'
_TAKEN = '{{- if ne (include "kserve-lib.routeTimeout" .root) "0s" }}\n' + _REFUSED + "{{- end }}\n"


def charts(folder: Path) -> Path | None:
    """Unpack the charts into `folder`, with the one correction that lets Istio's CRD take them; return where they are.

    Returns None where the history does not reach so far, as in a shallow clone.
    """
    packed = subprocess.run(["git", "archive", COMMIT, "charts"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    routes = folder / "charts" / "kserve-lib" / "templates" / "_expose.tpl"
    text = routes.read_text(encoding="utf-8")
    assert text.count(_REFUSED) == 1
    routes.write_text(text.replace(_REFUSED, _TAKEN), encoding="utf-8")
    return folder / "charts"
