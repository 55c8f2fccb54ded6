from penstock.proto import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class End(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_UNSPECIFIED: _ClassVar[End]
    END_STOP: _ClassVar[End]
    END_LENGTH: _ClassVar[End]
    END_ASTRAY: _ClassVar[End]

class MoveMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_MODE_UNSPECIFIED: _ClassVar[MoveMode]
    MOVE_MODE_LIVE: _ClassVar[MoveMode]
    MOVE_MODE_BLOCKING: _ClassVar[MoveMode]
END_UNSPECIFIED: End
END_STOP: End
END_LENGTH: End
END_ASTRAY: End
MOVE_MODE_UNSPECIFIED: MoveMode
MOVE_MODE_LIVE: MoveMode
MOVE_MODE_BLOCKING: MoveMode

class RecallRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class RecallResponse(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[_control_pb2.Decision]
    def __init__(self, decisions: _Optional[_Iterable[_Union[_control_pb2.Decision, _Mapping]]] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("attempt", "n")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    n: int
    def __init__(self, attempt: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class Incarnation(_message.Message):
    __slots__ = ("instance", "life")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    life: int
    def __init__(self, instance: _Optional[str] = ..., life: _Optional[int] = ...) -> None: ...

class PeerAddress(_message.Message):
    __slots__ = ("incarnation", "address")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    incarnation: Incarnation
    address: str
    def __init__(self, incarnation: _Optional[_Union[Incarnation, _Mapping]] = ..., address: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "seed", "choice", "max_tokens", "ignore_eos", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_tokens", "stop_token_ids", "logprobs", "prompt_logprobs", "grammar")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    seed: int
    choice: int
    max_tokens: int
    ignore_eos: bool
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    prompt_logprobs: int
    grammar: str
    def __init__(self, temperature: _Optional[float] = ..., seed: _Optional[int] = ..., choice: _Optional[int] = ..., max_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., grammar: _Optional[str] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("prompt", "emitted", "params", "salt", "application", "cache_ttl_s", "priority")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    prompt: _containers.RepeatedScalarFieldContainer[int]
    emitted: _containers.RepeatedScalarFieldContainer[int]
    params: SamplingParams
    salt: str
    application: str
    cache_ttl_s: float
    priority: int
    def __init__(self, prompt: _Optional[_Iterable[int]] = ..., emitted: _Optional[_Iterable[int]] = ..., params: _Optional[_Union[SamplingParams, _Mapping]] = ..., salt: _Optional[str] = ..., application: _Optional[str] = ..., cache_ttl_s: _Optional[float] = ..., priority: _Optional[int] = ...) -> None: ...

class TokenRecord(_message.Message):
    __slots__ = ("id", "end", "logprobs", "prompt")
    ID_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    id: int
    end: End
    logprobs: Logprobs
    prompt: _containers.RepeatedCompositeFieldContainer[Logprobs]
    def __init__(self, id: _Optional[int] = ..., end: _Optional[_Union[End, str]] = ..., logprobs: _Optional[_Union[Logprobs, _Mapping]] = ..., prompt: _Optional[_Iterable[_Union[Logprobs, _Mapping]]] = ...) -> None: ...

class Logprobs(_message.Message):
    __slots__ = ("own", "top_ids", "top")
    OWN_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    own: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, own: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top: _Optional[_Iterable[float]] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("hello", "start", "move", "resume", "revoke", "seen", "beat", "dead", "assign")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    start: Start
    move: Move
    resume: ResumeOwner
    revoke: Revoke
    seen: SeenBatch
    beat: Beat
    dead: Dead
    assign: Assign
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., resume: _Optional[_Union[ResumeOwner, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., seen: _Optional[_Union[SeenBatch, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., dead: _Optional[_Union[Dead, _Mapping]] = ..., assign: _Optional[_Union[Assign, _Mapping]] = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("prefill_tokens", "decode_slots", "drain")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    decode_slots: int
    drain: bool
    def __init__(self, prefill_tokens: _Optional[int] = ..., decode_slots: _Optional[int] = ..., drain: _Optional[bool] = ...) -> None: ...

class Dead(_message.Message):
    __slots__ = ("incarnations",)
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    incarnations: _containers.RepeatedCompositeFieldContainer[Incarnation]
    def __init__(self, incarnations: _Optional[_Iterable[_Union[Incarnation, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("router", "incarnation")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    router: str
    incarnation: Incarnation
    def __init__(self, router: _Optional[str] = ..., incarnation: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Start(_message.Message):
    __slots__ = ("session", "epoch", "context", "destination", "next_epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    context: Context
    destination: PeerAddress
    next_epoch: Epoch
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., destination: _Optional[_Union[PeerAddress, _Mapping]] = ..., next_epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("session", "epoch", "next_epoch", "destination", "mode")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    next_epoch: Epoch
    destination: PeerAddress
    mode: MoveMode
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., next_epoch: _Optional[_Union[Epoch, _Mapping]] = ..., destination: _Optional[_Union[PeerAddress, _Mapping]] = ..., mode: _Optional[_Union[MoveMode, str]] = ...) -> None: ...

class ResumeOwner(_message.Message):
    __slots__ = ("session", "asked", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    asked: Epoch
    epoch: Epoch
    def __init__(self, session: _Optional[str] = ..., asked: _Optional[_Union[Epoch, _Mapping]] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("session", "bound")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    session: str
    bound: Epoch
    def __init__(self, session: _Optional[str] = ..., bound: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class SeenBatch(_message.Message):
    __slots__ = ("seen",)
    SEEN_FIELD_NUMBER: _ClassVar[int]
    seen: _containers.RepeatedCompositeFieldContainer[Seen]
    def __init__(self, seen: _Optional[_Iterable[_Union[Seen, _Mapping]]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("session", "attempt", "next_index")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    session: str
    attempt: int
    next_index: int
    def __init__(self, session: _Optional[str] = ..., attempt: _Optional[int] = ..., next_index: _Optional[int] = ...) -> None: ...

class LinkResponse(_message.Message):
    __slots__ = ("welcome", "step", "unmoved", "ask", "condemn")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    UNMOVED_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    CONDEMN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    step: Step
    unmoved: Unmoved
    ask: Ask
    condemn: Condemn
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., unmoved: _Optional[_Union[Unmoved, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., condemn: _Optional[_Union[Condemn, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("incarnation", "fingerprint", "context_tokens", "vocabulary", "pid")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    incarnation: Incarnation
    fingerprint: str
    context_tokens: int
    vocabulary: int
    pid: int
    def __init__(self, incarnation: _Optional[_Union[Incarnation, _Mapping]] = ..., fingerprint: _Optional[str] = ..., context_tokens: _Optional[int] = ..., vocabulary: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("sessions", "load")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionNews]
    load: LoadView
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionNews, _Mapping]]] = ..., load: _Optional[_Union[LoadView, _Mapping]] = ...) -> None: ...

class SessionNews(_message.Message):
    __slots__ = ("session", "epoch", "first_index", "records", "waits", "refused")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    first_index: int
    records: _containers.RepeatedCompositeFieldContainer[TokenRecord]
    waits: bool
    refused: str
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., first_index: _Optional[int] = ..., records: _Optional[_Iterable[_Union[TokenRecord, _Mapping]]] = ..., waits: _Optional[bool] = ..., refused: _Optional[str] = ...) -> None: ...

class LoadView(_message.Message):
    __slots__ = ("total_blocks", "free_blocks", "cached_blocks", "held_blocks", "leased_blocks", "quarantined_blocks", "waiting", "running", "queued_tokens", "prefill_tokens", "decode_slots", "block_size", "steps", "step_s", "idle_s", "asked_tokens", "hit_tokens", "preemptions", "written_blocks", "sent_blocks", "peak_blocks", "head_blocks", "high_priority", "decoding", "decode_tokens", "swapped_blocks", "most_blocks", "draining", "sessions")
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    ASKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SENT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HEAD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HIGH_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    held_blocks: int
    leased_blocks: int
    quarantined_blocks: int
    waiting: int
    running: int
    queued_tokens: int
    prefill_tokens: int
    decode_slots: int
    block_size: int
    steps: int
    step_s: float
    idle_s: float
    asked_tokens: int
    hit_tokens: int
    preemptions: int
    written_blocks: int
    sent_blocks: int
    peak_blocks: int
    head_blocks: int
    high_priority: int
    decoding: int
    decode_tokens: int
    swapped_blocks: int
    most_blocks: int
    draining: bool
    sessions: int
    def __init__(self, total_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., held_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., quarantined_blocks: _Optional[int] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., decode_slots: _Optional[int] = ..., block_size: _Optional[int] = ..., steps: _Optional[int] = ..., step_s: _Optional[float] = ..., idle_s: _Optional[float] = ..., asked_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., written_blocks: _Optional[int] = ..., sent_blocks: _Optional[int] = ..., peak_blocks: _Optional[int] = ..., head_blocks: _Optional[int] = ..., high_priority: _Optional[int] = ..., decoding: _Optional[int] = ..., decode_tokens: _Optional[int] = ..., swapped_blocks: _Optional[int] = ..., most_blocks: _Optional[int] = ..., draining: _Optional[bool] = ..., sessions: _Optional[int] = ...) -> None: ...

class Unmoved(_message.Message):
    __slots__ = ("session", "epoch", "next_epoch", "reason")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    next_epoch: Epoch
    reason: str
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., next_epoch: _Optional[_Union[Epoch, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class Condemn(_message.Message):
    __slots__ = ("writer",)
    WRITER_FIELD_NUMBER: _ClassVar[int]
    writer: Incarnation
    def __init__(self, writer: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class PeerRequest(_message.Message):
    __slots__ = ("hello", "reserve", "grant", "wait", "refuse", "stage", "committed", "stop", "stopped", "pair_offer", "turn")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    PAIR_OFFER_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    reserve: Reserve
    grant: Grant
    wait: Wait
    refuse: Refuse
    stage: Stage
    committed: Committed
    stop: Stop
    stopped: Stopped
    pair_offer: PairOffer
    turn: Turn
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ..., pair_offer: _Optional[_Union[PairOffer, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class PeerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("to",)
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    to: Incarnation
    def __init__(self, to: _Optional[_Union[Incarnation, _Mapping]] = ..., **kwargs) -> None: ...

class LeaseKey(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: Epoch
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("layers", "kv_heads", "head_dim", "dtype", "block_size")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int
    def __init__(self, layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype: _Optional[str] = ..., block_size: _Optional[int] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("lease", "source", "destination", "fingerprint", "layout", "blocks", "context", "router", "one_sided")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    ONE_SIDED_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    fingerprint: str
    layout: Layout
    blocks: int
    context: Context
    router: str
    one_sided: bool
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ..., fingerprint: _Optional[str] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., blocks: _Optional[int] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., router: _Optional[str] = ..., one_sided: _Optional[bool] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("lease", "source", "destination", "lease_s", "have", "block_ids", "window")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    lease_s: float
    have: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    window: Window
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ..., lease_s: _Optional[float] = ..., have: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("host", "pid", "fd", "size_bytes", "blocks", "name", "ranks")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    host: str
    pid: int
    fd: int
    size_bytes: int
    blocks: int
    name: str
    ranks: int
    def __init__(self, host: _Optional[str] = ..., pid: _Optional[int] = ..., fd: _Optional[int] = ..., size_bytes: _Optional[int] = ..., blocks: _Optional[int] = ..., name: _Optional[str] = ..., ranks: _Optional[int] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("lease", "source", "destination")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("lease", "source", "destination", "reason")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    reason: str
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("lease", "source", "destination", "first", "count", "size_bytes", "commit", "pair", "sequence")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    first: int
    count: int
    size_bytes: int
    commit: Commit
    pair: str
    sequence: int
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., pair: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("first_index", "records", "computed")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    records: _containers.RepeatedCompositeFieldContainer[TokenRecord]
    computed: int
    def __init__(self, first_index: _Optional[int] = ..., records: _Optional[_Iterable[_Union[TokenRecord, _Mapping]]] = ..., computed: _Optional[int] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("lease", "source", "destination")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("lease", "source", "destination")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ("lease", "source", "destination")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    def __init__(self, lease: _Optional[_Union[LeaseKey, _Mapping]] = ..., source: _Optional[_Union[Incarnation, _Mapping]] = ..., destination: _Optional[_Union[Incarnation, _Mapping]] = ...) -> None: ...

class PairOffer(_message.Message):
    __slots__ = ("pair", "host", "port", "backend")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    pair: str
    host: str
    port: int
    backend: str
    def __init__(self, pair: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., backend: _Optional[str] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("pair", "sequence", "kind")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Turn.Kind]
        KIND_ASK: _ClassVar[Turn.Kind]
        KIND_GRANT: _ClassVar[Turn.Kind]
        KIND_DENY: _ClassVar[Turn.Kind]
        KIND_RELEASE: _ClassVar[Turn.Kind]
    KIND_UNSPECIFIED: Turn.Kind
    KIND_ASK: Turn.Kind
    KIND_GRANT: Turn.Kind
    KIND_DENY: Turn.Kind
    KIND_RELEASE: Turn.Kind
    PAIR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    pair: str
    sequence: int
    kind: Turn.Kind
    def __init__(self, pair: _Optional[str] = ..., sequence: _Optional[int] = ..., kind: _Optional[_Union[Turn.Kind, str]] = ...) -> None: ...
