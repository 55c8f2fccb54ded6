"""Values of the protocol to protobuf frames of `WorkerService`, and back. The one place that knows both.

A frame that breaks the protocol's form is a `ValueError` that names what is wrong; so is a value
that no frame can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any

from ..policy.state import LoadView, Priority
from ..proto import worker_pb2 as pb
from .effects import Condemn
from .frames import (
    Assign,
    Beat,
    Dead,
    Hello,
    InstanceFrame,
    PairOffer,
    PeerFrame,
    PeerHello,
    RouterFrame,
    SeenBatch,
    Step,
    Turn,
    TurnKind,
    Welcome,
)
from .values import (
    FOREVER,
    Address,
    Ask,
    Commit,
    Committed,
    Context,
    End,
    Epoch,
    Grant,
    Incarnation,
    Layout,
    LeaseKey,
    Logprobs,
    Move,
    MoveMode,
    News,
    Refuse,
    Reserve,
    Resume,
    Revoke,
    SamplingParams,
    Seen,
    Stage,
    Start,
    Stop,
    Stopped,
    TokenRecord,
    Unmoved,
    Wait,
    Window,
)

LOAD_FIELDS = tuple(field.name for field in fields(LoadView))
DEFAULTS = {field.name: field.default for field in fields(SamplingParams)}


# ---- the six ways


def to_link_request(frame: RouterFrame) -> pb.LinkRequest:
    """What a router says to an instance."""
    match frame:
        case Hello(router, incarnation):
            return pb.LinkRequest(hello=pb.Hello(router=router, incarnation=_incarnation(incarnation)))
        case Start():
            return pb.LinkRequest(start=_start(frame))
        case Move():
            return pb.LinkRequest(move=_move(frame))
        case Resume(session, asked, epoch):
            resume = pb.ResumeOwner(session=session, asked=_epoch(asked), epoch=_epoch(epoch))
            return pb.LinkRequest(resume=resume)
        case Revoke(session, bound):
            return pb.LinkRequest(revoke=pb.Revoke(session=session, bound=_epoch(bound)))
        case SeenBatch(seen):
            return pb.LinkRequest(seen=pb.SeenBatch(seen=map(_seen, seen)))
        case Beat():
            return pb.LinkRequest(beat=pb.Beat())
        case Dead(incarnations):
            return pb.LinkRequest(dead=pb.Dead(incarnations=map(_incarnation, incarnations)))
        case Assign():
            return pb.LinkRequest(assign=pb.Assign(**asdict(frame)))
    raise AssertionError(f"a router does not send {frame!r}")


def from_link_request(request: pb.LinkRequest) -> RouterFrame:
    return _read(request, FROM_LINK_REQUEST)


def to_link_response(frame: InstanceFrame) -> pb.LinkResponse:
    """What an instance says to a router."""
    match frame:
        case Welcome():
            return pb.LinkResponse(welcome=_welcome(frame))
        case Step(news, load):
            return pb.LinkResponse(step=pb.Step(sessions=map(_news, news), load=_load(load)))
        case Unmoved(session, epoch, next_epoch, reason):
            unmoved = pb.Unmoved(
                session=session, epoch=_epoch(epoch), next_epoch=_epoch(next_epoch), reason=reason
            )
            return pb.LinkResponse(unmoved=unmoved)
        case Ask(session, epoch):
            return pb.LinkResponse(ask=pb.Ask(session=session, epoch=_epoch(epoch)))
        case Condemn(writer):
            return pb.LinkResponse(condemn=pb.Condemn(writer=_incarnation(writer)))
    raise AssertionError(f"an instance does not send {frame!r}")


def from_link_response(response: pb.LinkResponse) -> InstanceFrame:
    return _read(response, FROM_LINK_RESPONSE)


def to_peer_request(frame: PeerFrame) -> pb.PeerRequest:
    """What an instance says to another."""
    match frame:
        case PeerHello(sender, to):
            return pb.PeerRequest(hello=_peer_hello(sender, to))
        case Reserve():
            return pb.PeerRequest(reserve=_reserve(frame))
        case Grant():
            return pb.PeerRequest(grant=_grant(frame))
        case Wait():
            return pb.PeerRequest(wait=pb.Wait(**_parties(frame)))
        case Refuse():
            return pb.PeerRequest(refuse=pb.Refuse(**_parties(frame), reason=frame.reason))
        case Stage():
            return pb.PeerRequest(stage=_stage(frame))
        case Committed():
            return pb.PeerRequest(committed=pb.Committed(**_parties(frame)))
        case Stop():
            return pb.PeerRequest(stop=pb.Stop(**_parties(frame)))
        case Stopped():
            return pb.PeerRequest(stopped=pb.Stopped(**_parties(frame)))
        case PairOffer():
            return pb.PeerRequest(pair_offer=pb.PairOffer(**asdict(frame)))
        case Turn(pair, sequence, kind):
            turn = pb.Turn(pair=pair, sequence=sequence, kind=_enum(kind))
            return pb.PeerRequest(turn=turn)
    raise AssertionError(f"an instance does not send {frame!r} to a peer")


def from_peer_request(request: pb.PeerRequest) -> PeerFrame:
    return _read(request, FROM_PEER_REQUEST)


def _read(frame: Any, readers: dict[str, Callable[[Any], Any]]) -> Any:
    kind = frame.WhichOneof("message")
    if kind is None:
        raise ValueError(f"A {type(frame).__name__} without a message, or with one of a later version.")
    return readers[kind](getattr(frame, kind))


# ---- values to protobuf


def _enum(value: int) -> Any:
    """A plain integer, which the generated stubs do not admit."""
    return int(value)


def _epoch(epoch: Epoch) -> pb.Epoch:
    return pb.Epoch(attempt=epoch.attempt, n=epoch.n)


def _incarnation(incarnation: Incarnation) -> pb.Incarnation:
    return pb.Incarnation(instance=incarnation.instance, life=incarnation.life)


def _address(address: Address) -> pb.PeerAddress:
    return pb.PeerAddress(incarnation=_incarnation(address.incarnation), address=address.at)


def _context(context: Context) -> pb.Context:
    return pb.Context(
        prompt=context.prompt,
        emitted=context.emitted,
        params=_params(context.params),
        salt=context.salt,
        application=context.application,
        cache_ttl_s=context.cache_ttl_s,
        priority=context.priority,
    )


def _params(params: SamplingParams) -> pb.SamplingParams:
    """What is at its default is left out."""
    told: dict[str, Any] = {
        name: value for name, default in DEFAULTS.items() if (value := getattr(params, name)) != default
    }
    told["logit_bias"] = dict(params.logit_bias)
    return pb.SamplingParams(**told)


def _records(records: Iterable[TokenRecord]) -> list[pb.TokenRecord]:
    return [_record(record) for record in records]


def _record(record: TokenRecord) -> pb.TokenRecord:
    made = pb.TokenRecord(id=record.id, end=_enum(record.end or 0))
    if record.logprobs is not None:
        made.logprobs.CopyFrom(_logprobs(record.logprobs))
    if record.prompt:
        made.prompt.extend(map(_logprobs, record.prompt))
    return made


def _logprobs(logprobs: Logprobs) -> pb.Logprobs:
    ids, top = zip(*logprobs.top, strict=True) if logprobs.top else ((), ())
    return pb.Logprobs(own=logprobs.own, top_ids=ids, top=top)


def _start(start: Start) -> pb.Start:
    frame = pb.Start(session=start.session, epoch=_epoch(start.epoch), context=_context(start.context))
    if start.destination is not None:
        assert start.next_epoch is not None
        frame.destination.CopyFrom(_address(start.destination))
        frame.next_epoch.CopyFrom(_epoch(start.next_epoch))
    return frame


def _move(move: Move) -> pb.Move:
    return pb.Move(
        session=move.session,
        epoch=_epoch(move.epoch),
        next_epoch=_epoch(move.next_epoch),
        destination=_address(move.destination),
        mode=_enum(move.mode),
    )


def _seen(seen: Seen) -> pb.Seen:
    return pb.Seen(session=seen.session, attempt=seen.attempt, next_index=seen.next_index)


def _welcome(welcome: Welcome) -> pb.Welcome:
    return pb.Welcome(
        incarnation=_incarnation(welcome.incarnation),
        fingerprint=welcome.fingerprint,
        context_tokens=welcome.context_tokens,
        vocabulary=welcome.vocabulary,
        pid=welcome.pid,
    )


def _news(news: News) -> pb.SessionNews:
    return pb.SessionNews(
        session=news.session,
        epoch=_epoch(news.epoch),
        first_index=news.first_index,
        records=_records(news.records),
        waits=news.waits,
        refused=news.refused,
    )


def _load(load: LoadView | None) -> pb.LoadView | None:
    return None if load is None else pb.LoadView(**{name: getattr(load, name) for name in LOAD_FIELDS})


def _peer_hello(sender: Address, to: Incarnation) -> pb.PeerHello:
    return pb.PeerHello(**{"from": _address(sender)}, to=_incarnation(to))  # `from` is a keyword


def _parties(message: Any) -> dict[str, Any]:
    """What every message about a lease names."""
    return {
        "lease": pb.LeaseKey(session=message.lease.session, epoch=_epoch(message.lease.epoch)),
        "source": _incarnation(message.source),
        "destination": _incarnation(message.destination),
    }


def _reserve(reserve: Reserve) -> pb.Reserve:
    return pb.Reserve(
        **_parties(reserve),
        fingerprint=reserve.fingerprint,
        layout=pb.Layout(**asdict(reserve.layout)),
        blocks=reserve.blocks,
        context=_context(reserve.context),
        router=reserve.router,
        one_sided=reserve.one_sided,
    )


def _grant(grant: Grant) -> pb.Grant:
    window = None if grant.window is None else pb.Window(**asdict(grant.window))
    return pb.Grant(
        **_parties(grant), lease_s=grant.lease_s, have=grant.have, block_ids=grant.block_ids, window=window
    )


def _stage(stage: Stage) -> pb.Stage:
    return pb.Stage(
        **_parties(stage),
        first=stage.first,
        count=stage.count,
        size_bytes=stage.size_bytes,
        commit=None if stage.commit is None else _commit(stage.commit),
        pair=stage.pair,
        sequence=stage.sequence,
    )


def _commit(commit: Commit) -> pb.Commit:
    return pb.Commit(
        first_index=commit.first_index, records=_records(commit.records), computed=commit.computed
    )


# ---- protobuf to values


def _field(frame: Any, name: str) -> Any:
    """A submessage that must be there."""
    if not frame.HasField(name):
        raise ValueError(f"{type(frame).__name__} lacks `{name}`.")
    return getattr(frame, name)


def _text(frame: Any, name: str) -> str:
    """A string that must not be empty."""
    if not getattr(frame, name):
        raise ValueError(f"{type(frame).__name__} lacks `{name}`.")
    return getattr(frame, name)


def _one_of(enum: Callable[[int], Any], value: int, what: str) -> Any:
    try:
        return enum(value)
    except ValueError:
        raise ValueError(f"{what} {value} is unknown.") from None


def _read_epoch(frame: Any, name: str = "epoch") -> Epoch:
    epoch = _field(frame, name)
    if epoch.n > FOREVER:
        raise ValueError(f"{type(frame).__name__}.{name} has n {epoch.n}, above {FOREVER}.")
    return Epoch(epoch.attempt, epoch.n)


def _read_incarnation(frame: Any, name: str = "incarnation") -> Incarnation:
    incarnation = _field(frame, name)
    return Incarnation(_text(incarnation, "instance"), incarnation.life)


def _read_address(frame: Any, name: str = "destination") -> Address:
    address = _field(frame, name)
    return Address(_read_incarnation(address), _text(address, "address"))


def _read_context(frame: Any) -> Context:
    context = _field(frame, "context")
    if not (math.isfinite(context.cache_ttl_s) and context.cache_ttl_s >= 0):
        raise ValueError(f"A cache_ttl of {context.cache_ttl_s} s.")
    return Context(
        tuple(context.prompt),
        tuple(context.emitted),
        _read_params(_field(context, "params")),
        context.salt,
        context.application,
        context.cache_ttl_s,
        context.priority or Priority.NORMAL,
    )


def _read_params(frame: pb.SamplingParams) -> SamplingParams:
    told: dict[str, Any] = {field.name: value for field, value in frame.ListFields()}
    told["logit_bias"] = tuple(sorted(frame.logit_bias.items()))
    told["stop_token_ids"] = tuple(frame.stop_token_ids)
    numbers = [(name, value) for name, value in told.items() if isinstance(value, float)]
    for name, value in (*numbers, *told["logit_bias"]):
        if not math.isfinite(value):
            raise ValueError(f"A sampling parameter is no number: {name} is {value}.")
    params = SamplingParams(**told)
    if params.temperature < 0:
        raise ValueError(f"A temperature of {params.temperature}.")
    return params


def _read_records(frame: Any) -> tuple[TokenRecord, ...]:
    return tuple(
        TokenRecord(
            record.id,
            _one_of(End, record.end, "End") if record.end else None,
            _read_logprobs(record.logprobs) if record.HasField("logprobs") else None,
            tuple(map(_read_logprobs, record.prompt)),
        )
        for record in frame.records
    )


def _read_logprobs(frame: pb.Logprobs) -> Logprobs:
    if len(frame.top_ids) != len(frame.top):
        raise ValueError(f"{len(frame.top_ids)} tokens with {len(frame.top)} log-probabilities.")
    return Logprobs(frame.own, tuple(zip(frame.top_ids, frame.top, strict=True)))


def _read_start(frame: pb.Start) -> Start:
    handed_over = frame.HasField("destination") or frame.HasField("next_epoch")
    return Start(
        _text(frame, "session"),
        _read_epoch(frame),
        _read_context(frame),
        _read_address(frame) if handed_over else None,
        _read_epoch(frame, "next_epoch") if handed_over else None,
    )


def _read_move(frame: pb.Move) -> Move:
    return Move(
        _text(frame, "session"),
        _read_epoch(frame),
        _read_epoch(frame, "next_epoch"),
        _read_address(frame),
        _one_of(MoveMode, frame.mode, "MoveMode"),
    )


def _read_resume(frame: pb.ResumeOwner) -> Resume:
    return Resume(_text(frame, "session"), _read_epoch(frame, "asked"), _read_epoch(frame))


def _read_revoke(frame: pb.Revoke) -> Revoke:
    return Revoke(_text(frame, "session"), _read_epoch(frame, "bound"))


def _read_seen(frame: pb.SeenBatch) -> SeenBatch:
    return SeenBatch(
        tuple(Seen(_text(seen, "session"), seen.attempt, seen.next_index) for seen in frame.seen)
    )


def _read_welcome(frame: pb.Welcome) -> Welcome:
    return Welcome(
        _read_incarnation(frame), frame.fingerprint, frame.context_tokens, frame.vocabulary, frame.pid
    )


def _read_step(frame: pb.Step) -> Step:
    load = None
    if frame.HasField("load"):
        load = LoadView(**{name: getattr(frame.load, name) for name in LOAD_FIELDS})
    return Step(tuple(map(_read_news, frame.sessions)), load)


def _read_news(frame: pb.SessionNews) -> News:
    records = _read_records(frame)
    return News(
        _text(frame, "session"), _read_epoch(frame), frame.first_index, records, frame.waits, frame.refused
    )


def _read_unmoved(frame: pb.Unmoved) -> Unmoved:
    return Unmoved(
        _text(frame, "session"), _read_epoch(frame), _read_epoch(frame, "next_epoch"), frame.reason
    )


def _read_parties(frame: Any) -> tuple[LeaseKey, Incarnation, Incarnation]:
    lease = _field(frame, "lease")
    key = LeaseKey(_text(lease, "session"), _read_epoch(lease))
    return key, _read_incarnation(frame, "source"), _read_incarnation(frame, "destination")


def _read_reserve(frame: pb.Reserve) -> Reserve:
    layout = _field(frame, "layout")
    return Reserve(
        *_read_parties(frame),
        frame.fingerprint,
        Layout(layout.layers, layout.kv_heads, layout.head_dim, layout.dtype, layout.block_size),
        frame.blocks,
        _read_context(frame),
        _text(frame, "router"),
        frame.one_sided,
    )


def _read_grant(frame: pb.Grant) -> Grant:
    window = None
    if frame.HasField("window"):
        at = frame.window
        window = Window(at.host, at.pid, at.fd, at.size_bytes, at.blocks, at.name, at.ranks)
    if not frame.lease_s > 0:
        raise ValueError(f"A lease of {frame.lease_s} s.")
    return Grant(*_read_parties(frame), frame.lease_s, frame.have, tuple(frame.block_ids), window)


def _read_stage(frame: pb.Stage) -> Stage:
    commit = None
    if frame.HasField("commit"):
        commit = Commit(frame.commit.first_index, _read_records(frame.commit), frame.commit.computed)
    return Stage(
        *_read_parties(frame),
        frame.first,
        frame.count,
        frame.size_bytes,
        commit,
        frame.pair,
        frame.sequence,
    )


def _read_pair_offer(frame: pb.PairOffer) -> PairOffer:
    if not 0 < frame.port < 65536:
        raise ValueError(f"A port of {frame.port}.")
    return PairOffer(_text(frame, "pair"), _text(frame, "host"), frame.port, _text(frame, "backend"))


FROM_LINK_REQUEST: dict[str, Callable[[Any], RouterFrame]] = {
    "hello": lambda frame: Hello(_text(frame, "router"), _read_incarnation(frame)),
    "start": _read_start,
    "move": _read_move,
    "resume": _read_resume,
    "revoke": _read_revoke,
    "seen": _read_seen,
    "beat": lambda _: Beat(),
    "dead": lambda frame: Dead(tuple(Incarnation(dead.instance, dead.life) for dead in frame.incarnations)),
    "assign": lambda frame: Assign(frame.prefill_tokens, frame.decode_slots, frame.drain),
}
FROM_LINK_RESPONSE: dict[str, Callable[[Any], InstanceFrame]] = {
    "welcome": _read_welcome,
    "step": _read_step,
    "unmoved": _read_unmoved,
    "ask": lambda frame: Ask(_text(frame, "session"), _read_epoch(frame)),
    "condemn": lambda frame: Condemn(_read_incarnation(frame, "writer")),
}
FROM_PEER_REQUEST: dict[str, Callable[[Any], PeerFrame]] = {
    "hello": lambda frame: PeerHello(_read_address(frame, "from"), _read_incarnation(frame, "to")),
    "reserve": _read_reserve,
    "grant": _read_grant,
    "wait": lambda frame: Wait(*_read_parties(frame)),
    "refuse": lambda frame: Refuse(*_read_parties(frame), frame.reason),
    "stage": _read_stage,
    "committed": lambda frame: Committed(*_read_parties(frame)),
    "stop": lambda frame: Stop(*_read_parties(frame)),
    "stopped": lambda frame: Stopped(*_read_parties(frame)),
    "pair_offer": _read_pair_offer,
    "turn": lambda frame: Turn(_text(frame, "pair"), frame.sequence, _one_of(TurnKind, frame.kind, "Turn")),
}
