"""One sequence on one instance: its tokens, and how many of them have KV."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..handover.values import Commit, Context, End, Epoch, LeaseKey, SamplingParams, TokenRecord
from .phase import Size
from .step import SampleSpec


@dataclass(slots=True)
class Sequence:
    """`computed < len(tokens)` until it ends; the KV of the first `computed` tokens lies in its blocks."""

    session: str
    epoch: Epoch
    prompt: int
    """How many of `tokens` are the prompt's."""
    tokens: list[int]
    params: SamplingParams
    most: int
    """Most tokens that it may have in all, prompt included."""
    prefill_until: int = field(init=False)
    """The tokens that were there when it came: to be prefilled as far as they have no KV."""
    computed: int = 0
    promised: int = 0
    """Blocks set aside for it."""
    admitted: bool = False
    paused: bool = False
    leaves: bool = False
    """It is to be handed over after its prefill: it needs no decode slot here."""

    def __post_init__(self) -> None:
        self.prefill_until = len(self.tokens)

    @classmethod
    def begin(cls, session: str, epoch: Epoch, context: Context, longest: int) -> Sequence:
        """A sequence to be prefilled; `longest` is the model's context in tokens."""
        tokens = [*context.prompt, *context.emitted]
        most = min(len(context.prompt) + context.params.max_tokens, longest)
        return cls(session, epoch, len(context.prompt), tokens, context.params, most)

    @classmethod
    def adopt(cls, lease: LeaseKey, context: Context, commit: Commit, longest: int) -> Sequence:
        """A sequence that arrives with its KV: what the reservation told of it, and what the commit adds."""
        emitted = context.emitted[: commit.first_index]
        assert len(emitted) == commit.first_index, "the commit goes on where the reservation ended"
        grown = replace(context, emitted=emitted + tuple(record.id for record in commit.records))
        sequence = cls.begin(lease.session, lease.epoch, grown, longest)
        sequence.computed = sequence.prefill_until = commit.computed
        sequence.admitted = True
        assert sequence.pending == 1
        return sequence

    @property
    def key(self) -> LeaseKey:
        """Names the sequence in the ledger; a lease that it grew from has the same name."""
        return LeaseKey(self.session, self.epoch)

    @property
    def size(self) -> Size:
        return Size(len(self.tokens), self.most)

    @property
    def pending(self) -> int:
        """Tokens without KV."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Past its prefill: one token a step."""
        return self.computed >= self.prefill_until

    @property
    def made(self) -> int:
        return len(self.tokens) - self.prompt

    def sample_spec(self) -> SampleSpec:
        """How the token after the last one is drawn."""
        return SampleSpec(self.params.temperature, self.params.seed, self.params.choice, self.made)

    def append(self, token: int, ends: frozenset[int]) -> TokenRecord:
        """Take a new token, and say whether it is the last."""
        self.tokens.append(token)
        if token in ends and not self.params.ignore_eos:
            return TokenRecord(token, End.STOP)
        if len(self.tokens) >= self.most:
            return TokenRecord(token, End.LENGTH)
        return TokenRecord(token)
