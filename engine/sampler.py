"""From logits to a token, by the request's own draw."""

from collections.abc import Sequence

import torch

from .draw import uniform
from .step import SampleSpec


def sample(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[int]:
    """One token id for each row of `logits` [rows, vocab]; no row's choice depends on another row."""
    tokens = logits.argmax(dim=-1).tolist()
    drawn = [row for row, spec in enumerate(specs) if spec.temperature > 0]
    if drawn:
        temperatures = [specs[row].temperature for row in drawn]
        draws = [uniform(specs[row].seed, specs[row].choice, specs[row].position) for row in drawn]
        chosen = _invert(logits if len(drawn) == len(specs) else logits[drawn], temperatures, draws)
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    return tokens


def sample_from_logits(logits: torch.Tensor, temperature: float, u: float) -> int:
    """The token that a row of logits [vocab] gives at `temperature` for the draw `u` in [0, 1).

    Temperature 0 takes the largest logit, the lowest id among equals. Else the distribution softmax(logits / T), in
    float64, is inverted in the order of token ids: the first id whose cumulative probability exceeds `u`.
    """
    if temperature == 0:
        return int(logits.argmax())
    return _invert(logits.unsqueeze(0), [temperature], [u])[0]


def _invert(logits: torch.Tensor, temperatures: list[float], draws: list[float]) -> list[int]:
    scaled = logits.double() / torch.tensor(
        temperatures, dtype=torch.float64, device=logits.device
    ).unsqueeze(1)
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    targets = torch.tensor(draws, dtype=torch.float64, device=logits.device).unsqueeze(1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return found.clamp_(max=logits.shape[-1] - 1).tolist()
