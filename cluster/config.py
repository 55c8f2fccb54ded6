"""The whole configuration: one YAML file to one frozen tree, made of the parts that each floor declares."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..engine.config import EMBEDDED, EngineConfig
from ..handover.config import HandoverConfig
from ..policy.autoscale import AutoscaleConfig
from ..policy.cost import CostModel
from ..policy.migration import MigrationConfig
from ..router.config import RouterConfig
from . import units

PREFILL = "prefill"
DECODE = "decode"
MIXED = "mixed"
"""Instances meant for both phases alike."""
POOLS = (PREFILL, DECODE, MIXED)
BOUNDS = (
    ("prefill", 0, 4096),
    ("decode", 0, 4096),
    ("mixed", 0, 4096),
    ("routers", 1, 256),
    ("prefill_tokens", 0, 1 << 20),
    ("decode_slots", 1, 1 << 20),
)
"""Least and most of fields of the cluster."""
LONGEST_TEMP_DIR = 28
"""A Unix socket's path has 107 bytes at most, and Ray takes the rest."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How many instances there are, and where they run."""

    name: str = "penstock"
    """Name of the cluster: lower-case letters, digits and hyphens."""

    prefill: int = 1
    """Instances of the prefill pool."""

    routers: int = 1
    """Routers, at `router.port` and the ports after it. The clients of one that is lost go on at the next."""

    decode: int = 2
    """Instances of the decode pool; each can prefill too, so that it recovers lost requests by itself."""

    mixed: int = 0
    """Instances for both phases alike. Where there are some, the other pools may be empty."""

    prefill_tokens: int = 512
    """Prompt tokens that an instance may prefill in one step; 0 takes the saturation length of `profile`."""

    profile: str | None = None
    """What steps cost: a file that `penstock profile` wrote, or the name of a shipped one."""

    itl_target_s: float = 0.0
    """Longest that a step with decodes should take by `profile`; prompts beside them are cut for it. 0 is no limit."""

    decode_slots: int = 64
    """Sequences that an instance of the decode pool may decode at a time."""

    prefill_tensor_parallel: int = 0
    """Processes that share the model in an instance of the prefill pool; 0 takes `engine.tensor_parallel`."""

    decode_tensor_parallel: int = 0
    """The same of the decode pool; instances of both hand over to each other whatever the two are."""

    ray_address: str | None = None
    """Address of a running Ray cluster to join; none starts Ray on this machine."""

    controller_port: int = 0
    """Loopback port of the controller, kept over its restarts; 0 picks a free one."""

    start_s: float = 120.0
    """How long Ray and every instance may take to start, in seconds."""

    tick_s: float = 0.1
    """How often the controller looks at all loads, to move requests and to change the pools, in seconds."""

    migrate: bool = True
    """Whether running requests move by themselves from instances that fill up to those that are free."""

    migration: MigrationConfig = field(default_factory=MigrationConfig)
    """When they do."""

    autoscale: AutoscaleConfig | None = None
    """When pools grow, shrink or give an instance to another by themselves; never where this is not given."""

    move_s: float = 30.0
    """How long a move that an operator asked for may take, in seconds."""

    drain_s: float = 30.0
    """How long an instance that is to end or to change its role may take to be emptied by moving all that it has, in
    seconds; what is left then is prefilled again elsewhere."""

    object_store_bytes: int = 80 << 20
    """Memory of Ray's object store where Ray is started here; no token and no KV travels through it."""

    temp_dir: str = "/tmp"
    """Where the folder of a Ray started here is made. A short path: Ray's sockets lie below it."""

    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    log_json: bool = False
    """Log lines are JSON objects."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"cluster.name must be up to 40 lower-case letters, digits and hyphens, got {self.name!r}"
            )
        for name, least, most in BOUNDS:
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"cluster.{name} must be at least {least}, got {value}")
            if value > most:
                raise ValueError(f"cluster.{name} must be at most {most}, got {value}")
        for pool in (PREFILL, DECODE):
            if not getattr(self, pool) + self.mixed:
                raise ValueError(f"cluster.{pool} must be at least 1, got 0, where cluster.mixed is 0")
        for name in ("prefill_tensor_parallel", "decode_tensor_parallel", "itl_target_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"cluster.{name} must be 0 or above, got {getattr(self, name)}")
        if not 0 <= self.controller_port <= 65535:
            raise ValueError(f"cluster.controller_port must be a port or 0, got {self.controller_port}")
        for name in ("tick_s", "start_s", "move_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cluster.{name} must be above 0, got {getattr(self, name)}")
        if self.object_store_bytes < 76 << 20:
            raise ValueError(
                f"cluster.object_store_bytes: Ray wants at least {76 << 20}, got {self.object_store_bytes}"
            )
        if self.autoscale is not None and (unknown := self.autoscale.limits.keys() - set(POOLS)):
            text = f"there are {', '.join(POOLS)}"
            raise ValueError(f"cluster.autoscale.limits: no pool {', '.join(sorted(unknown))}; {text}")
        if len(self.temp_dir) > LONGEST_TEMP_DIR:
            text = f"at most {LONGEST_TEMP_DIR} characters, since Ray's sockets lie below it"
            raise ValueError(f"cluster.temp_dir must have {text}, got {self.temp_dir!r}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(
                f"cluster.log_level must be debug, info, warning or error, got {self.log_level!r}"
            )

    @property
    def instances(self) -> int:
        """Of all pools together."""
        return self.prefill + self.decode + self.mixed

    def require_no_cost(self) -> None:
        """`ValueError` for what means nothing where nobody knows what steps cost."""
        if self.itl_target_s or not self.prefill_tokens:
            name = "itl_target_s" if self.itl_target_s else "prefill_tokens of 0"
            raise ValueError(f"cluster.{name} needs cluster.profile, which says what steps cost")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a cluster runs under."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """How an instance runs its model."""

    handover: HandoverConfig = field(default_factory=HandoverConfig)
    """Deadlines and sizes of the handover protocol."""

    router: RouterConfig = field(default_factory=RouterConfig)
    """Where clients find the cluster, and what they may ask."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """How many instances there are, and where they run."""

    cost: CostModel | None = None
    """What steps and copies cost, in the place of `cluster.profile`, from which a start fills it in."""

    def __post_init__(self) -> None:
        if self.cost is not None and self.cluster.profile is not None:
            raise ValueError("give cost or cluster.profile, not both")
        if self.cost is None and self.cluster.profile is None:
            self.cluster.require_no_cost()

    def engine_of(self, pool: str) -> EngineConfig:
        """How the instances of `pool` run the model."""
        cluster = self.cluster
        ranks = cluster.prefill_tensor_parallel if pool == PREFILL else cluster.decode_tensor_parallel
        return replace(self.engine, tensor_parallel=ranks) if ranks else self.engine


def default() -> Config:
    """The embedded checkpoint, one prefill and two decode instances, on this machine."""
    return Config()


def load(path: str | Path) -> Config:
    """Read one YAML file; paths in it are relative to its folder.

    `ValueError` names the file, the key and, for a key unknown, the nearest that exists.
    """
    try:
        return _placed(parse(read_yaml(Path(path).read_text(encoding="utf-8"))), Path(path).parent)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{yaml_fault(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _placed(config: Config, folder: Path) -> Config:
    """With the paths of a checkpoint and of a profile as they are from anywhere."""
    model, known = config.engine.model, config.cluster.profile
    if model != EMBEDDED:
        model = str(folder / Path(model).expanduser())
    if known is not None and (folder / known).is_file():  # else the name of a shipped one
        known = str(folder / known)
    return replace(
        config,
        engine=replace(config.engine, model=model),
        cluster=replace(config.cluster, profile=known),
    )


def read_yaml(text: str) -> Any:
    """The tree in a YAML text. `ValueError` for a key that stands twice in a mapping, `YAMLError` for no YAML."""
    return yaml.load(text, _OnceEach)


def yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text and where, to be put behind the name of the file."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}," if mark else ""
    text = getattr(error, "problem", None) or str(error)
    return f"{place} is not YAML: {' '.join(text.split())}"


class _OnceEach(yaml.SafeLoader):
    """YAML's own rule, which the library does not hold: it would keep the last of equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise ValueError(f"key `{key}` stands twice, the second time in line {line}")
        return super().construct_mapping(node, deep)


