"""A request becomes a value, or is refused with the code and the field at fault."""

import asyncio
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_fleet import MODEL

from penstock.engine.config import EngineConfig
from penstock.handover.values import End, SamplingParams
from penstock.policy.state import Priority
from penstock.proto import inference_pb2 as pb
from penstock.router.chat import ChatTemplate
from penstock.router.refusal import Refused
from penstock.router.tokenizer import Tokenizer
from penstock.router.wire import read_request

PROMPT = pb.TokenIds(ids=[1, 2, 3])


def read_all(request, model=MODEL, tokenizer=None):
    return asyncio.run(read_request(request, model, tokenizer))


def read(request, model=MODEL, tokenizer=None):
    """The first choice of the request."""
    return read_all(request, model, tokenizer)[0]


def sampled(**fields):
    return pb.GenerateRequest(token_ids=PROMPT, sampling=pb.SamplingParams(**fields))


def resumed(attempt=2, ids=(4, 5), choice=0, seed=7, **fields):
    received = [pb.ChoiceTokens(choice=choice, token_ids=ids)]
    resume = pb.Resume(attempt=attempt, seed=seed, received=received)
    request = {"token_ids": PROMPT, "request_id": "r", "sampling": pb.SamplingParams(max_tokens=5)}
    return pb.GenerateRequest(**request | fields, resume=resume)


def test_defaults_are_filled_in():
    call = read(pb.GenerateRequest(token_ids=PROMPT))
    assert call.prompt == (1, 2, 3) and call.attempt == 1 and call.received == () and call.request_id
    assert call.params.temperature == 1.0 and not call.params.ignore_eos
    assert call.params.max_tokens == MODEL.context_tokens - 3


def test_seeds_and_ids_are_drawn_anew():
    calls = [read(pb.GenerateRequest(token_ids=PROMPT)) for _ in range(20)]
    assert len({call.params.seed for call in calls}) == len({call.request_id for call in calls}) == 20


def test_output_is_capped_at_the_context():
    assert read(sampled(max_tokens=10**9)).params.max_tokens == MODEL.context_tokens - 3
    assert read(sampled(max_tokens=5)).params.max_tokens == 5


@settings(deadline=None)
@given(st.decimals(0, 10, places=3).map(float))
def test_a_temperature_is_the_decimal_that_was_meant(temperature):
    assert read(sampled(temperature=temperature)).params.temperature == temperature


def test_what_changes_nothing_is_accepted():
    neutral = {"top_p": 1, "top_k": 0, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}
    neutral |= {"repetition_penalty": 1, "min_tokens": 0, "n": 1, "echo": False, "logit_bias": {5: 0.0}}
    call = read(sampled(**neutral, stop=[], stop_token_ids=[], seed=3, max_tokens=5))
    assert call.params == SamplingParams(temperature=1.0, seed=3, max_tokens=5) and call.stop == ()
    request = pb.GenerateRequest(token_ids=PROMPT, priority=pb.PRIORITY_NORMAL, tenant="t", application="a")
    request.cache_ttl.SetInParent()
    assert read(request).tenant == "t" and read(request).priority == Priority.NORMAL
    assert read(pb.GenerateRequest(token_ids=PROMPT)).priority == Priority.NORMAL


def test_what_decides_about_its_turn_and_about_cached_kv_is_read():
    high = pb.GenerateRequest(token_ids=PROMPT, priority=pb.PRIORITY_HIGH)
    assert read(high).priority == Priority.HIGH
    asked = {"tenant": "t", "application": "a", "cache_ttl": {"seconds": 3599, "nanos": 500_000_000}}
    call = read(pb.GenerateRequest(token_ids=PROMPT, **asked))
    assert (call.tenant, call.application, call.cache_ttl_s) == ("t", "a", 3599.5)


def test_every_parameter_arrives_as_it_was_meant():
    shaping = {"top_p": 0.9, "min_p": 0.05, "presence_penalty": -0.3, "frequency_penalty": 1.7}
    shaping |= {"repetition_penalty": 1.1, "top_k": 40, "min_tokens": 4, "temperature": 0.7}
    call = read(sampled(**shaping, logit_bias={9: 0.1, 2: -100}, stop_token_ids=[7, 3, 7], max_tokens=9))
    assert {name: getattr(call.params, name) for name in shaping} == shaping
    assert call.params.logit_bias == ((2, -100.0), (9, 0.1)) and call.params.stop_token_ids == (3, 7)


