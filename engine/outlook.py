"""What an instance expects of its memory, as its load views tell it to the policies of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..policy import admission
from ..policy.admission import Need


@dataclass(frozen=True, slots=True)
class Outlook:
    """See the fields of the same names of `LoadView`."""

    peak_blocks: int = 0
    head_blocks: int = 0
    high_priority: int = 0
    decoding: int = 0
    decode_tokens: int = 0


def memory(inside: Sequence[Need], first: Need | None, block_size: int, overlap: int) -> tuple[int, int]:
    """Blocks that those inside need at their peak, and how many more with the first that waits.

    `overlap` counts blocks that several hold, for each but one of them.
    """
    peak = admission.predicted(inside, block_size)
    more = admission.predicted([*inside, first], block_size) - peak if first else 0
    return max(0, peak - overlap), more
