"""Attention over a paged cache without copying it: parts are read in place and merged by their log-sum-exp."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F

from .device import on_gpu
from .paged import PagedBatch, Reads, Tile, Together
from .segments import Segment, merge_segments


class _Tokens:
    """A layer's keys and values as tokens `[slots, K, D]` and, the same memory, by heads `[1, K, slots, D]`."""

    def __init__(self, kv: torch.Tensor) -> None:
        slots = kv.shape[1] * kv.shape[2]
        self.keys, self.values = kv.view(2, slots, *kv.shape[3:]).unbind(0)
        self._keys_by_head, self._values_by_head = _by_head(self.keys), _by_head(self.values)

    def parts(self, reads: Reads) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The keys and values of `reads`, each `[1, K, tokens, D]`; spans are views."""
        for slot, tokens in reads.spans:
            yield self._keys_by_head.narrow(2, slot, tokens), self._values_by_head.narrow(2, slot, tokens)
        if reads.slots is not None:
            keys, values = self.keys.index_select(0, reads.slots), self.values.index_select(0, reads.slots)
            yield _by_head(keys), _by_head(values)


def paged_decode_attention(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
    """One new token for each sequence of `batch`, whose own key and value are already in the cache.

    `q` [n, H, D], `kv` a layer's cache; returns [n, H, D].
    """
    if batch.shared:
        segments = shared_prefix_segment(q, kv, batch), decode_segment(q, kv, batch)
        return merge_segments(segments).out.to(q.dtype)
    if on_gpu(q):
        from . import attention_triton

        return attention_triton.decode(q, kv, batch)
    n, heads, dim = q.shape
    tokens, kv_heads = _Tokens(kv), kv.shape[3]
    # The query heads that share a key head become rows, so no key is repeated.
    rows = q.view(n, kv_heads, heads // kv_heads, dim)
    together = batch.together(2 * kv_heads * dim * kv.element_size())
    if together is None:
        return _attend_each(rows, range(n), tokens, batch).view(n, heads, dim)
    if not together.rest:
        return _attend_together(rows, tokens, together).view(n, heads, dim)
    out = torch.empty_like(rows)
    out[together.rows] = _attend_together(rows[together.rows], tokens, together)
    out[together.rest] = _attend_each(rows, together.rest, tokens, batch)
    return out.view(n, heads, dim)


def _attend_each(
    rows: torch.Tensor, wanted: Sequence[int], tokens: _Tokens, batch: PagedBatch
) -> torch.Tensor:
    """Of `rows` [n, K, H / K, D] those `wanted`, each by itself over its keys in place."""
    contexts = batch.contexts
    return torch.cat([_attend_parts(rows[row : row + 1], tokens.parts(contexts[row])) for row in wanted])


def _attend_together(rows: torch.Tensor, tokens: _Tokens, together: Together) -> torch.Tensor:
    """`rows` [m, K, H / K, D] over copies of their keys, side by side."""
    shape = (len(rows), -1, *tokens.keys.shape[1:])
    keys, values = (
        part.index_select(0, together.slots).view(shape).transpose(1, 2)
        for part in (tokens.keys, tokens.values)
    )
    return F.scaled_dot_product_attention(rows, keys, values, attn_mask=together.mask)


def decode_segment(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> Segment:
    """`paged_decode_attention` over each sequence's tokens behind its shared prefix."""
    if on_gpu(q):
        from . import attention_triton

        return attention_triton.decode_segment(q, kv, batch)
    n, heads, dim = q.shape
    tokens, kv_heads = _Tokens(kv), kv.shape[3]
    rows = q.view(n, 1, kv_heads, heads // kv_heads, dim).unbind(0)
    pairs = [_flash_parts(row, tokens.parts(reads)) for row, reads in zip(rows, batch.contexts, strict=True)]
    outs, lses = zip(*pairs, strict=True)
    return Segment(torch.cat(outs).view(n, heads, dim).float(), torch.cat(lses).view(n, heads))


def shared_prefix_segment(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> Segment:
    """All sequences of a group of `batch.shared` over its prefix, whose keys are read once for all of them
    (Hydragen, https://arxiv.org/abs/2402.05099). Sequences of no group have seen no key.
    """
    if on_gpu(q):
        from . import attention_triton

        return attention_triton.shared_prefix_segment(q, kv, batch)
    n, heads, dim = q.shape
    tokens, kv_heads = _Tokens(kv), kv.shape[3]
    by_head = q.view(n, kv_heads, heads // kv_heads, dim).transpose(0, 1)
    out = torch.zeros((n, heads, dim))
    lse = torch.full((n, heads), float("-inf"))
    for (first, count, _), reads in zip(batch.shared, batch.shared_prefixes, strict=True):
        members = slice(first, first + count)
        rows = by_head[:, members].reshape(1, kv_heads, -1, dim)
        group_out, group_lse = _flash_parts(rows, tokens.parts(reads))
        out[members] = group_out.view(kv_heads, count, -1, dim).transpose(0, 1).reshape(count, heads, dim)
        lse[members] = group_lse.view(kv_heads, count, -1).transpose(0, 1).reshape(count, heads)
    return Segment(out, lse)


def paged_prefill_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: PagedBatch
) -> torch.Tensor:
    """Chunks of new tokens, one after the other, each behind its cached prefix.

    `q` [n, H, D]; `k`, `v` [n, K, D] the chunks' own, already in the cache too; `kv` a layer's cache; returns
    [n, H, D]. Scores are never held for more than a tile of keys and queries.
    """
    if on_gpu(q):
        from . import attention_triton

        return attention_triton.prefill(q, kv, batch)
    tokens, outs, row = _Tokens(kv), [], 0
    for index, count in enumerate(batch.counts):
        rows = slice(row, row + count)
        prefix = batch.prefixes[index]
        if prefix is None:
            outs.extend(_attend_tile(q[rows], tokens, tile) for tile in batch.tiles[index])
        else:
            outs.append(_attend_chunk(q[rows], k[rows], v[rows], tokens.parts(prefix)))
        row += count
    return torch.cat(outs)


def _attend_chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Every query sees the whole prefix and, of the chunk, what stands before it. Returns [count, H, D]."""
    q = _by_head(q)
    out, lse = _flash(q, _by_head(k), _by_head(v), causal=True)
    for keys, values in prefix:
        out, lse = _merge(out, lse, *_flash(q, keys, values))
    return out[0].transpose(0, 1)


def _attend_tile(q: torch.Tensor, tokens: _Tokens, tile: Tile) -> torch.Tensor:
    ((keys, values),) = tokens.parts(tile.reads)
    queries = _by_head(q[tile.first_row : tile.first_row + tile.rows])
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=tile.mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def _attend_parts(q: torch.Tensor, parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    parts = list(parts)
    if len(parts) == 1:
        return F.scaled_dot_product_attention(q, *parts[0])
    return _flash_parts(q, parts)[0]


def _flash_parts(
    q: torch.Tensor, parts: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    segments = (_flash(q, keys, values) for keys, values in parts)
    return reduce(lambda seen, segment: _merge(*seen, *segment), segments)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scores; the public function keeps the latter to itself."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal)


def _merge(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the union of two sets of keys, from the softmax over each."""
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1).to(out.dtype)
    return torch.lerp(out, other, weight), torch.logaddexp(lse, other_lse)


def _by_head(tokens: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, D] as [1, heads, tokens, D], the same memory."""
    return tokens.transpose(0, 1).unsqueeze(0)
