"""The small kernels equal their definitions in `transformers`."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from penstock.kernels import linear as linear_module
from penstock.kernels.linear import linear
from penstock.kernels.rms_norm import rms_norm
from penstock.kernels.rope import apply_rope
from penstock.kernels.silu_mul import silu_mul


def test_rms_norm() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(48, eps=1e-5)
    norm.weight.data = torch.randn(48)
    x = torch.randn(9, 48) * 1e-3
    torch.testing.assert_close(rms_norm(x, norm.weight, 1e-5), norm(x))


def test_rms_norm_with_a_weight_for_each_head() -> None:
    x, weight = torch.randn(5, 3, 8), torch.randn(3, 8)
    expected = torch.stack([rms_norm(x[:, head], weight[head], 1e-6) for head in range(3)], dim=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_on_interleaved_pairs_equals_rope_on_halves(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 3, 16).to(dtype)
    angles = torch.rand(7, 8) * 6
    rotations = torch.polar(torch.full_like(angles, 1.25), angles)
    halves = x.unflatten(-1, (8, 2)).transpose(-1, -2).flatten(-2)
    cos, sin = (1.25 * f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(halves.float(), halves.float(), cos, sin)
    out = apply_rope(x, rotations).unflatten(-1, (8, 2)).transpose(-1, -2).flatten(-2)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_silu_mul() -> None:
    x = torch.randn(4, 20)
    torch.testing.assert_close(silu_mul(x), torch.nn.functional.silu(x[:, :10]) * x[:, 10:])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_bfloat16_products_are_near_with_and_without_arithmetic_for_it(
    native: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_multiplies_bfloat16", lambda: native)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 64), torch.randn(32, 64), torch.randn(32)
    out = linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), x @ weight.T + bias, atol=0.3, rtol=0.03)
