"""Text to ids and back: the pieces of a stream are the whole text, and no character is ever split."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from penstock.router.tokenizer import LONG_TEXT, Tokenizer


def byte_level(path):
    """Like GPT-2's, with a begin token that the tokenizer adds by itself."""
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(["déjà vu, 日本語 😀 and so on"] * 4, trainer)
    encoder.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    encoder.save(str(path))
    return Tokenizer(path)


def byte_fallback(path):
    """Like Llama 2's: words, and bytes for what is in no word."""
    words = [
        "<unk>",
        "<s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁he",
        "llo",
        "▁wor",
        "ld",
        "é",
        "日",
    ]
    encoder = Encoder(
        models.BPE(
            vocab={word: n for n, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>"
        )
    )
    encoder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    encoder.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    encoder.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def tokenizer(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def encode(tokenizer, text):
    return asyncio.run(tokenizer.encode(text))


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="▁<"), min_size=1, max_size=30))
def test_the_pieces_of_a_text_are_the_text(tokenizer, text):
    ids = encode(tokenizer, text)
    stream = tokenizer.stream()
    pieces = [stream.add([id]) for id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 250), max_size=80))
def test_any_tokens_give_text_and_never_an_error(tokenizer, ids):
    stream = tokenizer.stream()
    for id in ids:
        stream.add([id])
    stream.flush()


@settings(deadline=None)
@given(st.lists(st.integers(0, 250), max_size=40), st.integers(0, 40), st.integers(1, 5))
def test_a_resumed_stream_says_what_the_first_would_have_said(tokenizer, ids, cut, size):
    whole = tokenizer.stream()
    before = whole.add(ids[:cut])
    after = [whole.add(ids[at : at + size]) for at in range(cut, len(ids), size)]
    resumed = tokenizer.stream(ids[:cut])
    assert [resumed.add(ids[at : at + size]) for at in range(cut, len(ids), size)] == after
    assert resumed.flush() == whole.flush() and isinstance(before, str)


def test_special_tokens_are_added_as_the_tokenizer_says(tmp_path):
    tokenizer = byte_level(tmp_path / "tokenizer.json")
    ids = encode(tokenizer, "and")
    assert ids[0] == 0 and tokenizer.decode(ids) == "and"
    long = "and so on " * LONG_TEXT
    assert tokenizer.decode(encode(tokenizer, long)) == long


@pytest.mark.parametrize("content", [None, "no json", "{}"])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="is no tokenizer"):
        Tokenizer(path)
