"""A chat becomes the text, and the ids, that `transformers` makes of it with the same files."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import models, pre_tokenizers, processors
from toy_fleet import MODEL

from penstock.proto import inference_pb2 as pb
from penstock.router.chat import BrokenTemplate, ChatTemplate, read_chat_template
from penstock.router.refusal import Refused
from penstock.router.tokenizer import Tokenizer
from penstock.router.wire import read_request

MARKED = """{% for message in messages %}
  <|{{ message['role'] }}|>
{{ message.content | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
RICH = (
    "{% set ns = namespace(seen=0) %}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{{ messages[0].content }}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'tool' %}{% continue %}{% endif %}{% set ns.seen = ns.seen + 1 %}"
    "{{ m | tojson }}{{ m | tojson(indent=2) }}{% generation %}{% set inner = m.content %}{{ inner }}"
    "{% endgeneration %}{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is defined }}{{ inner is defined }}"
    "{% if ns.seen > 3 %}{% break %}{% endif %}{% endfor %}{{ ns.seen }}{{ unk_token is defined }}"
)
USER = {"role": "user", "content": "Why is <b> the & sky blue? ünï"}
ROLES = st.sampled_from(("user", "assistant", "system", "tool"))
CHATS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=12)}), min_size=1, max_size=6
)


def write(folder: Path, template: str | list[dict[str, str]] | None, own_file: str | None = None) -> Path:
    """A checkpoint's tokenizer files."""
    words = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "Ġ"]
    encoder = Encoder(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    encoder.add_special_tokens(["<unk>", "<s>", "</s>"])
    encoder.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "chat_template": template}
    eos = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False}
    config |= {"eos_token": {**eos, "single_word": False, "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if own_file is not None:
        (folder / "chat_template.jinja").write_text(own_file)
    return folder


def rendered_by_transformers(folder: Path, messages: list[dict[str, str]]) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.fixture(scope="module", params=[MARKED, STRICT, RICH], ids=["marked", "strict", "rich"])
def pair(request, tmp_path_factory):
    """The same files in `transformers` and here."""
    from transformers import AutoTokenizer

    folder = write(tmp_path_factory.mktemp("tokenizer"), request.param)
    return AutoTokenizer.from_pretrained(folder), read_chat_template(folder)


@given(chat=CHATS)
@settings(max_examples=50, deadline=None)
def test_any_chat_is_laid_out_as_transformers_does_or_refused_where_it_does(pair, chat):
    theirs, ours = pair
    try:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001  whatever it raises, ours is a ValueError that says the same
        with pytest.raises(ValueError) as caught:
            ours.render(chat)
        assert str(caught.value) == str(error)
    else:
        assert ours.render(chat) == expected


@pytest.mark.parametrize(
    "template, own_file",
    [
        (MARKED, None),
        (None, MARKED),
        (STRICT, MARKED),
        ([{"name": "tool_use", "template": STRICT}, {"name": "default", "template": MARKED}], None),
    ],
)
def test_the_template_is_found_where_transformers_finds_it(tmp_path, template, own_file):
    folder = write(tmp_path, template, own_file)
    found = read_chat_template(folder)
    assert found is not None and found.render([USER]) == rendered_by_transformers(folder, [USER])


def test_a_checkpoint_without_a_template_has_none(tmp_path):
    assert read_chat_template(tmp_path) is None
    assert read_chat_template(write(tmp_path, None)) is None
    assert read_chat_template(write(tmp_path, [{"name": "tool_use", "template": STRICT}])) is None


def test_files_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path, MARKED)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is not valid JSON"):
        read_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config.json must hold a JSON object"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].clear() }}",
        "{{ nothing.more }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_box(source):
    with pytest.raises(ValueError):
        print(ChatTemplate(source, {}).render([USER]))  # noqa: T201  a failure shows what it got


def test_a_broken_template_says_where():
    with pytest.raises(BrokenTemplate, match="line 2"):
        ChatTemplate("fine\n{% if %}", {}).render([USER])


def asked(messages, folder: Path | None):
    tokenizer = None if folder is None else Tokenizer(folder / "tokenizer.json")
    chat = pb.Chat(messages=[pb.Message(**message) for message in messages])
    model = replace(MODEL, vocabulary=200)
    (call,) = asyncio.run(read_request(pb.GenerateRequest(chat=chat), model, tokenizer))
    return call


def test_the_prompt_of_a_chat_has_the_ids_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    folder = write(tmp_path, STRICT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert asked([USER], folder).prompt == tuple(expected)
    assert expected.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template, messages, code, field, says",
    [
        (None, [USER], grpc.StatusCode.FAILED_PRECONDITION, "chat", "no chat template"),
        ("{% if %}", [USER], grpc.StatusCode.FAILED_PRECONDITION, "chat", "is broken"),
        (STRICT, [USER, USER], grpc.StatusCode.INVALID_ARGUMENT, "chat.messages", "Roles must alternate"),
        (STRICT, [], grpc.StatusCode.INVALID_ARGUMENT, "chat.messages", "at least one message"),
        (STRICT, [{"content": "x"}], grpc.StatusCode.INVALID_ARGUMENT, "chat.messages", "names its `role`"),
        ("{# #}", [USER], grpc.StatusCode.INVALID_ARGUMENT, "chat", "empty"),
    ],
)
def test_a_chat_that_cannot_be_laid_out_is_refused(tmp_path, template, messages, code, field, says):
    folder = write(tmp_path, template)
    with pytest.raises(Refused, match=says) as caught:
        asked(messages, folder)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_a_chat_for_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(Refused, match="has no tokenizer") as caught:
        asked([USER], None)
    assert (caught.value.code, caught.value.field) == (grpc.StatusCode.FAILED_PRECONDITION, "chat")
