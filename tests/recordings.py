"""Answers recorded from a real vLLM. They are not part of the project: TOKENWEIR_FIXTURES names their folder."""

import os
from pathlib import Path

from .missing import missing


def recorded(name: str) -> bytes:
    """10 tokens in, 16 out."""
    folder = Path(os.environ.get("TOKENWEIR_FIXTURES", Path(__file__).parents[2] / "shared/fixtures"))
    if not folder.is_dir():
        missing(f"no recorded vLLM answers at {folder}; TOKENWEIR_FIXTURES names another place")
    return (folder / name).read_bytes()


def recorded_text(name: str) -> str:
    return recorded(name).decode()
