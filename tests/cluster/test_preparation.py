"""What a start settles: budgets that come from a profile, and what is refused before anything starts."""

import pytest

from penstock.cluster import profile
from penstock.cluster.config import parse
from penstock.cluster.preparation import settled
from penstock.policy.batching import saturation_tokens

SHIPPED = "llama-2-7b-h100-tp1"


def test_without_a_profile_nothing_is_known_of_costs():
    config = settled(parse({"router": {"port": 0}}))
    assert config.cost is None and config.cluster.prefill_tokens == 512


def test_a_profile_brings_the_cost_of_steps_and_the_saturation_length():
    cost = profile.load(SHIPPED).cost
    config = settled(parse({"router": {"port": 0}, "cluster": {"profile": SHIPPED, "prefill_tokens": 0}}))
    assert config.cost == cost
    assert config.cluster.prefill_tokens == saturation_tokens(cost.step)
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


def test_a_profile_of_another_tensor_parallelism_is_refused():
    told = {"profile": SHIPPED, "decode_tensor_parallel": 2}
    with pytest.raises(ValueError, match="tensor parallelism 1, and the decode pool has 2"):
        settled(parse({"router": {"port": 0}, "cluster": told}))


def test_a_profile_of_another_model_is_told_of(caplog):
    settled(parse({"router": {"port": 0}, "cluster": {"profile": SHIPPED}}))
    assert "is served" in caplog.text


def test_costs_are_written_once():
    piece = dict.fromkeys(("base_s", "per_token_s", "per_chunk_work_s", "per_context_token_s"), 0.001)
    law = {"split_tokens": 1, "below": piece, "above": piece}
    cost = {"step": {"prefill": law, "decode": law}, "kv_bytes_per_token": 1, "capacity_tokens": 1}
    assert parse({"cost": cost, "cluster": {"itl_target_s": 0.1}}).cost is not None
    with pytest.raises(ValueError, match="not both"):
        parse({"cost": cost, "cluster": {"profile": SHIPPED}})


@pytest.mark.parametrize("port", [0, 50061])
def test_a_host_that_is_not_of_this_machine_is_refused_in_a_sentence(port):
    with pytest.raises(ValueError, match="on 203.0.113.1 cannot be had"):
        settled(parse({"router": {"host": "203.0.113.1", "port": port}}))
