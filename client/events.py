"""What a caller hears of a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..proto import inference_pb2 as pb

REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Started:
    """Once, first. The same prompt and parameters with this `seed` give the same tokens again."""

    request_id: str
    model: str
    seed: int
    attempt: int
    prompt_tokens: int
    max_tokens: int
    """Most tokens of output: as many as were asked for, or what the context leaves where that is less."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities at one place."""

    logprob: float
    """Of the token that is there."""
    top: tuple[tuple[int, float], ...]
    """Pairs (token, its log-probability) of the likeliest, in falling order."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is told of the prompt."""

    token_ids: tuple[int, ...]
    """With `echo`."""
    text: str
    logprobs: tuple[Logprobs, ...]
    """Of the second token on, with `prompt_logprobs`."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Further tokens of one choice, from index `first_index` of its output on, and the text that they complete."""

    choice: int
    first_index: int
    token_ids: tuple[int, ...]
    text: str
    instance: str
    """The instance that made them."""
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, where `logprobs` was asked for."""
    prompt: Prompt | None = None
    """On the first delta of choice 0, where `echo` or `prompt_logprobs` was asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """`handovers` count prefill to decode and moves, `recoveries` re-prefills."""

    prompt_tokens: int
    completion_tokens: int
    handovers: int
    recoveries: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Once a choice, last. `reason` is `stop` (an end token or a stop string), `length` or `cancelled`."""

    choice: int
    reason: str
    usage: Usage


Event = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that one instance made."""

    instance: str
    first_index: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: one choice of a request."""

    request_id: str
    model: str
    seed: int
    token_ids: tuple[int, ...]
    text: str
    reason: str
    usage: Usage
    segments: tuple[Segment, ...]
    choice: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. `context_tokens` bounds prompt and output together."""

    name: str
    context_tokens: int
    vocabulary: int


def from_response(response: pb.GenerateResponse) -> Event:
    """The event in a response. `ValueError` for one of a later version."""
    match response.WhichOneof("event"):
        case "started":
            said = response.started
            return Started(
                said.request_id, said.model, said.seed, said.attempt, said.prompt_tokens, said.max_tokens
            )
        case "delta":
            said = response.delta
            return Delta(
                said.choice,
                said.first_index,
                tuple(said.token_ids),
                said.text,
                said.instance,
                tuple(map(_logprobs, said.logprobs)),
                _prompt(said.prompt) if said.HasField("prompt") else None,
            )
        case "finished":
            said = response.finished
            used = said.usage
            usage = Usage(used.prompt_tokens, used.completion_tokens, used.handovers, used.recoveries)
            return Finished(said.choice, REASONS.get(said.reason, "unknown"), usage)
    raise ValueError("the router sent an event that this client does not know")


def _logprobs(said: pb.Logprobs) -> Logprobs:
    return Logprobs(said.logprob, tuple((one.token_id, one.logprob) for one in said.top))


def _prompt(said: pb.Prompt) -> Prompt:
    return Prompt(tuple(said.token_ids), said.text, tuple(map(_logprobs, said.logprobs)))


def completion(events: Iterable[Event]) -> Completion:
    """The whole answer from all events of a request of one choice."""
    whole = completions(events)
    if len(whole) != 1:
        raise ValueError(f"the request has {len(whole)} choices, not one")
    return whole[0]


def completions(events: Iterable[Event]) -> tuple[Completion, ...]:
    """Each choice's whole answer, in order of choices, from all events of a request."""
    started: Started | None = None
    deltas: dict[int, list[Delta]] = {}
    finished: dict[int, Finished] = {}
    for event in events:
        match event:
            case Started():
                started = event
            case Delta():
                deltas.setdefault(event.choice, []).append(event)
            case Finished():
                finished[event.choice] = event
    if started is None or not finished or not finished.keys() >= deltas.keys():
        raise ValueError("the stream ended before the answer did")
    return tuple(_whole(started, deltas.get(choice, []), finished[choice]) for choice in sorted(finished))


def _whole(started: Started, deltas: list[Delta], finished: Finished) -> Completion:
    return Completion(
        request_id=started.request_id,
        model=started.model,
        seed=started.seed,
        token_ids=tuple(id for delta in deltas for id in delta.token_ids),
        text="".join(delta.text for delta in deltas),
        reason=finished.reason,
        usage=finished.usage,
        segments=segments(deltas),
        choice=finished.choice,
        logprobs=tuple(one for delta in deltas for one in delta.logprobs),
        prompt=next((delta.prompt for delta in deltas if delta.prompt is not None), None),
    )


def segments(deltas: Iterable[Delta]) -> tuple[Segment, ...]:
    """Neighbouring deltas of one instance, joined."""
    joined: list[Segment] = []
    for delta in deltas:
        if joined and joined[-1].instance == delta.instance:
            last = joined[-1]
            joined[-1] = Segment(last.instance, last.first_index, last.tokens + len(delta.token_ids))
        else:
            joined.append(Segment(delta.instance, delta.first_index, len(delta.token_ids)))
    return tuple(joined)
