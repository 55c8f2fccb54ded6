"""A request as the caller puts it, and its attempts: one more whenever the stream of the last was lost."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import grpc

from ..proto import inference_pb2 as pb
from .errors import PenstockError
from .events import Delta, Event, Finished, Started

MOST_RETRIES = 10
"""Attempts in a row that bring nothing."""
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0


PRIORITIES = {"normal": pb.PRIORITY_NORMAL, "high": pb.PRIORITY_HIGH}
KINDS = {
    "prompt": "a str or a sequence of token ids",
    "messages": "a sequence of mappings with `role` and `content`, each a str",
    "logit_bias": "a mapping from token ids to numbers",
    "stop": "a str or a sequence of str",
    "stop_token_ids": "a sequence of token ids",
    "json_schema": "a str or a mapping",
    "choices": "a sequence of str",
    "regex": "a str",
    "grammar": "a str",
}
"""What an argument must be; all others are plain values."""


class Sampling(TypedDict, total=False):
    """Sampling fields; what is left out takes the model's or the protocol's default (see `inference.proto`)."""

    temperature: float
    """0 is greedy. Default 1."""
    top_p: float
    """The fewest most likely tokens that have this share of the probability."""
    top_k: int
    """So many most likely tokens; 0 is all."""
    min_p: float
    """Tokens at least so many times as likely as the likeliest."""
    presence_penalty: float
    """Taken from the logit of each token that the output has."""
    frequency_penalty: float
    """Taken from a token's logit for each time that the output has it."""
    repetition_penalty: float
    """Makes tokens of prompt and output less likely, above 1."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these tokens."""
    min_tokens: int
    """Nothing but `max_tokens` ends the output before it has so many."""
    max_tokens: int
    """Default: as many as the context allows."""
    stop: Sequence[str]
    """The text ends before the first of these."""
    stop_token_ids: Sequence[int]
    """Tokens that end the output, beside the model's own."""
    ignore_eos: bool
    """Go on after the model's end tokens."""
    seed: int
    """Draws the same tokens again."""
    n: int
    """Completions of the one prompt."""
    logprobs: int
    """Each token's log-probability, and so many of the likeliest tokens beside it."""
    prompt_logprobs: int
    """The same for the prompt."""
    echo: bool
    """Give back the prompt."""
    json_schema: str | Mapping[str, Any]
    """The output is JSON that this schema admits."""
    regex: str
    """The whole output matches it."""
    choices: Sequence[str]
    """The output is one of these."""
    grammar: str
    """The output is a sentence of this grammar, in Lark's notation as llguidance reads it."""


class Options(Sampling, total=False):
    """Sampling fields, and what concerns the request as a whole."""

    tenant: str
    """Whose request it is: KV of equal prefixes is shared among the requests of one tenant only."""
    application: str
    """What it is made for: the lengths of its outputs tell admission how long the next ones may become."""
    priority: Literal["normal", "high"]
    """High priority goes first where requests wait."""
    cache_ttl_s: float
    """How long its KV is to stay cached for a next turn, in seconds, where memory allows."""


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


def build(
    prompt: str | Sequence[int] | None,
    messages: Sequence[Message] | None,
    request_id: str | None,
    model: str | None,
    options: Mapping[str, Any],
) -> pb.GenerateRequest:
    """The request; an id is drawn where none is given. `ValueError` names an argument that no request can hold."""
    if (prompt is None) == (messages is None):
        raise ValueError("Give `prompt` or `messages`, one of them.")
    request = pb.GenerateRequest()
    _set("request_id", lambda: setattr(request, "request_id", request_id or secrets.token_hex(8)))
    _set("model", lambda: setattr(request, "model", model or ""))
    if messages is not None:
        _set("messages", lambda: request.chat.messages.extend(map(_message, messages)))
        request.chat.SetInParent()
    elif isinstance(prompt, str):
        _set("prompt", lambda: setattr(request, "text", prompt))
    else:
        _set("prompt", lambda: request.token_ids.ids.extend(_sequence(prompt)))
        request.token_ids.SetInParent()
    for name, value in options.items():
        if value is not None:
            _set(name, lambda name=name, value=value: _set_option(request, name, value))
    return request


def _message(message: Message) -> pb.Message:
    if not isinstance(message, Mapping) or not set(message) <= set(pb.Message.DESCRIPTOR.fields_by_name):
        raise TypeError
    return pb.Message(**message)


def _sequence(value: Any) -> Any:
    """Not a text, whose letters nobody means."""
    if isinstance(value, (str, bytes)):
        raise TypeError
    return value


def _set_option(request: pb.GenerateRequest, name: str, value: Any) -> None:
    if name in ("tenant", "application"):
        setattr(request, name, value)
    elif name == "priority":
        if value not in PRIORITIES:
            raise ValueError(f"there is {' and '.join(PRIORITIES)}, not {value!r}")
        request.priority = PRIORITIES[value]
    elif name == "cache_ttl_s":
        request.cache_ttl.FromNanoseconds(round(value * 1e9))
    elif name in pb.StructuredOutput.DESCRIPTOR.fields_by_name:
        _set_structured(request, name, value)
    elif name in pb.SamplingParams.DESCRIPTOR.fields_by_name:
        _set_sampling(request, name, value)
    else:
        raise ValueError("there is no such option")


def _set_sampling(request: pb.GenerateRequest, name: str, value: Any) -> None:
    if name == "stop" and isinstance(value, str):
        value = [value]  # else its letters
    request.sampling.MergeFrom(pb.SamplingParams(**{name: value}))


def _set_structured(request: pb.GenerateRequest, name: str, value: Any) -> None:
    structured = request.sampling.structured
    if other := structured.WhichOneof("constraint"):
        raise ValueError(f"the output is held to `{other}` already")
    if name == "choices":
        structured.choices.values.extend(_sequence(value))
        structured.choices.SetInParent()
    else:
        setattr(structured, name, _json(value) if isinstance(value, Mapping) else value)


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except TypeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


def _set(name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except UnicodeError:
        raise ValueError(f"{name} is no text: it holds bytes that are not UTF-8.") from None
    except TypeError as error:
        raise ValueError(f"{name} must be {KINDS[name]}." if name in KINDS else f"{name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class Attempts:
    """One request over all its attempts: what to ask next, and whether an error is worth another attempt."""

    def __init__(self, request: pb.GenerateRequest):
        self._request = request
        self._started: Started | None = None
        self._attempt = 0
        self._received: dict[int, list[int]] = {}
        self._finished: set[int] = set()
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
        """What the caller hears of it: everything, but `started` once, and `finished` once a choice."""
        match event:
            case Started() if self._started is not None:
                return None
            case Started():
                self._started, self._attempt = event, event.attempt
            case Finished() if event.choice in self._finished:
                return None
            case Finished():
                self._finished.add(event.choice)
                self._failures = 0
            case Delta():
                self._failures = 0
                self._received.setdefault(event.choice, [])[event.first_index :] = event.token_ids
        return event

    def retry_after_s(self, error: PenstockError) -> float:
        """When to ask again, as a further attempt. Raises the error, unless a router was lost in mid-stream.

        At once where the lost one has brought something: there may be others, and they are not lost.
        """
        if self._started is None or error.code is not grpc.StatusCode.UNAVAILABLE or error.final:
            raise error
        if self._failures >= MOST_RETRIES:
            raise error
        self._attempt += 1
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return min(FIRST_RETRY_S * 2 ** (self._failures - 2), LAST_RETRY_S)
