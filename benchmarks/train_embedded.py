"""Trains the embedded checkpoint (engine/embedded) on the text that ships with Python itself.

    python -m penstock.benchmarks.train_embedded --minutes 30

Corpus: docstrings and comments of the running interpreter's standard library (`corpus.py`), a module
a document.
Model: a Llama of 2.4 million parameters, float32 on the CPU; matrices by Muon, the rest by AdamW.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from .corpus import read_corpus

EMBEDDED = Path(__file__).parent.parent / "engine" / "embedded"
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
VOCABULARY = 4096
POSITIONS = 16384
EVALUATED_WINDOW = 512
RESUMED_AT = (
    0.6  # share of the schedule behind a run that is resumed: full windows and a falling rate are left
)
INPUT_NOISE = 0.05  # share of input tokens replaced at random: the corpus is passed several times


# ---- tokenizer and model


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` entries that puts BOS before a prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    assert (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) == (BOS_ID, EOS_ID)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents' ids in one row, each as BOS, text, EOS."""
    batch = tokenizer.backend_tokenizer.encode_batch(documents)
    return torch.tensor([token for encoding in batch for token in [*encoding.ids, EOS_ID]])


@torch.inference_mode()
def held_out_losses(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token at each of 511 positions, over disjoint windows of 512. [511]"""
    count = len(tokens) // EVALUATED_WINDOW
    windows = tokens[: count * EVALUATED_WINDOW].view(count, EVALUATED_WINDOW)
    losses = [_cross_entropy(model, rows, rows, "none") for rows in windows.split(4)]
    return torch.cat(losses).mean(0)


def _cross_entropy(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, reduction: str
) -> torch.Tensor:
    """Loss of predicting targets[:, 1:] from inputs[:, :-1]; both [B, S], result [B, S - 1] or a scalar mean."""
    logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets[:, 1:].flatten(), reduction=reduction
    )
    return losses.view(len(inputs), -1) if reduction == "none" else losses


# ---- optimisation


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al., 2024), in float32: torch's own works in
    bfloat16, which CPUs without its instructions emulate sixty times slower."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonal(weight.grad.lerp(velocity, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps towards the nearest semi-orthogonal matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.T


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1),
    ]


def learning_rate_factor(progress: float) -> float:
    """Warm-up over the first 2 %, then constant, then linear to 0 over the last 50 %."""
    return min(progress / 0.02 + 0.02, 1.0, (1.0 - progress) / 0.5 + 0.01)


def batch_shape(progress: float) -> tuple[int, int]:
    """(sequences, tokens each): short windows first, which cost less; the last third in full."""
    return (16, 128) if progress < 0.3 else (8, 256) if progress < 0.6 else (4, 512)


@dataclass
class Training:
    """What the training has done so far."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def train(
    model: LlamaForCausalLM,
    tokens: torch.Tensor,
    limit_s: float,
    seed: int,
    begin: float,
    report: Callable[[Training], None],
) -> Training:
    """Trains `model` in place for `limit_s` seconds, through the schedule from `begin` (0 to 1) to its end;
    `report` is called every 200 steps."""
    generator = torch.Generator().manual_seed(seed)
    algorithms = optimizers(model)
    peaks = [a.param_groups[0]["lr"] for a in algorithms]
    done, started = Training(), time.monotonic()
    while done.seconds < limit_s:
        progress = begin + (1 - begin) * done.seconds / limit_s
        for algorithm, peak in zip(algorithms, peaks, strict=True):
            algorithm.param_groups[0]["lr"] = peak * learning_rate_factor(progress)
        count, length = batch_shape(progress)
        starts = torch.randint(len(tokens) - length, (count, 1), generator=generator)
        rows = tokens[starts + torch.arange(length + 1)]
        noise = torch.randint(VOCABULARY, rows.shape, generator=generator)
        noisy = torch.rand(rows.shape, generator=generator) < INPUT_NOISE
        _cross_entropy(model, torch.where(noisy, noise, rows), rows, "mean").backward()
        for algorithm in algorithms:
            algorithm.step()
            algorithm.zero_grad()
        done.step += 1
        done.tokens += count * length
        done.seconds = time.monotonic() - started
        if done.step % 200 == 0:
            report(done)
    return done


# ---- the command


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the Hugging Face layout, weights in bfloat16; `model` itself stays in float32."""
    tokenizer.save_pretrained(folder)
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.bfloat16().save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID).save_pretrained(folder)


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="Wall-clock limit; the schedule spans it.")
@click.option("--seed", default=1, show_default=True, help="Seed of the initial weights and of the batches.")
@click.option(
    "--resume", type=click.Path(path_type=Path, exists=True), help="Folder of a stopped run to finish."
)
@click.option("--out", default=EMBEDDED, type=click.Path(path_type=Path), help="Folder to write.")
def main(minutes: float, seed: int, resume: Path | None, out: Path) -> None:
    """Train the embedded checkpoint on the standard library's docstrings and comments."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    disable_progress_bar()
    corpus = read_corpus()
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(resume) if resume else train_tokenizer(corpus.training)
    )
    tokens, held_out = encode(tokenizer, corpus.training), encode(tokenizer, corpus.held_out)
    model = LlamaForCausalLM.from_pretrained(resume, dtype=torch.float32) if resume else make_model()
    click.echo(f"{len(tokens)} tokens, {len(held_out)} more held out; {model.num_parameters()} parameters")

    def report(done: Training) -> None:
        losses = held_out_losses(model, held_out[: 16 * EVALUATED_WINDOW])
        click.echo(f"step {done.step}, {done.tokens} tokens, {done.seconds:.0f} s: loss {losses.mean():.3f}")
        save(model, tokenizer, out)

    done = train(model, tokens, minutes * 60, seed, RESUMED_AT if resume else 0.0, report)
    save(model, tokenizer, out)
    losses = held_out_losses(model, held_out)
    click.echo(
        f"{done.step} steps, {done.tokens} tokens, {done.seconds:.0f} s; held-out loss, nats per token:"
    )
    for first, last in ((0, 31), (32, 127), (128, 511), (0, 511)):
        click.echo(f"  positions {first} to {last}: {losses[first : last + 1].mean():.3f}")


if __name__ == "__main__":
    main()