def parse(tree: object) -> Config:
    """The configuration in a tree of mappings, as YAML gives it; what is not named keeps its default."""
    return build(Config, {} if tree is None else tree)


def build(kind: type[T], tree: object, path: str = "") -> T:
    """An instance of the dataclass `kind` from a mapping of its fields; `path` is where it stands, for messages.

    A field named `..._s`, `..._bytes` or `..._bytes_per_s` may be text with a unit of its own, such as `5.4 ms`.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path or 'the configuration'} must be a mapping of keys to values, got {tree!r}")
    known = {entry.name for entry in fields(kind)}  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise ValueError(_unknown(where, str(key), known))
        values[key] = _convert(hints[key], value, where)
    for entry in fields(kind):  # pyright: ignore[reportArgumentType]
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{path}.{entry.name} is missing" if path else f"{entry.name} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        placed = not path or str(error).startswith(f"{path}.")
        raise ValueError(str(error) if placed else f"{path}.{error}") from error


def _unknown(where: str, key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(sorted(known))}"
    return f"no key `{where}`; {hint}"


def _convert(kind: Any, value: object, where: str) -> Any:
    """`value` as a field of type `kind`: a dataclass, a scalar, an optional one, or a tuple of such."""
    if is_dataclass(kind):
        value = {} if value is None else value  # as YAML reads a section without keys
        return build(kind, value, where)  # pyright: ignore[reportArgumentType]
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _convert(kind, value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_convert(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        return {str(key): _convert(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind in (int, float) and isinstance(value, str) and units.has_unit(where):
        value = units.read(value, where)
        value = int(value) if kind is int and value.is_integer() else value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be a finite number, got {value!r}")
        return float(value)
    kind = get_origin(kind) or kind
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_NAMES.get(kind, kind.__name__)}, got {value!r}")
    return value


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    Mapping: "a mapping of names to values",
    date: "a date such as 2026-11-24",
}


@dataclass(frozen=True, kw_only=True)
class InstanceSettings:
    """What one life of an instance is started with."""

    name: str
    life: int
    prefill_tokens: int
    decode_slots: int
    host: str = "127.0.0.1"
    """The interface that it listens on."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    handover: HandoverConfig = field(default_factory=HandoverConfig)
    cost: CostModel | None = None
    """What its steps and copies cost; None where nobody knows, and then `itl_target_s` is not looked at."""
    itl_target_s: float = 0.0
    drain_s: float = ClusterConfig.drain_s
    """How long it may take to be emptied before it ends on SIGTERM."""
    log_level: str = "info"
    log_json: bool = False
