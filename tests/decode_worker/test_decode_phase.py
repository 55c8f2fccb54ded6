"""What a decode worker decides."""

from penstock.decode_worker.phase import DecodePhase
from penstock.engine.phase import Phase, Size
from penstock.policy.batching import Budget

PREFILLS, DECODES, BOTH = Budget(512, 0), Budget(0, 8), Budget(512, 8)


def test_a_sequence_that_decodes_needs_room_for_all_of_its_output():
    phase: Phase = DecodePhase()
    demand = phase.demand(Size(100, 400), DECODES)
    assert (demand.tokens, demand.most_tokens) == (100, 400)


def test_a_sequence_goes_on_only_where_the_role_decodes():
    phase = DecodePhase()
    assert [phase.wants_step(1, role) for role in (PREFILLS, DECODES, BOTH)] == [False, True, True]