def test_the_prompt_is_told_of_with_choice_0():
    first, second = read_all(sampled(n=2, logprobs=0, prompt_logprobs=3, echo=True))
    assert (first.params.logprobs, first.params.prompt_logprobs, first.echo) == (0, 3, True)
    assert (second.params.logprobs, second.params.prompt_logprobs, second.echo) == (0, None, False)


def test_more_of_the_prompt_than_one_message_may_hold_is_refused():
    long = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 60_000), sampling={"prompt_logprobs": 1})
    with pytest.raises(Refused) as refused:
        read(long, replace(MODEL, context_tokens=100_000))
    assert refused.value.field == "sampling.prompt_logprobs"


def test_top_k_of_the_whole_vocabulary_is_neutral():
    assert read(sampled(top_k=MODEL.vocabulary)).params.top_k == 0


def test_choices_are_calls_of_their_own_over_one_prompt():
    calls = read_all(sampled(n=3, seed=5))
    assert [call.params.choice for call in calls] == [0, 1, 2]
    assert len({call.session for call in calls}) == 3
    assert {(call.prompt, call.params.seed, call.request_id) for call in calls} == {
        ((1, 2, 3), 5, calls[0].request_id)
    }


def test_each_choice_is_resumed_with_what_it_had():
    request = resumed(choice=2, sampling=pb.SamplingParams(max_tokens=5, n=3))
    request.resume.received.add(choice=0, token_ids=[8])
    assert [call.received for call in read_all(request)] == [(8,), (), (4, 5)]


WRONG = [
    *({"temperature": value} for value in (-0.1, math.inf, math.nan)),
    *({"top_p": value} for value in (0.0, -1.0, 1.01, math.nan)),
    *({"min_p": value} for value in (-0.1, 1.1, math.nan)),
    *({name: value} for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1, math.nan)),
    *({"repetition_penalty": value} for value in (0.0, -1.0, 101.0, math.inf)),
    {"logit_bias": {1000: 1.0}},
    {"logit_bias": {1: 101.0}},
    {"logit_bias": {1: math.nan}},
    {"logit_bias": dict.fromkeys(range(1025), 1.0)},
    {"min_tokens": 2**31},
    {"min_tokens": 6, "max_tokens": 5},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"stop_token_ids": [1000]},
    {"stop_token_ids": range(65)},
    {"stop": [""]},
    {"stop": ["x" * 257]},
    {"stop": [str(number) for number in range(17)]},
    {"logprobs": 21},
    {"prompt_logprobs": 21},
    {"n": 0},
    {"n": 65},
    {"n": 2**32 - 1},
    {"logprobs": 2**32 - 1},
    {"temperature": -math.inf},
    {"logit_bias": {2**32 - 1: 1.0}},
    {"logit_bias": {1: math.inf}},
    {"stop": ["x" * 1_000_000]},
]


@pytest.mark.parametrize(
    "fields", WRONG, ids=lambda fields: " ".join(f"{k}={str(v)[:20]}" for k, v in fields.items())
)
def test_a_parameter_out_of_bounds_is_refused_by_name(fields):
    with pytest.raises(Refused) as refused:
        read(sampled(**fields))
    named = f"sampling.{next(iter(fields))}"
    assert (refused.value.code.name, refused.value.field) == ("INVALID_ARGUMENT", named)


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(Refused) as refused:
        read(sampled(stop=["x"]))
    assert (refused.value.code.name, refused.value.field) == ("FAILED_PRECONDITION", "sampling.stop")


LATER = {
    "request": lambda request: request,
    "sampling": lambda request: request.sampling,
    "token_ids": lambda request: request.token_ids,
    "resume": lambda request: request.resume,
    "resume.received": lambda request: request.resume.received[0],
    "cache_ttl": lambda request: request.cache_ttl,
    "sampling.structured": lambda request: request.sampling.structured,
    "sampling.structured.choices": lambda request: request.sampling.structured.choices,
    "chat.messages": lambda request: request.chat.messages.add(role="user"),
}
"""Messages of a request, which may have fields of a later version."""


@pytest.mark.parametrize("field", LATER)
def test_a_field_of_a_later_version_is_refused(field):
    request = resumed()
    LATER[field](request).MergeFromString(b"\xf8\x3f\x01")  # number 1023, a varint
    with pytest.raises(Refused) as refused:
        read(request)
    assert (refused.value.code.name, refused.value.field) == ("INVALID_ARGUMENT", field)


