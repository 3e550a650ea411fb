"""The glossary of docs/architecture.md has a word for everything that metering and its ports name, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("extproc/metering", "extproc/ports")
# What every package has, and what needs no word of its own.
SUFFIXES = ("Options", "Error", "Service", "Stores", "Parts")
PLAIN = {"AlertSink", "Clock", "Metering", "NoCounter", "Skipped"}
# Private words of earlier days, each with the field's own term today.
FORMER = {
    "books": "settler, ledger writer",
    "orphans": "journal sweeper",
    "lanes": "shard",
    "gate": "write fence",
    "outbox": "delivery queue",
    "holdings": "shard",
    "decider": "admission",
    "insights": "quota view",
    "left behind": "detached",
    "apart, or not": "shard",
}


def glossary():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    words = page.partition("## Words\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ", 1) for line in words.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40
    return {term.strip(): meaning for terms, meaning in rows for term in terms.split(",")}


def sources():
    return {
        path: path.read_text(encoding="utf-8") for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))
    }


def classes():
    found = (
        node for text in sources().values() for node in ast.parse(text).body if isinstance(node, ast.ClassDef)
    )
    return {
        node.name for node in found if not node.name.startswith("_") and not node.name.endswith(SUFFIXES)
    } - PLAIN


def spoken(name):
    """CamelCase as words."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()


def test_every_class_is_a_word_of_the_glossary_or_is_named_by_one():
    known = glossary()
    singular = {term.removesuffix("s") for term in known}
    named = {name for meaning in known.values() for name in re.findall(r"`(\w+)`", meaning)}
    found = classes()
    assert len(found) > 40
    assert {name for name in found - named if spoken(name).removesuffix("s") not in singular} == set()


def test_every_class_that_the_glossary_names_is_there():
    named = {name for meaning in glossary().values() for name in re.findall(r"`([A-Z]\w+)`", meaning)}
    assert named - classes() == set()


def test_every_word_of_the_glossary_is_used():
    text = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "extproc").rglob("*.py")).lower()
    text = re.sub(r"[\s_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text))
    squeezed = text.replace(" ", "")
    assert {term for term in glossary() if term.lower().replace(" ", "") not in squeezed} == set()


def test_no_former_word_is_left_in_these_rooms():
    found = {
        f"{path.name}: {word}: say {better}"
        for path, text in sources().items()
        for word, better in FORMER.items()
        if re.search(rf"\b{word}\b", text, re.IGNORECASE)
    }
    assert found == set()
