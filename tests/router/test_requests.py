"""A request becomes a value, or is refused with the code and the field at fault."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_fleet import MODEL

from penstock.handover.values import End
from penstock.proto import inference_pb2 as pb
from penstock.router.refusal import Refused
from penstock.router.wire import NEUTRAL, UNWORKED, UNWORKED_LISTS, read_request

PROMPT = pb.TokenIds(ids=[1, 2, 3])


def read(request, model=MODEL, tokenizer=None):
    return asyncio.run(read_request(request, model, tokenizer))


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


def test_neutral_values_of_what_does_not_work_yet_are_accepted():
    call = read(sampled(**NEUTRAL, logit_bias={}, stop=[], stop_token_ids=[], seed=3))
    assert call.params.seed == 3
    request = pb.GenerateRequest(token_ids=PROMPT, priority=pb.PRIORITY_NORMAL, tenant="t", application="a")
    request.cache_ttl.SetInParent()
    assert read(request).tenant == "t"


def test_what_decides_about_cached_kv_is_read():
    asked = {"tenant": "t", "application": "a", "cache_ttl": {"seconds": 3599, "nanos": 500_000_000}}
    call = read(pb.GenerateRequest(token_ids=PROMPT, **asked))
    assert (call.tenant, call.application, call.cache_ttl_s) == ("t", "a", 3599.5)


VALUES = {
    name: False if name == "echo" else 0.5 if isinstance(neutral, float) else 3
    for name, neutral in NEUTRAL.items()
}
VALUES |= {"echo": True, "logprobs": 0, "prompt_logprobs": 0, "structured": pb.StructuredOutput(regex="a")}
VALUES |= {"logit_bias": {1: 1.0}, "stop": ["x"], "stop_token_ids": [1]}


@pytest.mark.parametrize("name", [*NEUTRAL, *UNWORKED, *UNWORKED_LISTS])
def test_what_does_not_work_yet_is_refused_by_name(name):
    with pytest.raises(Refused) as refused:
        read(sampled(**{name: VALUES[name]}))
    assert (refused.value.code.name, refused.value.field) == ("UNIMPLEMENTED", f"sampling.{name}")


def test_every_sampling_field_is_either_read_or_refused():
    read_here = {"temperature", "max_tokens", "ignore_eos", "seed"}
    known = read_here | {*NEUTRAL, *UNWORKED, *UNWORKED_LISTS}
    assert known == {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}


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
        (pb.GenerateRequest(token_ids=PROMPT, priority=9), "INVALID_ARGUMENT", "priority"),
        (pb.GenerateRequest(token_ids=PROMPT, priority=pb.PRIORITY_HIGH), "UNIMPLEMENTED", "priority"),
        (pb.GenerateRequest(token_ids=PROMPT, tenant="x" * 129), "INVALID_ARGUMENT", "tenant"),
        (pb.GenerateRequest(token_ids=PROMPT, application="x" * 129), "INVALID_ARGUMENT", "application"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": -1}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"nanos": -1}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": 3601}), "INVALID_ARGUMENT", "cache_ttl"),
        (pb.GenerateRequest(token_ids=PROMPT, cache_ttl={"seconds": 2**62}), "INVALID_ARGUMENT", "cache_ttl"),
        (sampled(max_tokens=0), "INVALID_ARGUMENT", "sampling.max_tokens"),
        (sampled(max_tokens=-1), "INVALID_ARGUMENT", "sampling.max_tokens"),
        (sampled(temperature=-0.1), "INVALID_ARGUMENT", "sampling.temperature"),
        (sampled(temperature=float("inf")), "INVALID_ARGUMENT", "sampling.temperature"),
        (sampled(n=0), "INVALID_ARGUMENT", "sampling.n"),
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
        ((1, 2, 3, 4, 5), False, End.LENGTH),
        ((4, 9), False, End.STOP),
        ((4, 9), True, None),
    ],
)
def test_a_resume_with_all_tokens_is_ended(ids, ignore_eos, ended):
    request = resumed(ids=ids, sampling=pb.SamplingParams(max_tokens=5, ignore_eos=ignore_eos))
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
