"""Which instances there are, which life of each counts, and how it does. Values: a change returns a new registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from ..handover.values import Incarnation
from .config import DECODE, MIXED, PREFILL, ClusterConfig

RESTARTED = "it is restarted"
"""Why a life ends that an operator replaces by its next one."""


END = "end"
"""The fate of an instance that is to have no further life; another fate is the pool that it is to go over to."""


class State(Enum):
    PENDING = "pending"
    """It is to start, and waits for room."""
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
    home: str
    """The pool that it was made for: where Ray places it, and how many ranks it has, whatever its role is by now."""

    @property
    def decodes(self) -> bool:
        return self.decode_slots > 0

    @property
    def prefills(self) -> bool:
        return self.prefill_tokens > 0


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
    """Why the last life was lost, empty once the next one serves; or why there is no room for this one."""
    fate: str = ""
    """What is to become of it as soon as it is empty."""

    def __post_init__(self) -> None:
        assert (self.running is not None) == (self.state in (State.SERVING, State.DRAINING))

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(self.spec.name, self.life)

    @property
    def usable(self) -> bool:
        """It may be spoken to, if only to drain."""
        return self.running is not None

    @property
    def becomes(self) -> str:
        """The pool that it will be in, or its end."""
        return self.fate or self.spec.pool


@dataclass(frozen=True)
class Registry:
    """Records by name. A transition that names another life than the current one changes nothing.

    What is to be known of instances after the controller's own death is `remembered`.
    """

    records: Mapping[str, Record] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(specs: Iterable[Spec]) -> Registry:
        return Registry(MappingProxyType({spec.name: Record(spec) for spec in specs}))

    @staticmethod
    def recalled(text: str) -> Registry:
        """What `remembered` told, before anybody knows what of it runs."""
        records = [
            Record(Spec(**entry["spec"]), entry["life"], restarts=entry["restarts"], fate=entry["fate"])
            for entry in json.loads(text)
        ]
        return Registry(MappingProxyType({record.spec.name: record for record in records}))

    def remembered(self) -> str:
        """What instances there are to be, which lives they have had, and what becomes of them."""
        return json.dumps(
            [
                {
                    "spec": asdict(record.spec),
                    "life": record.life,
                    "restarts": record.restarts,
                    "fate": record.fate,
                }
                for record in self.records.values()
            ]
        )

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
        if who.life < record.life or (who.life == record.life and record.state != State.STARTING):
            return self
        state = State.STARTING if running is None else State.SERVING
        return self._with(replace(record, life=who.life, state=state, running=running, reason=""))

    def waiting(self, who: Incarnation, why: str) -> Registry:
        """There is no room yet for a life that is to start; or there is, where `why` is empty."""
        before, after = State.STARTING, State.PENDING
        if not why:
            before, after = after, before
        if not self.is_current(who) or self.records[who.instance].state != before:
            return self
        return self._with(replace(self.records[who.instance], state=after, reason=why))

    def serving(self, who: Incarnation, running: Running) -> Registry:
        if not self.is_current(who) or self.records[who.instance].state != State.STARTING:
            return self
        return self._with(
            replace(self.records[who.instance], state=State.SERVING, running=running, reason="")
        )

    def draining(self, who: Incarnation, drains: bool) -> Registry:
        """It is being emptied, or serves on."""
        before, after = State.SERVING, State.DRAINING
        if not drains:
            before, after = after, before
        if not self.is_current(who) or self.records[who.instance].state != before:
            return self
        return self._with(replace(self.records[who.instance], state=after))

    def fated(self, name: str, fate: str) -> Registry:
        """That becomes of it as soon as it is empty; nothing, where `fate` is empty."""
        record = self.records[name]
        return self if record.fate == fate else self._with(replace(record, fate=fate))

    def meant(self, spec: Spec) -> Registry:
        """There is to be an instance like that: a new one, or the one of that name."""
        record = self.records.get(spec.name, Record(spec))
        return self._with(replace(record, spec=spec))

    def without(self, name: str) -> Registry:
        """There is to be no such instance."""
        left = {known: record for known, record in self.records.items() if known != name}
        return Registry(MappingProxyType(left))

    def lost(self, who: Incarnation, reason: str) -> Registry:
        if not self.is_current(who) or self.records[who.instance].state == State.LOST:
            return self
        record = self.records[who.instance]
        return self._with(replace(record, state=State.LOST, running=None, reason=reason))

    def _with(self, record: Record) -> Registry:
        return Registry(MappingProxyType({**self.records, record.spec.name: record}))


def specs(config: ClusterConfig) -> list[Spec]:
    """The instances that a configuration asks for: `prefill-0` ..., `decode-0` ..."""
    pools = ((PREFILL, config.prefill), (DECODE, config.decode), (MIXED, config.mixed))
    return [spec(config, f"{pool}-{number}", pool) for pool, count in pools for number in range(count)]


def spec(config: ClusterConfig, name: str, pool: str, home: str = "") -> Spec:
    """An instance in the role that `pool` stands for."""
    slots = 0 if pool == PREFILL else config.decode_slots
    return Spec(name, pool, config.prefill_tokens, slots, home or pool)


def new_name(registry: Registry, pool: str) -> str:
    """The first that is free."""
    return next(
        name for number in range(len(registry.records) + 1) if (name := f"{pool}-{number}") not in registry
    )


def why_busy(registry: Registry, name: str, serves: Callable[[Record], bool]) -> str:
    """Why nobody that `serves` could take what this instance has and do its work; empty where somebody can."""
    others = [record for record in registry.records.values() if record.spec.name != name]
    serving = [record.spec for record in others if serves(record) and not record.fate]
    for does, able in (
        ("decodes", any(one.decodes for one in serving)),
        ("prefills", any(one.prefills for one in serving)),
    ):
        if not able:
            return f"{name} has to stay: no other instance that serves {does}{_remedy(registry, others)}"
    return ""


def _remedy(registry: Registry, others: Collection[Record]) -> str:
    """How to get one that decodes where there is none besides: those that do not serve just now will again."""
    if any(record.spec.decodes for record in others):
        return ""
    size = sum(record.spec.pool == DECODE for record in registry.records.values())
    return f"; `penstock scale {DECODE} {size + 1}` first"


def least_size(registry: Registry, pool: str) -> int:
    """How many instances a pool has to keep: one, unless the others prefill and decode without it."""
    others = {record.becomes for record in registry.records.values()} - {pool}
    return int(any(not others & {needed, MIXED} for needed in (PREFILL, DECODE)))


def why_needed(registry: Registry, name: str, then: str = "") -> str:
    """Why the instance may not go for good, or `then` be in another pool: prefill and decode must each be the task of
    one, if only of a mixed one."""
    pools = {record.becomes for record in registry.records.values() if record.spec.name != name} | {then}
    for pool in (PREFILL, DECODE):
        if not pools & {pool, MIXED}:
            return f"{name} has to stay: it is the last of the {pool} pool"
    return ""


def next_life(before: int, now_ns: int) -> int:
    """A life above `before`, and above those that an earlier controller gave out and nobody remembers."""
    return max(before + 1, now_ns // 1_000_000)
