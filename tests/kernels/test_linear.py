"""Multiplication by a weight matrix is that, whichever library does it."""

import pytest
import torch

from penstock.kernels.linear import ONEDNN_ROWS, linear, padded


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


@pytest.mark.parametrize("rows", [1, 2, ONEDNN_ROWS - 1, ONEDNN_ROWS, 70])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_product_is_right_to_rounding(rows: int, biased: bool, dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 48).to(dtype), torch.randn(100, 48).to(dtype)
    bias = torch.randn(100).to(dtype) if biased else None
    expected = exact(x, weight, bias)
    found = linear(x, weight, bias)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < error * expected.abs().max()


@pytest.mark.parametrize("rows", [3, 40])
def test_slices_of_other_tensors_are_multiplied_as_they_stand(rows: int) -> None:
    torch.manual_seed(rows)
    wide, experts = torch.randn(rows * 2, 96), torch.randn(3, 100, 96)
    x, weight = wide[::2, :48], experts[1, :, 48:]
    expected = exact(x, weight, None)
    assert (linear(x, weight).double() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_few_numbers_of_rows_are_multiplied_and_few_rows_more() -> None:
    numbers = {padded(rows) for rows in range(ONEDNN_ROWS, 2049)}
    assert len(numbers) <= 8 * 7 + 1
    assert all(rows <= padded(rows) <= rows * 9 / 8 for rows in range(1, 2049))


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 48), torch.randn(100, 48)).shape == (0, 100)
