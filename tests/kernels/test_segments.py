"""Attention over parts of the keys, merged, is attention over all of them."""

import torch

from penstock.kernels.segments import Segment, merge_segments


def segment(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Segment:
    """By definition, in float64: `q` [n, H, D], `k` and `v` [m, H, D]."""
    scores = torch.einsum("nhd,mhd->nhm", q, k)
    out = torch.einsum("nhm,mhd->nhd", scores.softmax(-1), v) if len(k) else torch.zeros_like(q)
    return Segment(out, scores.logsumexp(-1))


def test_any_cut_gives_the_whole() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 8).double(), torch.randn(11, 2, 8).double(), torch.randn(11, 2, 8).double()
    whole = segment(q, k, v)
    for sizes in ([11], [4, 7], [0, 1, 10], [3, 0, 8, 0]):
        pieces = [segment(q, *piece) for piece in zip(k.split(sizes), v.split(sizes), strict=True)]
        for merged in (merge_segments(pieces), merge_segments(pieces[::-1])):
            torch.testing.assert_close(merged.out, whole.out)
            torch.testing.assert_close(merged.lse, whole.lse)


def test_no_keys_at_all_give_zero() -> None:
    empty = Segment(torch.zeros(1, 2, 8), torch.full((1, 2), float("-inf")))
    merged = merge_segments([empty, empty])
    assert (merged.out == 0).all() and (merged.lse == float("-inf")).all()


def test_scores_beyond_the_range_of_exp_merge() -> None:
    a = Segment(torch.ones(1, 1, 4), torch.full((1, 1), 500.0))
    b = Segment(torch.zeros(1, 1, 4), torch.full((1, 1), 500.0))
    merged = merge_segments([a, b])
    torch.testing.assert_close(merged.out, torch.full((1, 1, 4), 0.5))