@pytest.mark.parametrize(
    "request_, code, field",
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "prompt"),
        (pb.GenerateRequest(token_ids=pb.TokenIds()), "INVALID_ARGUMENT", "token_ids"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1000])), "INVALID_ARGUMENT", "token_ids"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 2048)), "INVALID_ARGUMENT", "token_ids"),
        (pb.GenerateRequest(text="hello"), "FAILED_PRECONDITION", "text"),
        (pb.GenerateRequest(token_ids=PROMPT, model="other"), "NOT_FOUND", "model"),
        (pb.GenerateRequest(token_ids=PROMPT, request_id="x" * 129), "INVALID_ARGUMENT", "request_id"),
        (pb.GenerateRequest(token_ids=PROMPT, request_id="r#0"), "INVALID_ARGUMENT", "request_id"),
        (pb.GenerateRequest(token_ids=PROMPT, priority=9), "INVALID_ARGUMENT", "priority"),
        (pb.GenerateRequest(token_ids=PROMPT, tenant="x" * 129), "INVALID_ARGUMENT", "tenant"),
        (pb.GenerateRequest(token_ids=PROMPT, application="x" * 129), "INVALID_ARGUMENT", "application"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": -1}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"nanos": -1}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": 3601}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": 2**62}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"nanos": 10**9}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, priority=-1), "INVALID_ARGUMENT", "priority"),
        (pb.GenerateRequest(chat=pb.Chat()), "FAILED_PRECONDITION", "chat"),
        (resumed(attempt=0), "INVALID_ARGUMENT", "resume.attempt"),
        (resumed(attempt=1), "INVALID_ARGUMENT", "resume.attempt"),
        (resumed(request_id=""), "INVALID_ARGUMENT", "request_id"),
        (resumed(choice=1), "INVALID_ARGUMENT", "resume.received"),
        (resumed(ids=[1000]), "INVALID_ARGUMENT", "resume.received"),
        (resumed(ids=[1] * 6), "INVALID_ARGUMENT", "resume.received"),
        (resumed(sampling=pb.SamplingParams(seed=8, max_tokens=5)), "INVALID_ARGUMENT", "resume.seed"),
    ],
)
def test_a_wrong_request_is_refused_with_code_and_field(request_, code, field):
    with pytest.raises(Refused) as refused:
        read(request_)
    assert (refused.value.code.name, refused.value.field) == (code, field)
    assert refused.value.message


def test_a_resumed_request_takes_seed_and_tokens_from_the_resume():
    call = read(resumed())
    assert (call.attempt, call.params.seed, call.received) == (2, 7, (4, 5))
    assert call.session == read(resumed(attempt=3, ids=())).session


@pytest.mark.parametrize(
    "ids, ignore_eos, ended",
    [
        ((4, 5), False, None),
        ((4, 8), True, End.STOP),
        ((1, 2, 3, 4, 5), False, End.LENGTH),
        ((4, 9), False, End.STOP),
        ((4, 9), True, None),
    ],
)
def test_a_resume_with_all_tokens_is_ended(ids, ignore_eos, ended):
    request = resumed(
        ids=ids, sampling=pb.SamplingParams(max_tokens=5, ignore_eos=ignore_eos, stop_token_ids=[8])
    )
    call = read(request, replace(MODEL, end_tokens=(9,)))
    assert call.ended((9,)) is ended


@settings(deadline=None)
@given(st.builds(pb.GenerateRequest.FromString, st.just(b"")), st.binary(max_size=40))
def test_any_request_is_a_value_or_refused(request_, more):
    try:
        request_.MergeFromString(more)
    except Exception:  # noqa: BLE001  gRPC refuses what is no protobuf before us
        return
    try:
        read(request_)
    except Refused as refused:
        assert refused.message


@pytest.mark.parametrize(
    "prompt", [{"text": "hello"}, {"chat": pb.Chat(messages=[pb.Message(role="user", content="hello")])}]
)
def test_a_text_that_needs_a_token_beyond_the_vocabulary_is_refused(prompt):
    """No instance could embed it."""
    tokenizer = Tokenizer(EngineConfig().folder / "tokenizer.json")
    tokenizer.chat = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    request = pb.GenerateRequest(**prompt)
    ids = read(request, replace(MODEL, vocabulary=4096), tokenizer).prompt
    with pytest.raises(Refused, match=f"Token id {max(ids)} is not below") as refused:
        read(request, replace(MODEL, vocabulary=max(ids)), tokenizer)
    assert (refused.value.code.name, refused.value.field) == ("INVALID_ARGUMENT", *prompt)
