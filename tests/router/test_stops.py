"""Stop strings: found where a plain search would find them, however the text is cut; nothing of one is ever shown."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.router.stops import StopStrings

LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def plain(text: str, stops: list[str], early: int = 0) -> tuple[str, bool]:
    """Read letter by letter: what is before the first stop string that is complete."""
    for end in range(early + 1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(text=LETTERS, stops=STOPS, places=st.lists(st.integers(0, 30), max_size=8))
def test_the_text_ends_where_reading_letter_by_letter_ends_it(text, stops, places):
    matcher, shown = StopStrings(stops), ""
    for piece in cut(text, places):
        shown += matcher.feed(piece)
        if matcher.found:
            break
    else:
        shown += matcher.rest()
    assert (shown, matcher.found) == plain(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_what_is_shown_can_be_no_part_of_a_stop_string_to_come(text, stops):
    matcher, shown = StopStrings(stops), ""
    for at, letter in enumerate(text, 1):
        shown += matcher.feed(letter)
        if matcher.found:
            return
        held = text[len(shown) : at]
        assert text[:at] == shown + held
        begun = [n for n in range(1, at + 1) if any(stop.startswith(text[at - n : at]) for stop in stops)]
        assert len(held) == max(begun, default=0), "no more and no less than what may begin one"


@given(text=LETTERS, stops=STOPS, early=st.integers(0, 20))
def test_no_stop_string_ends_within_what_comes_early(text, stops, early):
    early = min(early, len(text))
    matcher, shown = StopStrings(stops), ""
    for at, letter in enumerate(text, 1):
        shown += matcher.feed(letter, early=at <= early)
        if matcher.found:
            break
    else:
        shown += matcher.rest()
    assert (shown, matcher.found) == plain(text, stops, early)


def test_without_stop_strings_nothing_is_held():
    matcher = StopStrings(())
    assert [matcher.feed(piece) for piece in ("a", "", "b")] == ["a", "", "b"] and not matcher.found
