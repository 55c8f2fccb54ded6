"""Which instances there are, which life of each counts, and how it does. Values: a change returns a new registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from ..handover.values import Incarnation
from ..policy.state import LoadView
from .config import DECODE, MIXED, PREFILL, ClusterConfig


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Spec:
    """What an instance is meant to be, in every life. `pool` is a label; the role is the two numbers."""

    name: str
    pool: str
    prefill_tokens: int
    decode_slots: int


@dataclass(frozen=True, slots=True)
class Running:
    """Where a life of an instance is: its WorkerService, and the process on its node."""

    address: str
    pid: int
    node: str


@dataclass(frozen=True, slots=True)
class Record:
    """One instance, as the controller knows it. Life 0 is before the first."""

    spec: Spec
    life: int = 0
    state: State = State.STARTING
    running: Running | None = None
    restarts: int = 0
    reason: str = ""
    """Why the last life was lost; empty once the next one serves."""

    def __post_init__(self) -> None:
        assert (self.running is not None) == (self.state in (State.SERVING, State.DRAINING))

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(self.spec.name, self.life)

    @property
    def usable(self) -> bool:
        """It may be spoken to, if only to drain."""
        return self.running is not None


@dataclass(frozen=True)
class Registry:
    """Records by name. A transition that names another life than the current one changes nothing."""

    records: Mapping[str, Record] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(specs: Iterable[Spec]) -> Registry:
        return Registry(MappingProxyType({spec.name: Record(spec) for spec in specs}))

    def __getitem__(self, name: str) -> Record:
        return self.records[name]

    def __contains__(self, name: object) -> bool:
        return name in self.records

    def is_current(self, who: Incarnation) -> bool:
        return who.instance in self.records and self.records[who.instance].life == who.life

    def usable(self) -> list[Record]:
        return [record for record in self.records.values() if record.usable]

    def starting(self, name: str, life: int) -> Registry:
        """A new life begins; it must be higher than any before."""
        record = self.records[name]
        assert life > record.life, f"life {life} of {name} does not follow {record.life}"
        restarts = record.restarts + (record.life > 0)
        return self._with(replace(record, life=life, state=State.STARTING, running=None, restarts=restarts))

    def found(self, who: Incarnation, running: Running | None) -> Registry:
        """An earlier controller started this life, and it runs, or is starting still."""
        record = self.records[who.instance]
        if who.life <= record.life:
            return self
        state = State.STARTING if running is None else State.SERVING
        return self._with(replace(record, life=who.life, state=state, running=running, reason=""))

    def serving(self, who: Incarnation, running: Running) -> Registry:
        if not self.is_current(who) or self.records[who.instance].state != State.STARTING:
            return self
        return self._with(
            replace(self.records[who.instance], state=State.SERVING, running=running, reason="")
        )

    def lost(self, who: Incarnation, reason: str) -> Registry:
        if not self.is_current(who) or self.records[who.instance].state == State.LOST:
            return self
        record = self.records[who.instance]
        return self._with(replace(record, state=State.LOST, running=None, reason=reason))

    def _with(self, record: Record) -> Registry:
        return Registry(MappingProxyType({**self.records, record.spec.name: record}))


def specs(config: ClusterConfig) -> list[Spec]:
    """The instances that a configuration asks for: `prefill-0` ..., `decode-0` ..."""
    pools = (
        (PREFILL, config.prefill, 0),
        (DECODE, config.decode, config.decode_slots),
        (MIXED, config.mixed, config.decode_slots),
    )
    return [
        Spec(f"{pool}-{number}", pool, config.prefill_tokens, slots)
        for pool, count, slots in pools
        for number in range(count)
    ]


def next_life(before: int, now_ns: int) -> int:
    """A life above `before`, and above those that an earlier controller gave out and nobody remembers."""
    return max(before + 1, now_ns // 1_000_000)


def freest(records: Iterable[Record], loads: Mapping[str, LoadView], but: str) -> Record | None:
    """Of those that serve and decode, `but` left out: free decode slots first, then the most KV blocks to be had."""
    able = [
        record
        for record in records
        if record.state == State.SERVING and record.spec.decode_slots and record.spec.name != but
    ]

    def room(record: Record) -> tuple[bool, int, str]:
        load = loads.get(record.spec.name, LoadView())
        return load.free_slots <= 0, -(load.free_blocks + load.cached_blocks), record.spec.name

    return min(able, key=room, default=None)
