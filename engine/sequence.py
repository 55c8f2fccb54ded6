"""One sequence on one instance: its tokens, and how many of them have KV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..handover.values import (
    Commit,
    Context,
    End,
    Epoch,
    LeaseKey,
    Logprobs,
    SamplingParams,
    TokenRecord,
)
from ..policy.state import Priority
from .phase import Size
from .step import Logbook, SampleSpec, Shaping
from .tally import Tally

if TYPE_CHECKING:
    from .grammar import Constraint  # its library is needed where a grammar is


@dataclass(slots=True)
class Sequence:
    """`computed < len(tokens) + owed` until it ends; the KV of the first `computed` tokens lies in its blocks."""

    session: str
    epoch: Epoch
    prompt: int
    """How many of `tokens` are the prompt's."""
    tokens: list[int]
    params: SamplingParams
    most: int
    """Most tokens that it may have in all, prompt included."""
    ends: frozenset[int] = frozenset()
    """Tokens that end it."""
    key: LeaseKey = field(init=False)
    """Names the sequence in the ledger; a lease that it grew from has the same name."""
    tally: Tally | None = field(init=False)
    """Kept where penalties look at it."""
    shaped: bool = field(init=False)
    """Whether its parameters may ever change logits."""
    constraint: Constraint | None = None
    """Where a grammar rules its output: the state after the tokens so far."""
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    """Of the prompt from its second token on, as far as they are computed; they leave with the first token."""
    prefill_until: int = field(init=False)
    """The tokens that were there when it came: to be prefilled as far as they have no KV."""
    computed: int = 0
    """Tokens that have KV, or will when the steps in flight have landed."""
    owed: int = 0
    """Tokens behind the last one that steps in flight are drawing."""
    ended: bool = False
    """It has its last token."""
    room: int = 0
    """Blocks that it is expected to come to have."""
    admitted: bool = False
    paused: bool = False
    preempted: bool = False
    """It gave its memory back, and is prefilled again as far as it had come."""
    loading: bool = False
    """Some of its blocks are on their way from host memory."""
    limit: int | None = None
    """Most tokens of KV while it is being handed over: the destination has no room for more."""
    copying: bool = False
    """A handover out is under way: once past its prefill it needs no decode slot here."""
    kept_from: int | None = None
    """Where a sliding window passes over its blocks: the first that a handover still needs; None where none does."""
    locked: bool = False
    """A transfer reads its blocks."""
    salt: str = ""
    """Whose KV it may share."""
    application: str = ""
    cache_ttl_s: float = 0.0
    """How long its KV is to stay cached when it has gone."""
    priority: int = Priority.NORMAL
    names: list[bytes] = field(default_factory=list)
    """Of its leading full blocks, as far as they were needed."""
    asked: bool = False
    """What is cached of it was looked for, and counted."""
    published: int = 0
    """How many blocks the pool was told to be full and computed."""

    def __post_init__(self) -> None:
        self.prefill_until = len(self.tokens)
        self.key = LeaseKey(self.session, self.epoch)
        self.tally = self._new_tally()
        ruled = self.tally is not None or self.constraint is not None
        self.shaped = bool(ruled or self.params.min_tokens or self.params.logit_bias or self._filtered)

    def rename(self, epoch: Epoch) -> None:
        """It is owned under another epoch from here on."""
        self.epoch, self.key = epoch, LeaseKey(self.session, epoch)

    def _new_tally(self) -> Tally | None:
        params, emitted = self.params, self.tokens[self.prompt :]
        if params.repetition_penalty != 1:
            return Tally(self.tokens[: self.prompt], emitted)
        return Tally((), emitted) if params.presence_penalty or params.frequency_penalty else None

    @classmethod
    def begin(
        cls,
        session: str,
        epoch: Epoch,
        context: Context,
        longest: int,
        ends: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ) -> Sequence:
        """A sequence to be prefilled; `longest` is the model's context in tokens, `ends` are its end tokens.

        `constraint` is its grammar's state after the output of `context`.
        """
        params = context.params
        tokens = [*context.prompt, *context.emitted]
        most = min(len(context.prompt) + params.max_tokens, longest)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else ends)
        return cls(
            session,
            epoch,
            len(context.prompt),
            tokens,
            params,
            most,
            ends,
            constraint,
            salt=context.salt,
            application=context.application,
            cache_ttl_s=context.cache_ttl_s,
            priority=context.priority,
        )

    @classmethod
    def adopt(
        cls,
        lease: LeaseKey,
        context: Context,
        commit: Commit,
        longest: int,
        ends: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
        names: Iterable[bytes] = (),
    ) -> Sequence:
        """A sequence that arrives with its KV: what the reservation told of it, and what the commit adds.

        `constraint` is its grammar's state after the reservation's output, `names` are those of the full blocks of the
        reservation's context.
        """
        emitted = context.emitted[: commit.first_index]
        assert len(emitted) == commit.first_index, "the commit goes on where the reservation ended"
        grown = replace(context, emitted=emitted + tuple(record.id for record in commit.records))
        if constraint is not None:
            for token in grown.emitted[len(context.emitted) :]:
                constraint.take(token)
        sequence = cls.begin(lease.session, lease.epoch, grown, longest, ends, constraint)
        sequence.computed = sequence.prefill_until = commit.computed
        sequence.admitted = True
        sequence.names = list(names)
        assert sequence.pending == 1
        return sequence

    @property
    def context(self) -> Context:
        """What another instance must know to go on with it."""
        prompt, emitted = tuple(self.tokens[: self.prompt]), tuple(self.tokens[self.prompt :])
        return Context(
            prompt, emitted, self.params, self.salt, self.application, self.cache_ttl_s, self.priority
        )

    @property
    def size(self) -> Size:
        return Size(len(self.tokens) + self.owed, self.most)

    @property
    def pending(self) -> int:
        """Tokens without KV, and with none on its way."""
        return len(self.tokens) + self.owed - self.computed

    @property
    def spent(self) -> bool:
        """It has its last token, or a step in flight draws it: that much is known beforehand."""
        return len(self.tokens) + self.owed >= self.most

    @property
    def looks_back(self) -> bool:
        """What may come next depends on the tokens before, as the host keeps them: grammars and penalties."""
        return self.constraint is not None or self.tally is not None

    @property
    def decoding(self) -> bool:
        """Past its prefill: one token a step."""
        return self.computed >= self.prefill_until

    def give_back(self) -> None:
        """Its KV is gone: all tokens that it has are to be prefilled again, and none of them is drawn again."""
        assert not self.owed
        self.computed = self.published = self.room = 0
        self.prefill_until = len(self.tokens)
        self.admitted = self.asked = False
        self.preempted = True

    @property
    def made(self) -> int:
        return len(self.tokens) - self.prompt

    def sample_spec(self) -> SampleSpec:
        """How the token after the last one is drawn, be that still on its way."""
        params, position = self.params, self.made + self.owed
        shaping = self._shaping(position) if self.shaped else None
        return SampleSpec(params.temperature, params.seed, params.choice, position, shaping)

    @property
    def _filtered(self) -> bool:
        params = self.params
        return params.temperature > 0 and (params.top_p < 1 or params.top_k > 0 or params.min_p > 0)

    def _shaping(self, position: int) -> Shaping | None:
        params = self.params
        barred = tuple(self.ends) if position < params.min_tokens else ()
        allowed = None if self.constraint is None else self.constraint.allowed()
        if not (
            self._filtered or barred or params.logit_bias or self.tally is not None or allowed is not None
        ):
            return None
        return Shaping(params, self.tally, barred, allowed)

    @property
    def needs_whole_prompt(self) -> bool:
        """Every token of the prompt must be computed here, none read from a cached prefix: it is to be told of each."""
        return self.params.prompt_logprobs is not None and self.made + self.owed == 0

    def logbook(self, start: int, tokens: int) -> Logbook | None:
        """What a step that feeds so many tokens from `start` on is to tell of."""
        params, end = self.params, start + tokens
        if params.logprobs is None and params.prompt_logprobs is None:
            return None
        known = self.tokens[start + 1 : min(end + 1, self.prompt)] if self.needs_whole_prompt else ()
        draws = params.logprobs is not None and end == len(self.tokens) + self.owed
        if not (known or draws):
            return None
        return Logbook(known, params.prompt_logprobs or 0, params.logprobs if draws else None)

    def log(self, start: int, told: Logbook | None) -> None:
        """Keep what a step from `start` on told of the prompt."""
        if told is not None and told.known:
            self.prompt_logprobs[start:] = told.of_known

    def append(self, token: int, logprobs: Logprobs | None = None) -> TokenRecord:
        """Take a new token, and say whether it is the last."""
        self.tokens.append(token)
        if self.tally is not None:
            self.tally.add(token)
        end = End.LENGTH if len(self.tokens) >= self.most else None
        end = End.STOP if token in self.ends else end
        if self.constraint is not None and self.constraint.lost:
            end = End.ASTRAY
        self.ended = end is not None
        if self.constraint is not None and end is None:
            self.constraint.take(token)
        prompt, self.prompt_logprobs = tuple(self.prompt_logprobs), []
        return TokenRecord(token, end, logprobs, prompt)
