"""Tables of profiles are bounded, and fair to tenants."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.quota.profiles import Profile, ProfileTable
from tests.core.samples import FUZZ


def filled(room, names):
    table = ProfileTable(room)
    for tenant, model in names:
        table.add(tenant, model, Profile())
    return table


def test_a_profile_is_found_under_its_tenant_and_model_only():
    table, profile = ProfileTable(3), Profile()
    assert table.add("x", "a", profile) is None
    assert table.find("x", "a") is profile
    assert table.find("x", "b") is None
    assert table.find("y", "a") is None


def test_the_tenant_with_the_most_profiles_makes_room():
    table = filled(4, ["xa", "xb", "xc", "ya"])
    assert table.add("z", "a", Profile()).model == "a"
    assert table.find("x", "a") is None
    assert table.find("y", "a") is not None


def test_among_equals_a_tenant_with_several_profiles_makes_room_for_its_own():
    table = filled(4, ["xa", "xb", "ya"])
    table.add("y", "b", Profile())
    assert table.add("y", "c", Profile()).model == "a"
    assert table.find("x", "a") is not None
    assert table.find("y", "a") is None


def test_of_tenants_with_one_profile_each_the_one_that_was_observed_least_lately_makes_room():
    table = filled(3, ["xa", "ya", "za"])
    table.touch("x", "a")
    table.add("w", "a", Profile())
    assert [table.find(tenant, "a") is not None for tenant in "xyzw"] == [True, False, True, True]


@FUZZ
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from("wxyz"), st.sampled_from("abcdefgh"), st.booleans()), max_size=80),
)
def test_a_table_is_never_larger_than_its_room_and_nobody_loses_an_equal_share(room, calls):
    table, there = ProfileTable(room), {}
    for tenant, model, removes in calls:
        name = (tenant, model)
        if name in there:
            table.touch(*name)
            if removes:
                assert table.remove(*name) is there.pop(name)
            continue
        there[name] = Profile()
        before = Counter(of for of, _ in there)
        forgotten = table.add(*name, there[name])
        if forgotten is not None:
            (lost,) = [key for key, profile in there.items() if profile is forgotten.profile]
            assert lost != name
            assert lost[1] == forgotten.model
            assert before[lost[0]] == max(before.values())
            assert before[lost[0]] * len(before) > room
            del there[lost]
        assert len(table) == len(there) <= room
        assert all(table.find(*key) is profile for key, profile in there.items())
