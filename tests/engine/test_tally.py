"""A tally says what counting all the ids would say, however it came to them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.tally import Tally

IDS = st.lists(st.integers(0, 20), max_size=60)


@given(prompt=IDS, emitted=IDS, more=IDS)
def test_a_tally_grown_token_by_token_is_the_one_built_from_all_ids(prompt, emitted, more):
    grown = Tally(prompt, emitted)
    for token in more:
        grown.add(token)
    assert grown == Tally(prompt, [*emitted, *more])
    counted = Counter(emitted + more)
    assert dict(zip(grown.ids.tolist(), grown.counts.tolist(), strict=True)) == {
        token: counted[token] for token in {*prompt, *emitted, *more}
    }
    assert len(grown) == len({*prompt, *emitted, *more})


def test_tallies_of_other_ids_differ():
    assert Tally([1], [2]) != Tally([1, 2], []) != Tally([], [1, 2])
