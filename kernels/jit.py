"""What all Triton kernels share."""

from typing import Any

import triton

jit: Any = triton.jit
"""Without its types, which do not know the options of a launch."""


def power_of_two(size: int) -> int:
    """The least power of two from `size` on: Triton's ranges have no other lengths."""
    return 1 << (size - 1).bit_length()
