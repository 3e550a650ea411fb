"""The locks: every file has its hashes, and all installs compare them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def versions(lock):
    return dict(PINNED.findall(lock.read_text(encoding="utf-8")))


def test_there_is_a_lock_for_each_way_to_install():
    assert [lock.stem for lock in LOCKS] == ["all", "build", "image", "local"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_and_has_the_hash_of_every_file(lock):
    entries = re.split(r"\n(?=[^ \n])", lock.read_text(encoding="utf-8").rstrip("\n"))
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert len(packages) >= 5
    for entry in packages:
        first, *hashes = entry.replace(" \\\n", "\n").split("\n")
        assert PINNED.match(first), first
        assert hashes, f"{first}: no hash"
        assert all(HASH.fullmatch(each.strip()) for each in hashes), entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_what_is_tested_is_what_is_shipped(lock):
    tested = versions(ROOT / "requirements" / "all.lock")
    assert {name: tested.get(name) for name in versions(lock)} == versions(lock)


@pytest.mark.parametrize(("name", "installs"), [("Makefile", 3), ("Dockerfile", 3)])
def test_whatever_is_installed_is_compared_with_its_hash(name, installs):
    """The project itself has no hash: it is built here, and brings nothing along."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:pip install|get|PIP\)) (-[^&;|]*)", text)
    assert len(found) >= installs
    # "$$@": the options of whoever calls.
    assert all(re.search(r"--require-hashes|--no-deps|\$\$@", options) for options in found), found


def test_the_images_base_is_named_by_its_digest():
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", base) for base in bases)
    assert len(set(bases)) == 1
