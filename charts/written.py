"""Write generated files, or tell which are out of date: for generate.py, here and in deploy/grafana."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def write(wanted: Iterable[tuple[Path, str]], arguments: Sequence[str]) -> int:
    """Write each file whose content differs, and print its path.

    With `--check` among the arguments, write nothing, and return 1 if there is such a file; otherwise return 0.
    """
    checking = "--check" in arguments
    root = Path(__file__).parents[1]
    stale = 0
    for path, text in wanted:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not checking:
            path.write_text(text, encoding="utf-8")
        print(f"{'out of date' if checking else 'written'}: {path.relative_to(root)}")
    return 1 if stale and checking else 0
