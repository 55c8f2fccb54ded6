"""A request as the caller puts it, and its attempts: one more whenever the stream of the last was lost."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import grpc

from ..proto import inference_pb2 as pb
from .errors import PenstockError
from .events import Delta, Event, Started

MOST_RETRIES = 10
"""Attempts in a row that bring nothing."""
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0


class Sampling(TypedDict, total=False):
    """Sampling fields; what is left out takes the model's or the protocol's default."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    max_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    seed: int
    n: int
    logprobs: int
    prompt_logprobs: int
    echo: bool


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


def build(
    prompt: str | Sequence[int] | None,
    messages: Sequence[Message] | None,
    request_id: str | None,
    model: str | None,
    sampling: Mapping[str, Any],
) -> pb.GenerateRequest:
    """The request; an id is drawn where none is given. `ValueError` names an argument that no request can hold."""
    request = pb.GenerateRequest(request_id=request_id or secrets.token_hex(8), model=model or "")
    if (prompt is None) == (messages is None):
        raise ValueError("Give `prompt` or `messages`, one of them.")
    if messages is not None:
        _set("messages", lambda: request.chat.messages.extend(pb.Message(**message) for message in messages))
        request.chat.SetInParent()
    elif isinstance(prompt, str):
        _set("prompt", lambda: setattr(request, "text", prompt))
    else:
        _set("prompt", lambda: request.token_ids.ids.extend(prompt))
        request.token_ids.SetInParent()
    for name, value in sampling.items():
        if value is not None:
            if name not in pb.SamplingParams.DESCRIPTOR.fields_by_name:
                raise ValueError(f"There is no sampling field {name!r}.")
            _set(name, lambda name=name, value=value: _set_sampling(request, name, value))
    return request


def _set_sampling(request: pb.GenerateRequest, name: str, value: Any) -> None:
    request.sampling.MergeFrom(pb.SamplingParams(**{name: value}))


def _set(name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except (TypeError, ValueError, UnicodeError) as error:
        raise ValueError(f"{name}: {error}") from None


class Attempts:
    """One request over all its attempts: what to ask next, and whether an error is worth another attempt."""

    def __init__(self, request: pb.GenerateRequest):
        self._request = request
        self._started: Started | None = None
        self._attempt = 0
        self._received: dict[int, list[int]] = {}
        self._failures = 0

    def request(self) -> pb.GenerateRequest:
        """The original request, or the one that resumes it where the client is."""
        if self._started is None:
            return self._request
        asked = pb.GenerateRequest()
        asked.CopyFrom(self._request)
        asked.request_id = self._started.request_id
        asked.resume.attempt = self._attempt
        asked.resume.seed = self._started.seed
        for choice, ids in self._received.items():
            asked.resume.received.add(choice=choice, token_ids=ids)
        return asked

    def take(self, event: Event) -> Event | None:
        """What the caller hears of it: everything, but `started` once."""
        self._failures = 0
        match event:
            case Started() if self._started is not None:
                return None
            case Started():
                self._started, self._attempt = event, event.attempt
            case Delta():
                self._received.setdefault(event.choice, [])[event.first_index :] = event.token_ids
        return event

    def retry_after_s(self, error: PenstockError) -> float:
        """Raises the error, unless a router was lost in mid-stream: then when to ask again, as a further attempt."""
        if self._started is None or error.code is not grpc.StatusCode.UNAVAILABLE:
            raise error
        if self._failures >= MOST_RETRIES:
            raise error
        self._attempt += 1
        self._failures += 1
        return min(FIRST_RETRY_S * 2 ** (self._failures - 1), LAST_RETRY_S)
