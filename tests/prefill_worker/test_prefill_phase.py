"""What a prefill worker decides."""

import pytest

from penstock.engine.phase import Phase, Size
from penstock.policy.batching import Budget
from penstock.prefill_worker.phase import PrefillPhase

PREFILLS, DECODES, BOTH = Budget(512, 0), Budget(0, 8), Budget(512, 8)


@pytest.mark.parametrize(("role", "most"), [(PREFILLS, 100), (BOTH, 400)])
def test_a_prompt_needs_room_for_its_output_only_where_it_may_stay(role, most):
    phase: Phase = PrefillPhase()
    demand = phase.demand(Size(100, 400), role)
    assert (demand.tokens, demand.most_tokens) == (100, most)


def test_a_prompt_runs_only_where_the_role_prefills():
    phase = PrefillPhase()
    assert [phase.wants_step(10, role) for role in (PREFILLS, DECODES, BOTH)] == [True, False, True]
