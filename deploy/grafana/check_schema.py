"""Check the dashboards against Grafana's own types, with the TypeScript compiler.

    npm install --prefix FOLDER --ignore-scripts @grafana/schema typescript@5
    python deploy/grafana/check_schema.py FOLDER

Each dashboard and each panel's options become a constant of Grafana's type: a field of a wrong type, one that is
missing or that the type does not have, or a value that is none of an enumeration is a compiler error.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

DASHBOARDS: Final = Path(__file__).parents[2] / "charts/tokenweir/dashboards"
PANELS: Final = {"stat": "Stat", "timeseries": "TimeSeries", "bargauge": "BarGauge", "table": "Table"}
# An enumeration's values stand for it: JSON has no enumerations. A type that anything fits stays as it is.
PLAIN: Final = """
type Plain<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer Item)[] ? Plain<Item>[]
  : { [Key in keyof T]: Plain<T[Key]> };
"""
# What the types of panels ask for, and Grafana fills in where a file leaves it out.
FILLED_IN: Final = """
type Options<T> = Plain<Partial<T>>;
"""
OPTIONS: Final = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext"]


def main(arguments: list[str]) -> int:
    (folder,) = arguments
    problems = problems_of(Path(folder), DASHBOARDS)
    print(problems or "the dashboards are as Grafana's types say")
    return 1 if problems else 0


def problems_of(folder: Path, dashboards: Path) -> str:
    """Return what the compiler says of a folder's dashboards; nothing if they are valid."""
    modules = folder.resolve() / "node_modules"
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "dashboards.ts"
        source.write_text("\n".join(source_lines(dashboards)), encoding="utf-8")
        (Path(made) / "node_modules").symlink_to(modules)
        (Path(made) / "package.json").write_text('{"type": "module"}', encoding="utf-8")
        compiler = modules / "typescript/bin/tsc"
        done = subprocess.run(
            ["node", str(compiler), *OPTIONS, str(source)], check=False, cwd=made, capture_output=True, text=True
        )
    return (done.stdout + done.stderr) if done.returncode else ""


def source_lines(dashboards: Path) -> Iterator[str]:
    """Yield a program that has each dashboard as a constant of Grafana's type."""
    yield 'import type { Dashboard } from "@grafana/schema";'
    for name, kind in PANELS.items():
        path = f"@grafana/schema/dist/esm/raw/composable/{name}/panelcfg/x/{kind}PanelCfg_types.gen"
        yield f'import type * as {kind} from "{path}";'
    yield PLAIN + FILLED_IN
    for path in sorted(dashboards.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        name = dashboard["uid"].replace("-", "_")
        yield f"export const {name}: Plain<Dashboard> = {_literal(dashboard)};"
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                continue
            kind = PANELS[panel["type"]]
            yield f"export const {name}_{panel['id']}: Options<{kind}.Options> = {_literal(panel['options'])};"
            custom = panel["fieldConfig"]["defaults"].get("custom")
            if custom is not None:
                name_of = f"{name}_{panel['id']}_custom"
                yield f"export const {name_of}: Options<{kind}.FieldConfig> = {_literal(custom)};"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
