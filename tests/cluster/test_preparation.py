"""What a start settles: budgets that come from a profile, and what is refused before anything starts."""

import pytest

from penstock.cluster import profile
from penstock.cluster.config import parse
from penstock.cluster.preparation import settled
from penstock.policy.batching import saturation_tokens

SHIPPED = profile.shipped()[0]


def test_without_a_profile_nothing_is_known_of_costs():
    config = settled(parse({"router": {"port": 0}}))
    assert config.step_cost is None and config.cluster.prefill_tokens == 512


def test_a_profile_brings_the_cost_of_steps_and_the_saturation_length():
    cost = profile.load(SHIPPED).cost.step
    config = settled(parse({"router": {"port": 0}, "cluster": {"profile": SHIPPED, "prefill_tokens": 0}}))
    assert config.step_cost == cost
    assert config.cluster.prefill_tokens == saturation_tokens(cost)
    fixed = settled(parse({"router": {"port": 0}, "cluster": {"profile": SHIPPED, "itl_target_s": 0.05}}))
    assert fixed.cluster.prefill_tokens == 512 and fixed.cluster.itl_target_s == 0.05


@pytest.mark.parametrize("told", [{"itl_target_s": 0.05}, {"prefill_tokens": 0}])
def test_what_needs_a_profile_is_refused_without_one(told):
    with pytest.raises(ValueError, match=f"{next(iter(told))}.* needs cluster.profile"):
        parse({"cluster": told})


def test_a_profile_that_is_none_is_refused_by_name(tmp_path):
    config = parse({"router": {"port": 0}, "cluster": {"profile": str(tmp_path / "none.yaml")}})
    with pytest.raises(ValueError, match="none.yaml"):
        settled(config)
