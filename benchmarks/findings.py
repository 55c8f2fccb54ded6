"""What came of a verification: streams beside the reference, and in a sentence each what may not be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..engine.checkpoint import read_checkpoint
from ..handover.values import SamplingParams
from ..proto.inference_pb2 import FINISH_REASON_STOP
from .compare import compare_shaped, wrong_logprobs
from .exercise import Stream
from .figures import progress
from .held import Text
from .plain import Asked
from .reference import Reference
from .trials import MOVED_WITHIN, OUTPUT_TOKENS

MUST_BE_0 = (
    "mismatched",
    "logprobs_wrong",
    "held_broken",
    "duplicated",
    "missing",
    "leaked_blocks",
    "crossed_tokens",
)
LEAST_MOVED = 0.8
"""Of the moves where memory is ample and there was time; a single one that is not done is none too many."""
MOST_TIES = 1e-4
"""Of all tokens; a single tie is none too many however few they are."""
MOST_RECOVERED = 0.05
"""Of the requests. A busy machine may silence an instance for a moment, but recovery must not hide lost handovers."""
LEAST_SENSITIVITY = 0.9
"""Of the streams in which a block was damaged; a single one that does not notice is none too many."""
MANY = 32
"""Requests, from which on a kind that is drawn must have occurred."""
EXERCISED = {
    "hit_tokens": "the prefix cache",
    "preemptions": "sequences that give their memory back",
    "swaps": "host memory",
    "held": "structured output",
    "logprobs": "log-probabilities",
}
"""Figures, and what nothing is shown of where they are 0."""
UNITS = {
    "requests": "requests",
    "tokens": "tokens",
    "ties": "tokens",
    "mismatched": "tokens",
    "logprobs": "log-probabilities",
    "logprobs_wrong": "log-probabilities",
    "held": "outputs",
    "held_broken": "outputs",
    "duplicated": "tokens",
    "missing": "tokens",
    "leaked_blocks": "blocks",
    "hit_tokens": "tokens",
    "crossed_tokens": "tokens",
    "preemptions": "sequences",
    "swaps": "blocks",
    "astray_blocks": "blocks",
    "moves_done": "moves",
    "moves_aborted": "moves",
    "moves_late": "moves",
    "moves_done_tiny": "moves",
    "moves_aborted_tiny": "moves",
    "moves_late_tiny": "moves",
    "cancelled": "requests",
    "recoveries": "recoveries",
    "restarts": "instances",
    "damaged": "streams",
    "sensitivity": "1",
}

Say = Callable[[str], None]


def failures(figures: dict[str, float], ours: bool) -> Iterator[str]:
    """What the figures show to be wrong; `ours`: the checkpoints are our own, which notice damage."""
    for name in MUST_BE_0:
        if figures[name]:
            yield f"{name} is {figures[name]:g} and must be 0"
    drawn = figures["moves_done"] + figures["moves_aborted"]
    few = figures["moves_aborted"] > 1 and figures["moves_done"] < LEAST_MOVED * drawn
    if few or drawn > figures["moves_done"] == 0:
        yield f"only {figures['moves_done']:g} of {drawn:g} moves were done"
    if figures["astray_blocks"]:
        yield f"{figures['astray_blocks']:g} blocks took another transport than the one asked for"
    if figures["restarts"]:
        yield f"{figures['restarts']:g} instances were started anew, though nothing ended them"
    if figures["recoveries"] > max(1, MOST_RECOVERED * figures["requests"]):
        yield f"{figures['recoveries']:g} recoveries in {figures['requests']:g} requests, though nothing failed"
    if figures["ties"] > max(1, MOST_TIES * figures["tokens"]):
        yield f"{figures['ties']:g} ties in {figures['tokens']:g} tokens are a defect"
    unnoticed = figures["damaged"] * (1 - figures["sensitivity"])
    if ours and unnoticed > max(1.5, figures["damaged"] * (1 - LEAST_SENSITIVITY)):
        yield f"only {figures['sensitivity']:.0%} of the streams would show a damaged KV block"
    if ours and figures["requests"] >= MANY:
        for name in EXERCISED:
            if not figures[name]:
                yield f"{name} is 0, so {figures['requests']:g} requests show nothing of {EXERCISED[name]}"


def arrivals(streams: Sequence[Stream], tiny: bool) -> Counter[str]:
    """What the streams show by themselves. In a `tiny` cache a move may find no room: those count apart."""
    where = "_tiny" if tiny else ""
    moves = {
        f"moves_done{where}": sum(stream.moves_done for stream in streams),
        f"moves_aborted{where}": sum(stream.moves_aborted for stream in streams),
        f"moves_late{where}": sum(stream.moves_late for stream in streams),
    }
    return Counter(moves) + Counter(
        requests=sum(stream.choice == 0 for stream in streams),
        tokens=sum(len(stream.tokens) for stream in streams),
        duplicated=sum(stream.duplicated for stream in streams),
        missing=sum(stream.missing for stream in streams),
        cancelled=sum(stream.cancelled for stream in streams if stream.choice == 0),
        recoveries=sum(stream.recoveries for stream in streams),
    )


def beside_reference(
    folder: Path, streams: Sequence[Stream], counts: Counter[str], say: Say
) -> Iterator[bool]:
    """Count what is wrong; for each long stream that no parameter narrows, whether a damaged block would change it."""
    reference = Reference(folder)
    spec = read_checkpoint(folder)
    text = Text(folder, spec.vocab, spec.eos) if (folder / "tokenizer.json").exists() else None
    with progress("comparing", len(streams)) as advance:
        for stream in streams:
            trial, tokens = stream.trial, stream.tokens
            if tokens:
                logits = reference.logits(trial.prompt, tokens)
                asked = _asked(stream, text, spec.eos)
                found = compare_shaped(tokens, logits, asked)
                counts.update(ties=found.ties, mismatched=found.mismatched)
                counts.update(_logprobs(stream, reference, logits))
                counts.update(_held(stream, text))
                if found.mismatched:
                    right = found.tokens - found.mismatched
                    which = f"{trial.request_id}, choice {stream.choice}"
                    say(f"{which}: wrong from token {right} of {found.tokens} on; {trial.shape}")
            if len(tokens) >= OUTPUT_TOKENS[0] and _is_plain(stream):
                yield _notices_damage(reference, stream)
            advance(1)


def _logprobs(stream: Stream, reference: Reference, logits: torch.Tensor) -> Counter[str]:
    """How many log-probabilities were told where they were asked for, and how many of them are not the reference's."""
    found, shape, prompt = Counter[str](), stream.trial.shape, stream.trial.prompt
    if shape.logprobs is not None:
        wrong = wrong_logprobs(stream.logprobs, stream.tokens, logits, shape.logprobs)
        found.update(logprobs=len(stream.logprobs), logprobs_wrong=wrong)
    if shape.prompt_logprobs is not None and stream.choice == 0:
        rows = reference.logits(prompt[:1], prompt[1:]) if len(prompt) > 1 else logits[:0]
        told = [one for again in stream.prompts for one in again]
        wrong = wrong_logprobs(told, prompt[1:], rows, shape.prompt_logprobs)
        found.update(logprobs=len(told), logprobs_wrong=wrong)
    return found


