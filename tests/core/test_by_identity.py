"""Values that are kept by the identity of their objects."""

from extproc.core import by_identity
from extproc.core.by_identity import ByIdentity


def test_a_value_is_computed_once_for_each_object_equal_or_not():
    computed = []

    def double(thing):
        computed.append(thing)
        return thing * 2

    values, one, same = ByIdentity(double), (1, 2), tuple(range(1, 3))
    assert values.of(one) == values.of(one) == values.of(same) == (1, 2, 1, 2)
    assert len(computed) == 2
    assert computed[0] is one
    assert computed[1] is same


def test_only_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(by_identity, "_AT_MOST", 3)
    values = ByIdentity(len)
    things = [[0] * number for number in range(5)]
    assert [values.of(thing) for thing in things] == [0, 1, 2, 3, 4]
    assert len(values._known) <= 3
    assert values.of(things[0]) == 0
