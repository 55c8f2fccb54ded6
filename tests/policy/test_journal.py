"""The journal: decisions come back in order, of the session that was asked for, and never without bound."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.journal import Journal

NAMES = st.sampled_from(["a#0", "a#1", "ab#0", "b#0"])


@given(st.lists(NAMES, max_size=60), st.integers(1, 5), st.integers(2, 9))
def test_a_session_keeps_its_first_and_its_latest_decisions_in_order(noted, sessions, each):
    clock = count()
    journal = Journal("router-0", lambda: float(next(clock)), sessions, each)
    for name in noted:
        journal.note(name, "step")
    latest = list(dict.fromkeys(reversed(noted)))[:sessions]
    for name in {*noted}:
        kept = [decision.at for decision in journal.of(name)]
        all_of_it = [float(at) for at, one in enumerate(noted) if one == name]
        if name not in latest:
            assert kept == []
            continue
        assert kept == sorted(kept) and len(kept) <= each
        assert kept[-1] == all_of_it[-1]


def test_a_request_is_not_told_what_befell_another_of_a_longer_name():
    journal = Journal("decode-0", lambda: 1.0)
    journal.note("r#0#7", "adopted", blocks=3)
    journal.note("r2#0#7", "adopted", blocks=4)
    assert [decision.figures for decision in journal.of("r#")] == [{"blocks": 3}]


def test_a_figure_that_is_an_empty_text_is_left_out():
    journal = Journal("router-0", lambda: 1.0)
    journal.note("r#0", "moved", source="decode-0", seconds=0.0, reason="")
    assert [decision.figures for decision in journal.of("r#")] == [{"source": "decode-0", "seconds": 0.0}]


def test_a_decision_reads_as_one_line_with_its_figures():
    decision = Journal("router-0", lambda: 1.0).note(
        "r#0", "dispatched", prefill="prefill-0", queue_s=0.123456
    )
    assert str(decision) == "dispatched prefill=prefill-0 queue_s=0.1235"