def _is_plain(stream: Stream) -> bool:
    """No parameter narrows it, and it is no copy: the choices of a greedy trial are all the same."""
    trial = stream.trial
    copy = stream.choice > 0 and trial.temperature == 0
    return trial.shape == SamplingParams() and trial.held is None and not copy


def _notices_damage(reference: Reference, stream: Stream) -> bool:
    trial, tokens = stream.trial, stream.tokens
    draw = random.Random(trial.seed)
    at = draw.randrange(1, max(2, int(MOVED_WITHIN * len(tokens))))
    logits = reference.damaged_logits(trial.prompt, tokens, at, draw.getrandbits(32))
    return compare_shaped(tokens, logits, Asked(trial.params(stream.choice), trial.prompt), at).mismatched > 0


def _asked(stream: Stream, text: Text | None, ends: frozenset[int]) -> Asked:
    trial, masks = stream.trial, None
    if trial.held is not None and text is not None:
        masks = text.masks(trial.held, stream.tokens)
    return Asked(trial.params(stream.choice), trial.prompt, ends, masks)


def _held(stream: Stream, text: Text | None) -> Counter[str]:
    """Outputs that ended as their constraint let them, and those of them that do not satisfy it."""
    held = stream.trial.held
    if held is None or text is None or stream.end != FINISH_REASON_STOP:
        return Counter()
    return Counter(held=1, held_broken=not text.satisfies(held, stream.tokens))
