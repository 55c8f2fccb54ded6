"""How many instances each pool has: grown, drained, or flipped to another role, on freeness and SLO attainment.

Where one pool is short while another idles, as when prompts grow and outputs shrink, a flip serves at once; a new
machine takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .freeness import freeness, usage_blocks
from .state import InstanceView, Scale, ScaleAction


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of one pool, in instances."""

    least: int = 1
    """It is never drained or flipped below, and grows to it."""

    most: int = 1
    """It never grows above."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least must be at least 1 and at most `most`, got {self.least} and {self.most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleConfig:
    """When pools change by themselves. Freeness is of a whole pool, in decode steps until its memory is used up."""

    limits: Mapping[str, PoolLimits] = field(default_factory=dict)
    """By pool; one that is not named is left alone."""

    attainment: float = 0.9
    """A pool is short where a smaller share of its requests meets its SLO."""

    low_steps: float = 64.0
    """A pool of less freeness is short."""

    high_steps: float = 512.0
    """A pool of less freeness does not idle."""

    busy_steps: float = 8.0
    """A pool is short where an instance has more steps of prompts before it, on the average."""

    waiting: float = 1.0
    """A pool is short where more requests wait for it at the routers, for each of its instances."""

    idle_steps: float = 1.0
    """A pool does not idle where it has more."""

    short_s: float = 5.0
    """How long a pool must be short before it grows, or has an instance of an idle one, in seconds."""

    idle_s: float = 60.0
    """How long a pool must idle before it is drained, in seconds."""

    cooldown_s: float = 30.0
    """How long a pool is left alone after a change has begun, or a new controller, in seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.attainment <= 1:
            raise ValueError(f"attainment must be from 0 to 1, got {self.attainment:g}")
        for low, high in (("low_steps", "high_steps"), ("idle_steps", "busy_steps")):
            if not getattr(self, low) <= getattr(self, high):
                raise ValueError(f"{low} must not be above {high}")
        for name in ("waiting", "short_s", "idle_s", "cooldown_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name):g}")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at a time: all instances, and of each pool the share of its requests that met their SLO lately, and
    how many wait for it at the routers.

    Prefill's SLO is the time to the first token, decode's the time per token. A pool without requests is not named.
    An instance that is starting, or lost and to be started again, is one that is not alive; one that waits for room is
    not placed either.
    """

    at: float
    views: tuple[InstanceView, ...]
    attainment: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """When each pool was last changed."""

    changed_at: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Pool:
    """How a pool does in one sample."""

    members: int
    """Those that drain, start or are lost too."""
    serving: tuple[InstanceView, ...]
    coming: tuple[InstanceView, ...]
    """Those that start, are lost or wait for room."""
    attainment: float | None
    waiting: int

    @classmethod
    def of(cls, sample: Sample, name: str) -> _Pool:
        members = [view for view in sample.views if view.pool == name]
        staying = [view for view in members if not view.draining]
        serving = tuple(view for view in staying if view.alive)
        coming = tuple(view for view in staying if not view.alive)
        return cls(len(members), serving, coming, sample.attainment.get(name), sample.waiting.get(name, 0))

    def freeness(self, but: int = 0) -> float:
        """Of each of its instances if all had the same, when `but` are gone and the others run what those ran."""
        left = len(self.serving) - but
        if left <= 0:
            return 0.0
        total = sum(view.load.total_blocks for view in self.serving) / len(self.serving)
        used = sum(usage_blocks(view.load) for view in self.serving) / left
        running = sum(view.load.running for view in self.serving) / left
        return (total - used) * self.serving[0].load.block_size / max(1.0, running)

    def queued_steps(self, but: int = 0) -> float:
        """Steps of prompts that wait for an instance, on the average."""
        steps = [
            view.load.queued_tokens / view.load.prefill_tokens
            for view in self.serving
            if view.load.prefill_tokens
        ]
        return sum(steps) / max(1, len(steps) - but)

    def figures(self, name: str) -> dict[str, float]:
        told = {
            "serving": len(self.serving),
            "coming": len(self.coming),
            "free_steps": self.freeness(),
            "queued_steps": self.queued_steps(),
            "waiting": self.waiting,
        }
        if self.attainment is not None:
            told["attainment"] = self.attainment
        return {f"{name}_{figure}": value for figure, value in told.items()}


def autoscale(
    history: Sequence[Sample], cfg: AutoscaleConfig, now: float, memory: Memory
) -> tuple[list[ScaleAction], Memory]:
    """Changes to start now: at most one of each pool. `history` is oldest first, and must reach `idle_s` back.

    A pool does not grow while one of its own is coming, nor while another pool idles that will soon have done so for
    long enough to give it one.
    """
    changed_at = dict(memory.changed_at)
    actions: list[ScaleAction] = []

    def rested(name: str) -> bool:
        return now - changed_at.get(name, -cfg.cooldown_s) >= cfg.cooldown_s

    def start(action: ScaleAction, *pools: str) -> None:
        actions.append(action)
        changed_at.update(dict.fromkeys(pools, now))

    for name in sorted(cfg.limits):
        why = _few(history[-1], name, cfg) or _throughout(history, name, now, cfg.short_s, cfg, _short)
        if rested(name) and why:
            pool, spares = _Pool.of(history[-1], name), _spares(history[-1], name, cfg, rested)
            if pool.members >= cfg.limits[name].most:
                continue
            figures = pool.figures(name)
            idle = [view for view in spares if _throughout(history, view.pool, now, cfg.short_s, cfg, _idle)]
            donor = max(idle, key=_freest_first, default=None)
            if donor is not None:
                figures |= _Pool.of(history[-1], donor.pool).figures(donor.pool)
                flip = ScaleAction(Scale.FLIP, donor.pool, f"{name}: {why}", donor.key, name, figures)
                start(flip, name, donor.pool)
            elif not spares and not pool.coming:
                start(ScaleAction(Scale.GROW, name, why, figures=figures), name)
    for name in sorted(cfg.limits):
        if rested(name) and (why := _throughout(history, name, now, cfg.idle_s, cfg, _idle)):
            pool = _Pool.of(history[-1], name)
            spare = _superfluous(pool, name, cfg) or _spare(pool, name, cfg)
            if spare is not None:
                start(ScaleAction(Scale.DRAIN, name, why, spare.key, figures=pool.figures(name)), name)
    return actions, Memory(changed_at)


def _few(sample: Sample, name: str, cfg: AutoscaleConfig) -> str:
    """Why the pool is short whatever it does; empty where it is not."""
    members, least = _Pool.of(sample, name).members, cfg.limits[name].least
    return f"it has {members} instances, and {least} at least" if members < least else ""


def _short(pool: _Pool, cfg: AutoscaleConfig) -> str:
    """Why the pool is short; empty where it is not. One of which nothing serves is being started already."""
    if not pool.serving:
        return ""
    if pool.waiting > cfg.waiting * len(pool.serving):
        return f"{pool.waiting} requests wait for it at the routers"
    if pool.attainment is not None and pool.attainment < cfg.attainment:
        return f"{pool.attainment:.0%} of its requests meet their SLO"
    if pool.queued_steps() > cfg.busy_steps:
        return f"{pool.queued_steps():.1f} steps of prompts wait"
    if pool.freeness() < cfg.low_steps:
        return f"it is free for {pool.freeness():.0f} steps"
    return ""


def _idle(pool: _Pool, cfg: AutoscaleConfig, but: int = 0) -> str:
    """Why the pool idles, or would without `but` instances; empty where it does not."""
    if not pool.serving or _short(pool, cfg):
        return ""
    if pool.waiting or pool.freeness(but) < cfg.high_steps or pool.queued_steps(but) > cfg.idle_steps:
        return ""
    return f"it is free for {pool.freeness():.0f} steps"


def _throughout(
    history: Sequence[Sample],
    name: str,
    now: float,
    for_s: float,
    cfg: AutoscaleConfig,
    state: Callable[[_Pool, AutoscaleConfig], str],
) -> str:
    """Why the pool is in the state, if it was for so long; empty where it was not, or history does not tell."""
    began = next((place for place in range(len(history), 0, -1) if history[place - 1].at <= now - for_s), 0)
    if not began:
        return ""
    why = [state(_Pool.of(sample, name), cfg) for sample in history[began - 1 :]]
    return why[-1] if all(why) else ""


def _spares(
    sample: Sample, short: str, cfg: AutoscaleConfig, rested: Callable[[str], bool]
) -> list[InstanceView]:
    """The instance that each other pool can do without which idles now."""
    others = [name for name in cfg.limits if name != short and rested(name)]
    spares = [_spare(_Pool.of(sample, name), name, cfg) for name in others]
    return [view for view in spares if view is not None]


def _superfluous(pool: _Pool, name: str, cfg: AutoscaleConfig) -> InstanceView | None:
    """The instance of an idle pool that does not serve yet, and need not: one without room before all others."""
    if len(pool.serving) + len(pool.coming) <= cfg.limits[name].least:
        return None
    return min(pool.coming, key=lambda view: (view.placed, view.name), default=None)


def _spare(pool: _Pool, name: str, cfg: AutoscaleConfig) -> InstanceView | None:
    """The instance that the pool can do without, the freest; None where the others would not be idle."""
    if len(pool.serving) <= cfg.limits[name].least or not _idle(pool, cfg, but=1):
        return None
    return max(pool.serving, key=_freest_first)


def _freest_first(view: InstanceView) -> tuple[int, float, str]:
    return -view.load.running - view.load.waiting, freeness(view), view.name
