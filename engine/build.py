"""An engine around a loaded model, as every instance has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..handover.config import HandoverConfig
from ..handover.house import House
from ..handover.values import Incarnation, Layout, Window
from ..policy.batching import Budget, Target
from ..policy.cost import CostModel
from ..policy.journal import Journal
from .blocks import BlockPool
from .config import EngineConfig
from .engine import Engine
from .outside import Limits, Outside
from .phase import Phase
from .runner import Runner
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .grammar import Grammars  # its library is needed where a grammar is


def context_tokens(runner: Runner) -> int:
    """The longest sequence that can be served."""
    return runner.spec.longest(runner.layout.blocks, runner.layout.block_size)


STEPS_NICE = 10
"""Steps on the CPU give way to routers and heartbeats: else a refusal waits for the steps of those that were taken."""


def build_engine(
    me: Incarnation,
    runner: Runner,
    role: Budget,
    phases: tuple[Phase, Phase],
    outside: Outside,
    config: EngineConfig,
    handover: HandoverConfig,
    *,
    grammars: Grammars | None = None,
    window: Window | None = None,
    cost: CostModel | None = None,
    target: Target | None = None,
    journal: Journal | None = None,
) -> Engine:
    """`phases` are of prefill and of decode, `window` is where others may write into the cache.

    See `InstanceServer` for `cost`, `Scheduler` for `target` and `Engine` for `journal`.
    """
    shape, spec = runner.layout, runner.spec
    scheduler = Scheduler(
        BlockPool(shape.blocks, config.prefix_cache, spec.span(shape.block_size)),
        shape.block_size,
        role,
        *phases,
        spec.fingerprint,
        target,
        config.admission,
        config.host_block_count(shape.block_bytes),
        cost if cost is not None and cost.prices_swaps else None,
    )
    layout = Layout(shape.layers, shape.kv_heads, shape.head_dim, shape.dtype, shape.block_size)
    house = House(me, spec.fingerprint, layout, handover)
    limits = Limits(context_tokens(runner), spec.eos, shape.block_size, spec.vocab, grammars)
    nice = STEPS_NICE if runner.device.type == "cpu" and not runner.ranked else 0
    return Engine(runner, scheduler, house, limits, outside, window, journal, runner.overlaps, nice)
