from hypothesis import given
from hypothesis import strategies as st

from rewound.spelling import closest, nearest, unknown


@given(st.lists(st.text("abcd", min_size=1, max_size=6), min_size=1, unique=True))
def test_a_known_name_is_nearest_to_itself(known):
    assert closest(known[0], known) == [known[0]]


def test_another_word_is_no_slip_and_all_that_is_known_is_named():
    assert closest("zzz", ["digits"]) == []
    assert nearest("zzz", ["digits"]) == "known are digits"
    assert nearest("zzz", []) == "known are none"
    assert unknown("pattern", 3, ["weight"]) == "unknown pattern 3 (known: weight)"
