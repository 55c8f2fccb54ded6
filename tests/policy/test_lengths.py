"""What is remembered of outputs: the last ones, by application, and a bounded number of both."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.lengths import APPLICATIONS, ENOUGH, WINDOW, OutputLengths


@given(st.lists(st.integers(1, 9), min_size=ENOUGH, max_size=60))
def test_lengths_come_ascending(lengths):
    known = OutputLengths()
    for length in lengths:
        known.add("a", length)
    assert list(known.of("a")) == sorted(lengths)


def test_only_the_last_ones_count():
    known, last = OutputLengths(), deque(maxlen=WINDOW)
    for number in range(3 * WINDOW):
        last.append(number * 7919 % 1000)
        known.add("a", last[-1])
    assert list(known.of("a")) == sorted(last)


def test_an_application_with_few_outputs_is_taken_for_the_average():
    known = OutputLengths()
    assert not known.of("a")
    for _ in range(ENOUGH - 1):
        known.add("a", 5)
    assert not known.of("a") and not known.of("b")
    known.add("b", 9)
    assert list(known.of("a")) == [5] * (ENOUGH - 1) + [9] == list(known.of("c"))
    known.add("a", 6)
    assert list(known.of("a")) == [5] * (ENOUGH - 1) + [6]


def test_applications_are_bounded():
    known = OutputLengths()
    for number in range(3 * APPLICATIONS):
        known.add(f"a{number}", 1)
    assert len(known._of) == APPLICATIONS
