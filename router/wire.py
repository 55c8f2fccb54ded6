"""The public protobuf to values. Every field is checked here, and no protobuf type of a request goes further."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from ..handover.values import End, SamplingParams
from ..proto import inference_pb2 as pb
from .config import ModelInfo
from .refusal import Refused, invalid, unimplemented
from .tokenizer import Tokenizer

LONGEST_ID = 128
"""Characters of a request id, and of the names of a tenant and an application."""

LONGEST_TTL_S = 3600.0

NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "n": 1,
    "echo": False,
}
"""Fields that do not work yet, and the value at which they would change nothing."""

UNWORKED = ("logprobs", "prompt_logprobs", "structured")
"""Fields that do not work yet at any value."""

UNWORKED_LISTS = ("logit_bias", "stop", "stop_token_ids")


@dataclass(frozen=True, slots=True)
class Call:
    """One valid request. `received` is what the client has already, from an earlier attempt."""

    request_id: str
    attempt: int
    prompt: tuple[int, ...]
    params: SamplingParams
    received: tuple[int, ...] = ()
    tenant: str = ""
    application: str = ""
    cache_ttl_s: float = 0.0

    @property
    def session(self) -> str:
        """The name of the session at every party; the same for each attempt at the same request."""
        return f"{self.request_id}#{self.params.choice}#{self.params.seed:x}"

    def ended(self, end_tokens: Sequence[int]) -> End | None:
        """Why the output is complete with what was received, if it is."""
        if self.received and self.received[-1] in end_tokens and not self.params.ignore_eos:
            return End.STOP
        return End.LENGTH if len(self.received) >= self.params.max_tokens else None


async def read_request(request: pb.GenerateRequest, model: ModelInfo, tokenizer: Tokenizer | None) -> Call:
    """The request as a value, defaults filled in and a seed drawn. Raises `Refused`, naming the field."""
    if request.model not in ("", model.name):
        message = f"There is no model {request.model!r} here; {model.name!r} is served."
        raise Refused(grpc.StatusCode.NOT_FOUND, message, "model")
    for name in ("request_id", "tenant", "application"):
        if len(getattr(request, name)) > LONGEST_ID:
            raise invalid(name, f"`{name}` has at most {LONGEST_ID} characters.")
    _refuse_unworked(request)
    prompt = await _prompt(request, model, tokenizer)
    params = _params(request, model, len(prompt))
    return Call(
        request_id=request.request_id or secrets.token_hex(8),
        attempt=_attempt(request),
        prompt=prompt,
        params=params,
        received=_received(request, model, params),
        tenant=request.tenant,
        application=request.application,
        cache_ttl_s=_cache_ttl_s(request),
    )


def _refuse_unworked(request: pb.GenerateRequest) -> None:
    sampling = request.sampling
    if sampling.HasField("n") and sampling.n == 0:
        raise invalid("sampling.n", "`sampling.n` must be at least 1.")
    for name, neutral in NEUTRAL.items():
        if sampling.HasField(name) and getattr(sampling, name) != neutral:
            raise unimplemented(f"sampling.{name}")
    for name in UNWORKED:
        if sampling.HasField(name):
            raise unimplemented(f"sampling.{name}")
    for name in UNWORKED_LISTS:
        if getattr(sampling, name):
            raise unimplemented(f"sampling.{name}")
    if request.priority not in pb.Priority.values():
        raise invalid("priority", f"There is no priority {request.priority}.")
    if request.priority == pb.PRIORITY_HIGH:
        raise unimplemented("priority")


def _cache_ttl_s(request: pb.GenerateRequest) -> float:
    ttl = request.cache_ttl
    ttl_s = ttl.seconds + ttl.nanos / 1e9
    if ttl_s < 0 or min(ttl.seconds, ttl.nanos) < 0 or ttl_s > LONGEST_TTL_S:
        raise invalid("cache_ttl", f"`cache_ttl` is 0 to {LONGEST_TTL_S:.0f} s, not {ttl_s:g} s.")
    return ttl_s


async def _prompt(
    request: pb.GenerateRequest, model: ModelInfo, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """The ids of the prompt, checked."""
    field = request.WhichOneof("prompt")
    if field is None:
        raise invalid("prompt", "The prompt is missing: give `text` or `token_ids`.")
    if field == "token_ids":
        ids = tuple(request.token_ids.ids)
        _check_ids(ids, model, "token_ids")
    elif tokenizer is None:
        message = f"Model {model.name!r} has no tokenizer; give the prompt as `token_ids`."
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "text")
    else:
        ids = tuple(await tokenizer.encode(request.text)) if request.text else ()
    if not ids:
        raise invalid(field, "The prompt is empty.")
    if len(ids) >= model.context_tokens:
        message = (
            f"The prompt has {len(ids)} tokens; with one of output "
            f"the context of {model.context_tokens} tokens is exceeded."
        )
        raise invalid(field, message)
    return ids


def _check_ids(ids: Sequence[int], model: ModelInfo, field: str) -> None:
    beyond = max(ids, default=0)
    if beyond >= model.vocabulary:
        raise invalid(field, f"Token id {beyond} is not below the vocabulary's {model.vocabulary}.")


def _params(request: pb.GenerateRequest, model: ModelInfo, prompt_tokens: int) -> SamplingParams:
    sampling = request.sampling
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    if not (math.isfinite(temperature) and temperature >= 0):
        raise invalid("sampling.temperature", f"A temperature is 0 or above, not {temperature}.")
    room = model.context_tokens - prompt_tokens
    max_tokens = sampling.max_tokens if sampling.HasField("max_tokens") else room
    if max_tokens <= 0:
        raise invalid("sampling.max_tokens", f"`sampling.max_tokens` must be at least 1, not {max_tokens}.")
    return SamplingParams(
        temperature=float(f"{temperature:.7g}"),  # the decimal that was meant: 0.8, not 0.800000011920929
        seed=_seed(request),
        choice=0,
        max_tokens=min(max_tokens, room),
        ignore_eos=sampling.ignore_eos,
    )


def _seed(request: pb.GenerateRequest) -> int:
    given = request.sampling.seed if request.sampling.HasField("seed") else None
    if request.HasField("resume"):
        if given not in (None, request.resume.seed):
            raise invalid("resume.seed", "`resume.seed` differs from `sampling.seed`.")
        return request.resume.seed
    return secrets.randbits(64) if given is None else given


def _attempt(request: pb.GenerateRequest) -> int:
    if not request.HasField("resume"):
        return 1
    if not request.request_id:
        raise invalid("request_id", "A resumed request names its `request_id`.")
    if request.resume.attempt < 2:
        raise invalid("resume.attempt", "`resume.attempt` is one above the attempt that `started` named.")
    return request.resume.attempt


def _received(request: pb.GenerateRequest, model: ModelInfo, params: SamplingParams) -> tuple[int, ...]:
    if len(request.resume.received) > 1 or any(entry.choice for entry in request.resume.received):
        raise invalid("resume.received", "Choice 0 alone was asked for.")
    ids = tuple(id for entry in request.resume.received for id in entry.token_ids)
    _check_ids(ids, model, "resume.received")
    if len(ids) > params.max_tokens:
        raise invalid(
            "resume.received", f"{len(ids)} tokens were received, but only {params.max_tokens} asked for."
        )
    return ids
