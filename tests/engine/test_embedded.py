"""The embedded checkpoint: small, loadable by anyone, and English enough to read."""

import string

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from penstock.benchmarks.corpus import Corpus, read_corpus
from penstock.benchmarks.train_embedded import EMBEDDED, encode, held_out_losses

TEXTS = [
    "Return the number of items in the list.",
    " leading space,\ttabs\nand\r\nnewlines  doubled ",
    "naïve café, Ελληνικά, русский, 日本語, עברית",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 cost a few bytes",
    "\x00\x7f control",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The modules at the top of the standard library, a quarter of the text that the checkpoint was trained on."""
    return read_corpus(lambda name: "/" not in name)


def test_checkpoint_is_small_and_its_weights_are_bfloat16():
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 8_000_000
    with safe_open(EMBEDDED / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}


def test_model_has_one_to_four_million_parameters_and_16384_positions(model):
    assert 1_000_000 <= model.num_parameters() <= 4_000_000
    assert model.config.max_position_embeddings == 16384
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.vocab_size == 4096


def test_end_token_is_the_tokenizers_in_every_file(tokenizer, model):
    assert GenerationConfig.from_pretrained(EMBEDDED).eos_token_id == tokenizer.eos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id != tokenizer.bos_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trips_text(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert max(ids) < 4096
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizers_alone_gives_the_ids_of_transformers(tokenizer, text):
    assert Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")).encode(text).ids == tokenizer(text).input_ids


def test_held_out_loss_is_below_4_at_early_and_late_positions(tokenizer, model, corpus):
    """3.75 on this part of the text that was held out. Other Pythons have other text, and hold out the same of it."""
    losses = held_out_losses(model, encode(tokenizer, corpus.held_out))
    assert losses.mean() < 4.0
    assert losses[128:].mean() < 4.0


def test_sampled_text_is_mostly_words(tokenizer, model, corpus):
    known = {word for document in corpus.training for word in _words(document)}
    torch.manual_seed(0)
    prompt = tokenizer("Return the", return_tensors="pt")
    ids = model.generate(
        **prompt, do_sample=True, temperature=0.8, top_k=0, max_new_tokens=200, min_new_tokens=200
    )
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    words = _words(text)
    assert sum(character in string.printable for character in text) > 0.97 * len(text)
    assert len(words) > 60
    assert sum(word in known for word in words) > 0.7 * len(words)


def _words(text: str) -> list[str]:
    return [word.strip(string.punctuation).lower() for word in text.split()]


def test_corpus_is_prose_without_repetition(corpus):
    paragraphs = [p for document in corpus.training + corpus.held_out for p in document.split("\n\n")]
    assert len(paragraphs) > 3000
    assert len(set(paragraphs)) == len(paragraphs)
    assert not [p for p in paragraphs if ">>>" in p or "copyright" in p.lower() or "\n" in p]


def test_held_out_text_does_not_depend_on_what_else_is_read(corpus):
    alone = read_corpus(lambda name: name == "argparse.py")
    both = read_corpus(lambda name: name in ("argparse.py", "zipfile.py"))
    assert alone.held_out == both.held_out[: len(alone.held_out)]
    assert set(alone.training) <= set(both.training)
