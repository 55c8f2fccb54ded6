"""From logits to a token, by the request's own draw.

Sampling is the Gumbel-max trick (Gumbel 1954; Maddison et al., https://arxiv.org/abs/1411.0030): the largest of
logit + temperature x noise is distributed as the softmax. Each token's noise is its own, so that rounding changes a
choice only where the two best scores lie within it, as it is for greedy choice; inverting the cumulative distribution
would collect the rounding of all tokens before the drawn one.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.device import upload
from .draw import draw_key
from .shaping import best, shape_
from .step import SampleSpec

_MANTISSA_BITS = 53


def sample(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """One token id for each row of `logits` [rows, vocab]; no row's choice depends on another row.

    Returns them on the device of `logits`, without waiting for it. Rows whose spec has a `shaping` may be changed in
    place.
    """
    if any(spec.shaping is not None for spec in specs):
        logits = logits.float()  # fewer digits would swallow what is added
        shape_(logits, specs)
    drawn = [row for row, spec in enumerate(specs) if spec.temperature > 0]
    if len(drawn) == len(specs):
        return _draw(logits, specs)
    tokens = _likeliest(logits)
    if drawn:
        at = upload(np.array(drawn), logits.device)
        tokens.index_copy_(0, at, _draw(logits.index_select(0, at), [specs[row] for row in drawn]))
    return tokens


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the largest in each row of `logits`; on CPUs by numpy, which is ten times as fast."""
    if logits.is_cuda or logits.dtype is not torch.float32:
        return logits.argmax(dim=-1)
    return torch.from_numpy(logits.numpy().argmax(axis=-1))


def _draw(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """The draws of rows whose temperature is above 0."""
    keys = [draw_key(spec.seed, spec.choice, spec.position) for spec in specs]
    return best(score(logits, [spec.temperature for spec in specs], keys), logits, specs)


def score(logits: torch.Tensor, temperatures: Sequence[float], keys: Sequence[int]) -> torch.Tensor:
    """What the token is the largest of: `logits` [rows, vocab] plus temperature times Gumbel noise, in float64.

    Each row has its temperature and its `draw_key`. Temperature 0 leaves the logits: greedy choice.
    """
    device = logits.device
    noise = _gumbel(upload(np.array(keys, dtype=np.int64), device), logits.shape[-1])
    scale = upload(np.array(temperatures, dtype=np.float64), device).unsqueeze(1)
    return noise.mul_(scale).add_(logits)


def _gumbel(keys: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise keyed by (key, token): [rows, vocabulary], float64."""
    uniform = _uniform(keys, vocabulary)
    return uniform.log_().neg_().log_().neg_()


def _uniform(keys: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Numbers inside (0, 1) keyed by (key, token): SplitMix64 (Steele et al., OOPSLA 2014) started at the key."""
    state = torch.arange(1, vocabulary + 1, device=keys.device).mul_(_GAMMA) + keys.unsqueeze(1)
    for shift, factor in _MIXING:
        state ^= _shifted(state, shift)
        state *= factor
    state ^= _shifted(state, _LAST_SHIFT)
    return _shifted(state, 64 - _MANTISSA_BITS).double().add_(0.5).mul_(2.0**-_MANTISSA_BITS)


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The logical right shift of 64-bit words; torch's own keeps the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIXING = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
_LAST_SHIFT = 31
