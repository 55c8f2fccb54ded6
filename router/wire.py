"""The public protobuf to values. Every field is checked here, and no protobuf type of a request goes further."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc

from ..handover.recall import SEPARATOR, sessions_of
from ..handover.values import End, SamplingParams
from ..policy.state import Priority
from ..proto import inference_pb2 as pb
from .chat import BrokenTemplate
from .config import ModelInfo
from .constraints import Constraints
from .refusal import Refused, invalid
from .sampling import check_ids, read_choices, read_sampling, read_stop, refuse_unknown
from .tokenizer import Tokenizer

LONGEST_ID = 128
"""Characters of a request id, and of the names of a tenant and an application."""

LONGEST_TTL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Call:
    """One choice of a valid request. `received` is what the client has of it already, from an earlier attempt."""

    request_id: str
    attempt: int
    prompt: tuple[int, ...]
    params: SamplingParams
    received: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Strings that end the output; the router alone knows of them."""
    echo: bool = False
    """Give back the prompt, and its text `prompt_text`."""
    prompt_text: str = ""
    tenant: str = ""
    application: str = ""
    cache_ttl_s: float = 0.0
    priority: int = Priority.NORMAL

    @property
    def session(self) -> str:
        """The name of the session at every party; the same for each attempt at the same request."""
        return f"{sessions_of(self.request_id)}{self.params.choice}{SEPARATOR}{self.params.seed:x}"

    def ended(self, end_tokens: Sequence[int]) -> End | None:
        """Why the output is complete with the tokens that were received, if it is."""
        ends = self.params.stop_token_ids + (() if self.params.ignore_eos else tuple(end_tokens))
        if self.received and self.received[-1] in ends:
            return End.STOP
        return End.LENGTH if len(self.received) >= self.params.max_tokens else None


async def read_request(
    request: pb.GenerateRequest,
    model: ModelInfo,
    tokenizer: Tokenizer | None,
    constraints: Constraints | None = None,
) -> tuple[Call, ...]:
    """The request's choices as values, defaults filled in and a seed drawn. Raises `Refused`, naming the field."""
    if request.model not in ("", model.name):
        message = f"There is no model {request.model!r} here; {model.name!r} is served."
        raise Refused(grpc.StatusCode.NOT_FOUND, message, "model")
    for name in ("request_id", "tenant", "application"):
        if len(getattr(request, name)) > LONGEST_ID:
            raise invalid(name, f"`{name}` has at most {LONGEST_ID} characters.")
    if SEPARATOR in request.request_id:
        raise invalid(
            "request_id", f"`request_id` has no {SEPARATOR!r}: it ends the id in the names of sessions."
        )
    refuse_unknown(request)
    choices, stop = read_choices(request.sampling), _stop(request, model, tokenizer)
    prompt = await _prompt(request, model, tokenizer)
    params = read_sampling(request.sampling, _seed(request), model.context_tokens - len(prompt), model)
    params = replace(params, grammar=await _grammar(request.sampling, model, constraints))
    echo = request.sampling.echo
    received = _received(request, model, choices, params.max_tokens)
    whole = Call(
        request_id=request.request_id or secrets.token_hex(8),
        attempt=_attempt(request),
        prompt=prompt,
        params=params,
        stop=stop,
        echo=echo,
        prompt_text=await tokenizer.read(prompt) if echo and tokenizer else "",
        tenant=request.tenant,
        application=request.application,
        cache_ttl_s=_cache_ttl_s(request),
        priority=_priority(request),
    )
    return tuple(_choice(whole, choice, ids) for choice, ids in enumerate(received))


def _choice(whole: Call, choice: int, received: tuple[int, ...]) -> Call:
    """What concerns the prompt is told with choice 0."""
    if choice == 0:
        return replace(whole, received=received)
    params = replace(whole.params, choice=choice, prompt_logprobs=None)
    return replace(whole, params=params, received=received, echo=False)


def _stop(request: pb.GenerateRequest, model: ModelInfo, tokenizer: Tokenizer | None) -> tuple[str, ...]:
    stop = read_stop(request.sampling)
    if stop and tokenizer is None:
        message = f"Model {model.name!r} has no tokenizer, so there is no text to find a stop string in."
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "sampling.stop")
    return stop


