"""A step that was launched, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..kernels.device import Milestone, download
from .logprobs import LogprobsOf
from .step import Logbook


@dataclass(slots=True)
class Flight:
    """A launched step. The drawn tokens are on the device at once for a step behind it, on the host when it lands."""

    items: int
    rows: dict[int, int]
    """For each item that draws a token its row of `drawn`."""
    drawn: torch.Tensor | None
    """[rows] ids on the device; None where no item draws."""
    known: list[tuple[Logbook, list[LogprobsOf]]]
    """What is to be told of known tokens, in parts."""
    told: list[Logbook]
    """Where something is to be told of the token that is drawn, and what."""
    of_drawn: LogprobsOf | None
    device: torch.device
    _host: torch.Tensor | None = field(init=False)
    _end: Milestone = field(init=False)

    def __post_init__(self) -> None:
        self._host = None if self.drawn is None else download(self.drawn)
        self._end = Milestone(self.device)

    def result(self) -> list[int | None]:
        """Wait until the step is complete: its keys and values are in the cache.

        Returns for each item the sampled token, None where it asked for none, and fills in the items' `log`.
        """
        self._end.wait()
        for log, parts in self.known:
            log.of_known = tuple(logprobs for part in parts for logprobs in part.result())
        if self.of_drawn is not None:
            for log, logprobs in zip(self.told, self.of_drawn.result(), strict=True):
                log.of_drawn = logprobs
        tokens: list[int | None] = [None] * self.items
        if self._host is not None:
            ids = self._host.tolist()
            for item, row in self.rows.items():
                tokens[item] = ids[row]
        return tokens
