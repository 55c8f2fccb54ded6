"""The peers of the benches that stand beside `transformers`, on a model of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..policy.batching import Budget
from .alone import Job

ROLE = Budget(512, 64)
"""Of an instance that nobody configured."""


class Transformers:
    """Its continuous batching and its plain batched `generate`."""

    @classmethod
    def of(cls, folder: Path, cache_tokens: int, role: Budget = ROLE) -> Transformers:
        """On a checkpoint, in float32 on the CPU."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(model, cache_tokens, role)

    def __init__(self, model: Any, cache_tokens: int, role: Budget = ROLE):
        """Its steps are as large as those of an instance of `role`, its cache holds `cache_tokens`."""
        import transformers

        transformers.utils.logging.set_verbosity_error()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        self._lib: Any = transformers
        self._model = model.eval()
        self._model.generation_config = transformers.GenerationConfig()
        self._cache_tokens = cache_tokens
        self._role = role

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """In batches, padded on the left."""
        outputs: list[list[int]] = []
        for start in range(0, len(jobs), self._role.decode_slots):
            outputs += self._batch(jobs[start : start + self._role.decode_slots])
        return outputs

    @torch.inference_mode()
    def _batch(self, jobs: Sequence[Job]) -> list[list[int]]:
        longest = max(len(job.prompt) for job in jobs)
        padding = [longest - len(job.prompt) for job in jobs]
        ids = torch.tensor([[0] * pad + list(job.prompt) for pad, job in zip(padding, jobs, strict=True)])
        mask = (torch.arange(longest) >= torch.tensor(padding).unsqueeze(1)).long()
        most = max(job.tokens for job in jobs)
        made = self._model.generate(ids, attention_mask=mask, generation_config=self._settings(most))
        return [row[longest : longest + job.tokens] for row, job in zip(made.tolist(), jobs, strict=True)]

    def continuous(self, jobs: Sequence[Job]) -> list[list[int]]:
        """As `generate_batch` does it: begun and ended by each call."""
        with self.running() as run:
            return run(jobs)

    @contextmanager
    def running(self) -> Iterator[Callable[[Sequence[Job]], list[list[int]]]]:
        """Continuous batching that runs for as long as this lasts, as a service of it would.

        With the step's size of the instance, and room for all that its cache holds at once.
        """
        page_tokens = 256
        config = self._lib.ContinuousBatchingConfig(
            page_size=page_tokens,
            num_blocks=self._cache_tokens // page_tokens + self._role.decode_slots,
            max_batch_tokens=self._role.prefill_tokens + self._role.decode_slots,
        )
        manager = self._model.continuous_batching_context_manager(
            generation_config=self._settings(1), continuous_batching_config=config, block=True, timeout=5
        )
        with manager as running:
            yield lambda jobs: _served(running, jobs)

    def _settings(self, tokens: int) -> Any:
        return self._lib.GenerationConfig(
            do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0
        )


def _served(running: Any, jobs: Sequence[Job]) -> list[list[int]]:
    done: dict[str, list[int]] = {}
    names = [
        running.add_request(list(job.prompt), max_new_tokens=job.tokens, eos_token_id=-1) for job in jobs
    ]
    while len(done) < len(jobs):
        result = running.get_result(timeout=1)
        if result is not None and result.is_finished():
            done[result.request_id] = result.generated_tokens
        elif result is None and not running.is_running():
            raise RuntimeError("the continuous batching of transformers ended before its requests")
    return [done[name] for name in names]
