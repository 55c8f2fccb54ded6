from penstock.proto import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MoveMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_MODE_UNSPECIFIED: _ClassVar[MoveMode]
    MOVE_MODE_LIVE: _ClassVar[MoveMode]
    MOVE_MODE_BLOCKING: _ClassVar[MoveMode]
    MOVE_MODE_RECOMPUTE: _ClassVar[MoveMode]
    MOVE_MODE_UNBEGUN: _ClassVar[MoveMode]
MOVE_MODE_UNSPECIFIED: MoveMode
MOVE_MODE_LIVE: MoveMode
MOVE_MODE_BLOCKING: MoveMode
MOVE_MODE_RECOMPUTE: MoveMode
MOVE_MODE_UNBEGUN: MoveMode

class AttachRequest(_message.Message):
    __slots__ = ("hello", "sessions", "moved", "lost", "recalled", "attainment", "refused", "waiting")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    sessions: SessionsHeld
    moved: Moved
    lost: LostInstance
    recalled: Recalled
    attainment: Attainment
    refused: RefusedInstances
    waiting: Waiting
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., sessions: _Optional[_Union[SessionsHeld, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ..., lost: _Optional[_Union[LostInstance, _Mapping]] = ..., recalled: _Optional[_Union[Recalled, _Mapping]] = ..., attainment: _Optional[_Union[Attainment, _Mapping]] = ..., refused: _Optional[_Union[RefusedInstances, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("name", "address", "pid")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    pid: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class SessionsHeld(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[HeldSession]
    def __init__(self, sessions: _Optional[_Iterable[_Union[HeldSession, _Mapping]]] = ...) -> None: ...

class HeldSession(_message.Message):
    __slots__ = ("session", "request_id", "choice", "owner", "prompt_tokens", "emitted_tokens", "priority", "remaining_tokens", "movable", "owner_life", "waits")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REMAINING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOVABLE_FIELD_NUMBER: _ClassVar[int]
    OWNER_LIFE_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    session: str
    request_id: str
    choice: int
    owner: str
    prompt_tokens: int
    emitted_tokens: int
    priority: int
    remaining_tokens: int
    movable: bool
    owner_life: int
    waits: bool
    def __init__(self, session: _Optional[str] = ..., request_id: _Optional[str] = ..., choice: _Optional[int] = ..., owner: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., emitted_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., remaining_tokens: _Optional[int] = ..., movable: _Optional[bool] = ..., owner_life: _Optional[int] = ..., waits: _Optional[bool] = ...) -> None: ...

class Attainment(_message.Message):
    __slots__ = ("first_tokens", "first_tokens_in_time", "outputs", "outputs_in_time")
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_IN_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_IN_TIME_FIELD_NUMBER: _ClassVar[int]
    first_tokens: int
    first_tokens_in_time: int
    outputs: int
    outputs_in_time: int
    def __init__(self, first_tokens: _Optional[int] = ..., first_tokens_in_time: _Optional[int] = ..., outputs: _Optional[int] = ..., outputs_in_time: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("prefill", "decode")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    prefill: int
    decode: int
    def __init__(self, prefill: _Optional[int] = ..., decode: _Optional[int] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("ask", "done", "reason", "seconds", "source")
    ASK_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ask: int
    done: bool
    reason: str
    seconds: float
    source: str
    def __init__(self, ask: _Optional[int] = ..., done: _Optional[bool] = ..., reason: _Optional[str] = ..., seconds: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class LostInstance(_message.Message):
    __slots__ = ("name", "life", "condemned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    CONDEMNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    life: int
    condemned: bool
    def __init__(self, name: _Optional[str] = ..., life: _Optional[int] = ..., condemned: _Optional[bool] = ...) -> None: ...

class RefusedInstances(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[RefusedInstance]
    def __init__(self, instances: _Optional[_Iterable[_Union[RefusedInstance, _Mapping]]] = ...) -> None: ...

class RefusedInstance(_message.Message):
    __slots__ = ("name", "life", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    life: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., life: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("instances", "ask_move", "recall")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    ASK_MOVE_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    instances: Instances
    ask_move: AskMove
    recall: Recall
    def __init__(self, instances: _Optional[_Union[Instances, _Mapping]] = ..., ask_move: _Optional[_Union[AskMove, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ...) -> None: ...

class Instances(_message.Message):
    __slots__ = ("cluster", "model", "instances")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model: str
    instances: _containers.RepeatedCompositeFieldContainer[InstanceInfo]
    def __init__(self, cluster: _Optional[str] = ..., model: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[InstanceInfo, _Mapping]]] = ...) -> None: ...

class InstanceInfo(_message.Message):
    __slots__ = ("name", "life", "address", "pool", "prefill_tokens", "decode_slots", "draining")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    life: int
    address: str
    pool: str
    prefill_tokens: int
    decode_slots: int
    draining: bool
    def __init__(self, name: _Optional[str] = ..., life: _Optional[int] = ..., address: _Optional[str] = ..., pool: _Optional[str] = ..., prefill_tokens: _Optional[int] = ..., decode_slots: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...

class AskMove(_message.Message):
    __slots__ = ("ask", "session", "destination", "reason", "mode")
    ASK_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ask: int
    session: str
    destination: str
    reason: str
    mode: MoveMode
    def __init__(self, ask: _Optional[int] = ..., session: _Optional[str] = ..., destination: _Optional[str] = ..., reason: _Optional[str] = ..., mode: _Optional[_Union[MoveMode, str]] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("ask", "request_id")
    ASK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ask: int
    request_id: str
    def __init__(self, ask: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Recalled(_message.Message):
    __slots__ = ("ask", "decisions")
    ASK_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    ask: int
    decisions: _containers.RepeatedCompositeFieldContainer[_control_pb2.Decision]
    def __init__(self, ask: _Optional[int] = ..., decisions: _Optional[_Iterable[_Union[_control_pb2.Decision, _Mapping]]] = ...) -> None: ...
