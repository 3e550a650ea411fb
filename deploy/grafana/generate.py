"""Write the dashboards that Grafana shows, as JSON, into the chart tokenweir.

python deploy/grafana/generate.py            writes them
python deploy/grafana/generate.py --check    names those that are out of date, and fails
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from for_finance import accounts, finance
from for_operators import operators
from for_tenants import models, tenants

ROOT: Final = Path(__file__).parents[2]
INTO: Final = ROOT / "charts/tokenweir/dashboards"

sys.path.append(str(ROOT / "charts"))  # where the other generated files are made
from written import write  # noqa: E402


def wanted() -> Iterator[tuple[Path, str]]:
    """Yield each file and its wanted content."""
    for made in (operators(), tenants(), models(), finance(), accounts()):
        yield INTO / f"{made['uid']}.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(write(wanted(), sys.argv[1:]))
