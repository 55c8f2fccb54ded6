"""Multiplication by a weight matrix."""

import torch
import torch.nn.functional as F

ONEDNN_ROWS = 16
"""From so many rows on, oneDNN multiplies float32 matrices: 2.2 times as fast as MKL on an EPYC core, for MKL keeps its
widest instructions to Intel's. With fewer, its calls cost more than they save."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x` [n, in] times `weight` [out, in] transposed, plus `bias` [out].

    A CPU without bfloat16 arithmetic multiplies bfloat16 matrices 5 to 9 times slower than float32 ones; there, all but
    single rows go through float32.
    """
    if x.is_cpu and x.dtype == torch.bfloat16 and len(x) > 1 and not _multiplies_bfloat16():
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).bfloat16()
    if x.is_cpu and x.dtype == torch.float32 and len(x) >= ONEDNN_ROWS and _has_onednn():
        more = padded(len(x)) - len(x)
        rows = F.pad(x, (0, 0, 0, more)) if more else x
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")[: len(x)]
    return F.linear(x, weight, bias)


def padded(rows: int) -> int:
    """Rows that are multiplied where there are so many: eight numbers between powers of two, so a few percent more.

    oneDNN makes code for each number of rows and keeps it: hundreds of MiB, if steps may have any.
    """
    unit = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // unit) * unit


def _multiplies_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available()
