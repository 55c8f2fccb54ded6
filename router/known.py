"""What a router knows of requests to come by those that went: how long outputs are, and where prefixes lie."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from ..policy import admission, prefix
from ..policy.directory import PrefixDirectory
from ..policy.lengths import OutputLengths
from ..policy.state import InstanceView, Key, RequestShape
from .wire import Call


class Known:
    """Learns from what was dispatched and what ended. Prefixes are followed only where `follows` says so."""

    def __init__(self, follows: bool):
        self._follows = follows
        self._lengths = OutputLengths()
        self._directory = PrefixDirectory()

    def shape(self, call: Call, emitted: Sequence[int], block_size: int) -> RequestShape:
        """The request as policies see it, with what was `emitted` to be computed again."""
        names: list[bytes] = []
        if self._follows and block_size and call.params.prompt_logprobs is None:
            names = _names(call, emitted, block_size)
        blocks = self._directory.blocks(names) if names else {}
        return RequestShape(
            prompt_tokens=len(call.prompt) + len(emitted),
            max_new_tokens=call.params.max_tokens - len(emitted),
            expected_tokens=self._remaining(call, len(emitted)),
            names=tuple(names),
            cached={instance: count * block_size for instance, count in blocks.items()},
            priority=call.priority,
            tenant=call.tenant,
            application=call.application,
        )

    def _remaining(self, call: Call, made: int) -> int | None:
        """As an instance expects it, whose rule draws the same length for the same session."""
        share = admission.share_of(0, call.session)
        length = admission.expected_length(self._lengths.of(call.application), made, share)
        return None if length is None else length - made

    def remaining(self, call: Call, made: int) -> int:
        """Output that it is expected to make yet; at most what it may."""
        expected, most = self._remaining(call, made), call.params.max_tokens - made
        return most if expected is None else min(expected, most)

    def placed(self, request: RequestShape, there: InstanceView) -> None:
        """The instance will have the request's prompt."""
        if request.names:
            self._directory.note(there.key, request.names, there.load.total_blocks)

    def ended(self, call: Call, emitted: Sequence[int], owner: InstanceView | None) -> None:
        """An output is complete; its owner has it cached, behind the prompt."""
        self._lengths.add(call.application, len(emitted))
        if self._follows and owner is not None and owner.load.block_size:
            names = _names(call, emitted[:-1], owner.load.block_size)  # the last token has no KV
            self._directory.note(owner.key, names, owner.load.total_blocks)

    def keep(self, instances: Collection[Key]) -> None:
        """Others are gone."""
        self._directory.keep(instances)


def _names(call: Call, emitted: Sequence[int], block_size: int) -> list[bytes]:
    return prefix.chain(_secret(call.tenant), (*call.prompt, *emitted), block_size)


@lru_cache(maxsize=1024)
def _secret(tenant: str) -> bytes:
    """Of names that no instance sees: they only tell equal prefixes of one tenant."""
    return prefix.secret("router", tenant)
