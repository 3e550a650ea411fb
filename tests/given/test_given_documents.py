"""YAML that a person writes: what it would grow to is counted before anything is built."""

import time

import pytest

from extproc.given.documents import GivenDocumentError, document, documents

LEVELS = range(1, 30)


def bomb(of_level, base="a0: &a0 [x, x]"):
    return "\n".join([base, *(of_level(n, f"*a{n - 1}") for n in LEVELS)])


BOMBS = {
    "lists": bomb(lambda n, below: f"a{n}: &a{n} [{', '.join([below] * 9)}]"),
    "merges": bomb(
        lambda n, below: f"a{n}: &a{n} {{<<: [{', '.join([below] * 9)}], k{n}: 1}}", base="a0: &a0 {x: 1}"
    ),
    "maps": bomb(lambda n, below: f"a{n}: &a{n} {{p: {below}, q: {below}, r: {below}}}"),
    "itself": "a: &a [*a]",
    "merges itself": "a: &a {<<: *a}",
    "a number in sixties": "a: " + ":".join(["1"] * 1_000_000),
    "a number": "a: " + "9" * 1_000_000,
    "a float": "a: 1" + "0" * 1_000_000 + ".5",
    "depth": "[" * 1_000_000,
    "depth of blocks": "\n".join(" " * n + "a:" for n in range(2000)),
    "a key twice": "a: 1\na: 2",
    "a list as a key": "? [a]\n: 1",
    "a tag that runs": "!!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_time(name):
    before = time.thread_time()
    with pytest.raises(GivenDocumentError) as error:
        documents(BOMBS[name])
    assert time.thread_time() - before < 5
    assert len(str(error.value)) < 300


def test_the_place_is_named():
    with pytest.raises(GivenDocumentError, match=r"at line 2, column 1: 'a' is given twice"):
        documents("a: 1\na: 2")
    with pytest.raises(GivenDocumentError, match="several YAML documents"):
        document("a: 1\n---\nb: 2")
    with pytest.raises(GivenDocumentError, match="month must be in"):
        document("a: 2026-13-45")


def test_what_people_write_is_read():
    text = "base: &base {a: 1, b: [x]}\nmine:\n  <<: *base\n  a: 2\nday: 2026-01-02\n---\n---\n- 0x10\n- 1e3\n"
    first, second = documents(text)
    assert first["mine"] == {"a": 2, "b": ["x"]}
    assert second == [16, "1e3"]
    assert document("") is None
    assert len(document("\n".join(f"- {{tenant_id: t{n}, sa_limit: {n}}}" for n in range(10_000)))) == 10_000
