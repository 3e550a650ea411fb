"""Put the tables and the picture of a run into docs/performance.md."""

from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- benchmark: written by make bench -->"
END: Final = "<!-- /benchmark -->"
DOCS: Final = Path(__file__).parent.parent / "docs"


def written_into(document: str, tables: str) -> str:
    """Return a document with the text between the marks replaced. Raise ValueError if a mark is missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{tables.strip()}\n\n{END}{after}"


def write(tables: str, picture: str, folder: Path = DOCS) -> None:
    """Write both."""
    page = folder / "performance.md"
    page.write_text(written_into(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    (folder / "performance.svg").write_text(picture, encoding="utf-8")
