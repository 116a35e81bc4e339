from hypothesis import given
from hypothesis import strategies as st

from volgrowth.sources.ordering import Sorted

NAMES = st.text(st.characters(codec=None), max_size=5)


@given(items=st.lists(st.tuples(NAMES, st.integers())), run=st.integers(1, 9))
def test_what_was_added_comes_in_order_each_time(items, run):
    made = Sorted.of(items, run)
    assert len(made) == len(items)
    assert list(made) == list(made) == sorted(items)
    made.add(("last", 1))
    assert list(made) == sorted([*items, ("last", 1)])


def test_two_readers_do_not_disturb_each_other():
    made = Sorted.of([(number,) for number in range(5000, 0, -1)], 700)
    assert all(left == right for left, right in zip(made, made, strict=True))
