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
    room: int = 0
    """Blocks that it is expected to come to have."""
    admitted: bool = False
    paused: bool = False
    preempted: bool = False
    """It gave its memory back, and is prefilled again as far as it had come."""
    limit: int | None = None
    """Most tokens of KV while it is being handed over: the destination has no room for more."""
    copying: bool = False
    """A handover out is under way."""
    locked: bool = False
    """A transfer reads its blocks."""
    salt: str = ""
    """Whose KV it may share."""
    application: str = ""
    cache_ttl_s: float = 0.0
    """How long its KV is to stay cached when it has gone."""
    names: list[bytes] = field(default_factory=list)
    """Of its leading full blocks, as far as they were needed."""
    published: int = 0
    """How many blocks the pool was told to be full and computed."""

    def __post_init__(self) -> None:
        self.prefill_until = len(self.tokens)

    @classmethod
    def begin(cls, session: str, epoch: Epoch, context: Context, longest: int) -> Sequence:
        """A sequence to be prefilled; `longest` is the model's context in tokens."""
        tokens = [*context.prompt, *context.emitted]
        most = min(len(context.prompt) + context.params.max_tokens, longest)
        return cls(
            session,
            epoch,
            len(context.prompt),
            tokens,
            context.params,
            most,
            salt=context.salt,
            application=context.application,
            cache_ttl_s=context.cache_ttl_s,
        )

    @classmethod
    def adopt(
        cls, lease: LeaseKey, context: Context, commit: Commit, longest: int, names: list[bytes]
    ) -> Sequence:
        """A sequence that arrives with its KV: what the reservation told of it, and what the commit adds.

        `names` are those of full blocks of the reservation's context.
        """
        emitted = context.emitted[: commit.first_index]
        assert len(emitted) == commit.first_index, "the commit goes on where the reservation ended"
        grown = replace(context, emitted=emitted + tuple(record.id for record in commit.records))
        sequence = cls.begin(lease.session, lease.epoch, grown, longest)
        sequence.computed = sequence.prefill_until = commit.computed
        sequence.admitted = True
        sequence.names = names
        assert sequence.pending == 1
        return sequence

    @property
    def key(self) -> LeaseKey:
        """Names the sequence in the ledger; a lease that it grew from has the same name."""
        return LeaseKey(self.session, self.epoch)

    @property
    def context(self) -> Context:
        """What another instance must know to go on with it."""
        prompt, emitted = tuple(self.tokens[: self.prompt]), tuple(self.tokens[self.prompt :])
        return Context(prompt, emitted, self.params, self.salt, self.application, self.cache_ttl_s)

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

    def give_back(self) -> None:
        """Its KV is gone: all tokens that it has are to be prefilled again, and none of them is drawn again."""
        self.computed = self.published = self.room = 0
        self.prefill_until = len(self.tokens)
        self.admitted = False
        self.preempted = True

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