async def _grammar(sampling: pb.SamplingParams, model: ModelInfo, constraints: Constraints | None) -> str:
    if not sampling.HasField("structured"):
        return ""
    for name in ("ignore_eos", "min_tokens"):
        if getattr(sampling, name):
            message = f"`sampling.{name}` may ask for more where `sampling.structured` allows no more."
            raise invalid(f"sampling.{name}", message)
    if constraints is None:
        message = f"Model {model.name!r} has no tokenizer, so its output cannot be held to a text's form."
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "sampling.structured")
    if not model.end_tokens:
        message = f"Model {model.name!r} has no end token, so an output that is complete could not end."
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "sampling.structured")
    return await constraints.grammar(sampling.structured)


def _priority(request: pb.GenerateRequest) -> int:
    if request.priority not in pb.Priority.values():
        raise invalid("priority", f"There is no priority {request.priority}.")
    return request.priority or Priority.NORMAL


def _cache_ttl_s(request: pb.GenerateRequest) -> float:
    ttl = request.cache_ttl
    ttl_s = ttl.seconds + ttl.nanos / 1e9
    if min(ttl.seconds, ttl.nanos) < 0 or ttl.nanos >= 10**9 or ttl_s > LONGEST_TTL_S:
        raise invalid("cache_ttl", f"`cache_ttl` is 0 to {LONGEST_TTL_S:.0f} s, not {ttl_s:g} s.")
    return ttl_s


async def _prompt(
    request: pb.GenerateRequest, model: ModelInfo, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """The ids of the prompt, checked."""
    field = request.WhichOneof("prompt")
    if field is None:
        raise invalid("prompt", "The prompt is missing: give `text`, `token_ids` or `chat`.")
    if field == "token_ids":
        ids = tuple(request.token_ids.ids)
    elif tokenizer is None:
        message = f"Model {model.name!r} has no tokenizer; give the prompt as `token_ids`."
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, field)
    elif field == "chat":
        ids = tuple(await _chat(request.chat, model, tokenizer))
    else:
        _check_length(request.text, model, tokenizer, field)
        ids = tuple(await tokenizer.encode(request.text)) if request.text else ()
    if not ids:
        raise invalid(field, "The prompt is empty.")
    check_ids(ids, model, field)  # a tokenizer may know more tokens than the model
    if len(ids) >= model.context_tokens:
        message = (
            f"The prompt has {len(ids)} tokens; with one of output "
            f"the context of {model.context_tokens} tokens is exceeded."
        )
        raise invalid(field, message)
    return ids


def _check_length(text: str, model: ModelInfo, tokenizer: Tokenizer, field: str) -> None:
    """Refuse what cannot fit before it is encoded, which takes a hundred times its memory."""
    most = model.context_tokens * tokenizer.longest_token
    if len(text) > most:
        message = f"The prompt has {len(text)} characters, and the context holds {most} at most."
        raise invalid(field, message)


async def _chat(chat: pb.Chat, model: ModelInfo, tokenizer: Tokenizer) -> list[int]:
    """The ids of a chat as the model's own template lays it out."""
    if tokenizer.chat is None:
        message = (
            f"Model {model.name!r} has no chat template, so it answers no chat: give a plain prompt "
            "(`text` or `token_ids`; `penstock generate` without --chat)."
        )
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "chat")
    if not chat.messages:
        raise invalid("chat.messages", "A chat has at least one message.")
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    if "" in (message["role"] for message in messages):
        raise invalid("chat.messages", "Each message of a chat names its `role`.")
    try:
        text = await asyncio.to_thread(tokenizer.chat.render, messages)
    except BrokenTemplate as error:
        message = f"The chat template of model {model.name!r} is broken: {error}"
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, "chat") from None
    except ValueError as error:
        raise invalid("chat.messages", f"The model's chat template refuses these messages: {error}") from None
    _check_length(text, model, tokenizer, "chat.messages")
    return await tokenizer.encode(text, special_tokens=False)


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


def _received(
    request: pb.GenerateRequest, model: ModelInfo, choices: int, most: int
) -> list[tuple[int, ...]]:
    """What the client has of each choice."""
    received: dict[int, tuple[int, ...]] = {}
    for entry in request.resume.received:
        if entry.choice >= choices or entry.choice in received:
            message = f"Choice {entry.choice} is named twice, or is not below the {choices} asked for."
            raise invalid("resume.received", message)
        received[entry.choice] = ids = tuple(entry.token_ids)
        check_ids(ids, model, "resume.received")
        if len(ids) > most:
            message = f"{len(ids)} tokens were received, but only {most} asked for."
            raise invalid("resume.received", message)
    return [received.get(choice, ()) for choice in range(choices)]
