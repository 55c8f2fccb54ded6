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
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _multiplies_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available()
