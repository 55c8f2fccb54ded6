"""Names of blocks: equal names, equal tokens from the first on, under one model and one tenant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.prefix import chain, secret

TOKENS = st.lists(st.integers(0, 3), max_size=24)
SIZE = 4


@given(TOKENS, TOKENS)
def test_names_are_equal_as_far_as_tokens_are(a, b):
    key = secret("model", "tenant")
    names_a, names_b = chain(key, a, SIZE), chain(key, b, SIZE)
    assert (len(names_a), len(names_b)) == (len(a) // SIZE, len(b) // SIZE)
    for place, (one, other) in enumerate(zip(names_a, names_b, strict=False)):
        assert (one == other) == (a[: (place + 1) * SIZE] == b[: (place + 1) * SIZE])


@given(TOKENS, st.data())
def test_a_chain_goes_on_where_it_was_left(tokens, data):
    key = secret("model", "")
    whole = chain(key, tokens, SIZE)
    known = data.draw(st.integers(0, len(whole)))
    assert chain(key, tokens, SIZE, whole[:known]) == whole
    assert chain(key, tokens, SIZE, whole[:known], known) == whole[:known]


def test_two_tenants_and_two_models_share_no_name():
    owners = [("m", ""), ("m", "a"), ("m", "b"), ("n", "a"), ("ma", ""), ("", "ma")]
    names = [name for owner in owners for name in chain(secret(*owner), range(40), SIZE)]
    assert len(set(names)) == len(names)


def test_the_same_tokens_in_other_blocks_have_other_names():
    key = secret("m", "")
    assert not set(chain(key, [1] * 64, 4)) & set(chain(key, [1] * 64, 8))


def test_large_ids_have_names_and_negative_ones_have_none():
    key = secret("m", "")
    assert len(chain(key, [2**32 - 1] * 4, 4)) == 1
    with pytest.raises(Exception, match="argument|format"):
        chain(key, [-1, 0, 0, 0], 4)
