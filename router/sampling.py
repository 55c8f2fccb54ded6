"""The sampling fields of a request to values, each within its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from ..handover.values import SamplingParams
from ..proto import inference_pb2 as pb
from .config import ModelInfo
from .refusal import invalid

MOST_CHOICES = 64
MOST_BIASED = 1024
MOST_STOP_TOKENS = 64
MOST_STOP_STRINGS = 16
LONGEST_STOP_STRING = 256
"""In characters."""
MOST_ALTERNATIVES = 20
MOST_PROMPT_LOGPROBS = 100_000
"""In one request, alternatives included: they come in one message."""

REALS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "0 or above"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "from -2 to 2"),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "from -2 to 2"),
    "repetition_penalty": (lambda value: 0.01 <= value <= 100, "from 0.01 to 100"),
}
"""What these fields may be, in code and in words."""


def read_sampling(sampling: pb.SamplingParams, seed: int, room: int, model: ModelInfo) -> SamplingParams:
    """The parameters of choice 0; `room` is how many tokens the context leaves. Raises `Refused`, naming the field."""
    reals: dict[str, Any] = {"temperature": 1.0} | {
        name: _real(sampling, name) for name in REALS if sampling.HasField(name)
    }
    max_tokens = _max_tokens(sampling, room)
    return SamplingParams(
        seed=seed,
        choice=0,
        max_tokens=max_tokens,
        ignore_eos=sampling.ignore_eos,
        top_k=0 if sampling.top_k >= model.vocabulary else sampling.top_k,
        logit_bias=_logit_bias(sampling, model),
        min_tokens=_min_tokens(sampling, max_tokens),
        stop_token_ids=_stop_token_ids(sampling, model),
        logprobs=_alternatives(sampling, "logprobs"),
        prompt_logprobs=_prompt_logprobs(sampling, model.context_tokens - room),
        **reals,
    )


def read_choices(sampling: pb.SamplingParams) -> int:
    """`n`."""
    choices = sampling.n if sampling.HasField("n") else 1
    if not 1 <= choices <= MOST_CHOICES:
        raise invalid("sampling.n", f"`sampling.n` is from 1 to {MOST_CHOICES}, not {choices}.")
    return choices


def read_stop(sampling: pb.SamplingParams) -> tuple[str, ...]:
    """The stop strings, each once."""
    if len(sampling.stop) > MOST_STOP_STRINGS:
        raise invalid("sampling.stop", f"At most {MOST_STOP_STRINGS} stop strings, not {len(sampling.stop)}.")
    for text in sampling.stop:
        if not 0 < len(text) <= LONGEST_STOP_STRING:
            message = f"A stop string has 1 to {LONGEST_STOP_STRING} characters, not {len(text)}."
            raise invalid("sampling.stop", message)
    return tuple(dict.fromkeys(sampling.stop))


def refuse_unknown(message: Any, path: str = "") -> None:
    """A field of a later version is never ignored, at whatever depth; `path` is where the message stands."""
    for unknown in UnknownFieldSet(message):
        field, number = path or "request", unknown.field_number
        raise invalid(field, f"`{field}` has a field of number {number}, which is not known here.")
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else (value,):
                refuse_unknown(part, f"{path}.{field.name}" if path else field.name)


def check_ids(ids: Sequence[int], model: ModelInfo, field: str) -> None:
    beyond = max(ids, default=0)
    if beyond >= model.vocabulary:
        raise invalid(field, f"Token id {beyond} is not below the vocabulary's {model.vocabulary}.")


def _real(sampling: pb.SamplingParams, name: str) -> float:
    value = decimal(getattr(sampling, name))
    fits, words = REALS[name]
    if not (math.isfinite(value) and fits(value)):
        raise invalid(f"sampling.{name}", f"`sampling.{name}` is {words}, not {value:g}.")
    return value


def decimal(value: float) -> float:
    """The decimal that was meant by a 32-bit float: 0.8, not 0.800000011920929."""
    return float(f"{value:.7g}")


def _max_tokens(sampling: pb.SamplingParams, room: int) -> int:
    asked = sampling.max_tokens if sampling.HasField("max_tokens") else room
    if asked <= 0:
        raise invalid("sampling.max_tokens", f"`sampling.max_tokens` must be at least 1, not {asked}.")
    return min(asked, room)


def _min_tokens(sampling: pb.SamplingParams, max_tokens: int) -> int:
    if sampling.min_tokens > max_tokens:
        message = f"`sampling.min_tokens` is {sampling.min_tokens}, but at most {max_tokens} tokens may come."
        raise invalid("sampling.min_tokens", message)
    return sampling.min_tokens


def _logit_bias(sampling: pb.SamplingParams, model: ModelInfo) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    if len(sampling.logit_bias) > MOST_BIASED:
        raise invalid(field, f"At most {MOST_BIASED} tokens may have a bias, not {len(sampling.logit_bias)}.")
    check_ids(list(sampling.logit_bias), model, field)
    for token, bias in sampling.logit_bias.items():
        if not -100 <= bias <= 100:
            raise invalid(field, f"A bias is from -100 to 100; that of token {token} is {bias:g}.")
    return tuple(sorted((token, decimal(bias)) for token, bias in sampling.logit_bias.items() if bias))


def _stop_token_ids(sampling: pb.SamplingParams, model: ModelInfo) -> tuple[int, ...]:
    field, ids = "sampling.stop_token_ids", sorted(set(sampling.stop_token_ids))
    if len(ids) > MOST_STOP_TOKENS:
        raise invalid(field, f"At most {MOST_STOP_TOKENS} stop tokens, not {len(ids)}.")
    check_ids(ids, model, field)
    return tuple(ids)


def _alternatives(sampling: pb.SamplingParams, name: str) -> int | None:
    if not sampling.HasField(name):
        return None
    asked = getattr(sampling, name)
    if asked > MOST_ALTERNATIVES:
        raise invalid(f"sampling.{name}", f"`sampling.{name}` is at most {MOST_ALTERNATIVES}, not {asked}.")
    return asked


def _prompt_logprobs(sampling: pb.SamplingParams, prompt_tokens: int) -> int | None:
    asked = _alternatives(sampling, "prompt_logprobs")
    told = 0 if asked is None else prompt_tokens * (1 + asked)
    if told > MOST_PROMPT_LOGPROBS:
        message = (
            f"{told} log-probabilities of the prompt are more than the {MOST_PROMPT_LOGPROBS} that are told."
        )
        raise invalid("sampling.prompt_logprobs", message)
    return asked
