from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InstanceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTANCE_STATE_UNSPECIFIED: _ClassVar[InstanceState]
    INSTANCE_STATE_STARTING: _ClassVar[InstanceState]
    INSTANCE_STATE_SERVING: _ClassVar[InstanceState]
    INSTANCE_STATE_DRAINING: _ClassVar[InstanceState]
    INSTANCE_STATE_LOST: _ClassVar[InstanceState]
    INSTANCE_STATE_REFUSED: _ClassVar[InstanceState]
    INSTANCE_STATE_PENDING: _ClassVar[InstanceState]

class MoveMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_MODE_UNSPECIFIED: _ClassVar[MoveMode]
    MOVE_MODE_LIVE: _ClassVar[MoveMode]
    MOVE_MODE_BLOCKING: _ClassVar[MoveMode]
    MOVE_MODE_RECOMPUTE: _ClassVar[MoveMode]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_DRAINING: _ClassVar[Phase]
    PHASE_STARTING: _ClassVar[Phase]
    PHASE_SERVING: _ClassVar[Phase]
    PHASE_ENDED: _ClassVar[Phase]
INSTANCE_STATE_UNSPECIFIED: InstanceState
INSTANCE_STATE_STARTING: InstanceState
INSTANCE_STATE_SERVING: InstanceState
INSTANCE_STATE_DRAINING: InstanceState
INSTANCE_STATE_LOST: InstanceState
INSTANCE_STATE_REFUSED: InstanceState
INSTANCE_STATE_PENDING: InstanceState
MOVE_MODE_UNSPECIFIED: MoveMode
MOVE_MODE_LIVE: MoveMode
MOVE_MODE_BLOCKING: MoveMode
MOVE_MODE_RECOMPUTE: MoveMode
PHASE_UNSPECIFIED: Phase
PHASE_DRAINING: Phase
PHASE_STARTING: Phase
PHASE_SERVING: Phase
PHASE_ENDED: Phase

class GetClusterRequest(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: bool
    def __init__(self, sessions: _Optional[bool] = ...) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("cluster", "model", "instances", "routers", "sessions", "changes")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model: str
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    routers: _containers.RepeatedCompositeFieldContainer[Router]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    changes: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, cluster: _Optional[str] = ..., model: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., routers: _Optional[_Iterable[_Union[Router, _Mapping]]] = ..., sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., changes: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("name", "life", "pool", "state", "address", "pid", "role", "blocks", "waiting", "running", "heartbeat_age_s", "restarts", "rss_bytes", "work", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    life: int
    pool: str
    state: InstanceState
    address: str
    pid: int
    role: Role
    blocks: Blocks
    waiting: int
    running: int
    heartbeat_age_s: float
    restarts: int
    rss_bytes: int
    work: Work
    reason: str
    def __init__(self, name: _Optional[str] = ..., life: _Optional[int] = ..., pool: _Optional[str] = ..., state: _Optional[_Union[InstanceState, str]] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., role: _Optional[_Union[Role, _Mapping]] = ..., blocks: _Optional[_Union[Blocks, _Mapping]] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., heartbeat_age_s: _Optional[float] = ..., restarts: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., work: _Optional[_Union[Work, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("steps", "asked_tokens", "hit_tokens", "preemptions", "written_blocks", "sent_blocks", "swapped_blocks")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ASKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SENT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    asked_tokens: int
    hit_tokens: int
    preemptions: int
    written_blocks: int
    sent_blocks: int
    swapped_blocks: int
    def __init__(self, steps: _Optional[int] = ..., asked_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., written_blocks: _Optional[int] = ..., sent_blocks: _Optional[int] = ..., swapped_blocks: _Optional[int] = ...) -> None: ...

class Role(_message.Message):
    __slots__ = ("prefill_tokens", "decode_slots")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    decode_slots: int
    def __init__(self, prefill_tokens: _Optional[int] = ..., decode_slots: _Optional[int] = ...) -> None: ...

class Blocks(_message.Message):
    __slots__ = ("total", "free", "cached", "held", "leased", "quarantined")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    total: int
    free: int
    cached: int
    held: int
    leased: int
    quarantined: int
    def __init__(self, total: _Optional[int] = ..., free: _Optional[int] = ..., cached: _Optional[int] = ..., held: _Optional[int] = ..., leased: _Optional[int] = ..., quarantined: _Optional[int] = ...) -> None: ...

class Router(_message.Message):
    __slots__ = ("name", "address", "pid", "sessions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    pid: int
    sessions: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., sessions: _Optional[int] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("request_id", "choice", "router", "owner", "prompt_tokens", "emitted_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    choice: int
    router: str
    owner: str
    prompt_tokens: int
    emitted_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., choice: _Optional[int] = ..., router: _Optional[str] = ..., owner: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., emitted_tokens: _Optional[int] = ...) -> None: ...

class MigrateRequestRequest(_message.Message):
    __slots__ = ("request_id", "choice", "destination", "mode")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    choice: int
    destination: str
    mode: MoveMode
    def __init__(self, request_id: _Optional[str] = ..., choice: _Optional[int] = ..., destination: _Optional[str] = ..., mode: _Optional[_Union[MoveMode, str]] = ...) -> None: ...

class MigrateRequestResponse(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[Move]
    def __init__(self, moves: _Optional[_Iterable[_Union[Move, _Mapping]]] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("choice", "source", "destination", "done", "reason", "seconds")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    choice: int
    source: str
    destination: str
    done: bool
    reason: str
    seconds: float
    def __init__(self, choice: _Optional[int] = ..., source: _Optional[str] = ..., destination: _Optional[str] = ..., done: _Optional[bool] = ..., reason: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ExplainRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainRequestResponse(_message.Message):
    __slots__ = ("decisions", "silent")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    silent: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., silent: _Optional[_Iterable[str]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("at", "where", "session", "what", "figures")
    AT_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    at: float
    where: str
    session: str
    what: str
    figures: _struct_pb2.Struct
    def __init__(self, at: _Optional[float] = ..., where: _Optional[str] = ..., session: _Optional[str] = ..., what: _Optional[str] = ..., figures: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class WatchClusterRequest(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: bool
    def __init__(self, sessions: _Optional[bool] = ...) -> None: ...

class WatchClusterResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: GetClusterResponse
    def __init__(self, cluster: _Optional[_Union[GetClusterResponse, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("instance", "phase", "requests", "recovered", "seconds", "done")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    phase: Phase
    requests: int
    recovered: int
    seconds: float
    done: bool
    def __init__(self, instance: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., requests: _Optional[int] = ..., recovered: _Optional[int] = ..., seconds: _Optional[float] = ..., done: _Optional[bool] = ...) -> None: ...

class DrainInstanceRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class DrainInstanceResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class FlipInstanceRequest(_message.Message):
    __slots__ = ("instance", "pool")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    instance: str
    pool: str
    def __init__(self, instance: _Optional[str] = ..., pool: _Optional[str] = ...) -> None: ...

class FlipInstanceResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class RestartInstancesRequest(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, instances: _Optional[_Iterable[str]] = ...) -> None: ...

class RestartInstancesResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class ScalePoolRequest(_message.Message):
    __slots__ = ("pool", "instances")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    pool: str
    instances: int
    def __init__(self, pool: _Optional[str] = ..., instances: _Optional[int] = ...) -> None: ...

class ScalePoolResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...
