"""Scattering undoes gathering, whatever the alignment of the pages."""

import pytest
import torch

from penstock.kernels.blocks import gather_blocks, scatter_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [(16, 2, 32), (1, 1, 2), (3, 1, 2)])
@pytest.mark.parametrize("shift", [0, 2])
def test_blocks_come_back_bit_by_bit(dtype: torch.dtype, page: tuple[int, int, int], shift: int) -> None:
    torch.manual_seed(0)
    kv = torch.randn(2, 30, *page).to(dtype)
    blocks = torch.randperm(30)[:7]
    # A buffer may begin anywhere, as the body of a message does.
    count = 2 * 7 * page[0] * page[1] * page[2]
    staging = torch.empty(count + shift, dtype=dtype)[shift:].view(2, 7, *page)
    gather_blocks(kv, blocks, staging)
    assert torch.equal(staging, kv[:, blocks])
    other = torch.zeros_like(kv)
    scatter_blocks(staging, blocks, other)
    assert torch.equal(other[:, blocks], kv[:, blocks])
    assert other.count_nonzero() == kv[:, blocks].count_nonzero()


def test_nan_payloads_survive() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (2, 9, 4, 2, 8), dtype=torch.int32)
    kv, target = bits.view(torch.float32), torch.zeros(2, 9, 4, 2, 8)
    staging = torch.empty(2, 9, 4, 2, 8)
    gather_blocks(kv, torch.arange(9), staging)
    scatter_blocks(staging, torch.arange(9), target)
    assert torch.equal(target.view(torch.int32), bits)
