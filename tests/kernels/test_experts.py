"""The grouped feed-forward of a mixture is each token through its own experts, one after the other."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.experts import expert_feed_forward


def draw(tokens: int, experts: int, per_token: int, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = 12, 10
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=generator).to(dtype)
    down = torch.randn(experts, hidden, inner, generator=generator).to(dtype)
    shares, chosen = torch.rand(tokens, experts, generator=generator).topk(per_token, dim=-1)
    return x, chosen, shares, gate_up, down


def one_by_one(x, chosen, shares, gate_up, down):
    out = torch.zeros_like(x, dtype=torch.float64)
    for token in range(len(x)):
        for expert, share in zip(chosen[token].tolist(), shares[token].double(), strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            out[token] += share * (down[expert].double() @ (F.silu(gate) * up))
    return out


@given(
    tokens=st.integers(1, 9),
    experts=st.integers(1, 6),
    per_token=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_grouping_by_expert_changes_nothing(tokens: int, experts: int, per_token: int, seed: int) -> None:
    parts = draw(tokens, experts, min(per_token, experts), seed)
    assert torch.allclose(expert_feed_forward(*parts).double(), one_by_one(*parts), rtol=1e-4, atol=1e-4)


def test_experts_that_nobody_chose_do_not_matter() -> None:
    x, chosen, shares, gate_up, down = draw(tokens=3, experts=5, per_token=2, seed=1)
    chosen = torch.tensor([[0, 3], [3, 0], [0, 3]])
    before = expert_feed_forward(x, chosen, shares, gate_up, down)
    for expert in (1, 2, 4):
        gate_up[expert], down[expert] = float("nan"), float("nan")
    assert torch.equal(expert_feed_forward(x, chosen, shares, gate_up, down), before)


@pytest.mark.parametrize("tokens", [1, 40])
def test_bfloat16_stays_bfloat16(tokens: int) -> None:
    parts = draw(tokens, experts=4, per_token=2, seed=2, dtype=torch.bfloat16)
    out = expert_feed_forward(*parts)
    assert out.dtype == torch.bfloat16
    expected = one_by_one(*parts)
    assert (out.double() - expected).abs().max() < 0.05 * expected.abs().max()
